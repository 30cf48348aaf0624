"""How a scan sits on the network's grid, and resampling between the two.

Voxel coordinates are 0-based and integer at voxel centres. Along every axis the crop and the network grid cover the
same extent, so with a crop of `n` voxels and a network grid of `m`, network coordinate `i` lies at crop coordinate
`(i + 0.5) * n / m - 0.5`. The mapping is separable, so resampling is one small matrix product an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import nibabel as nib
import numpy as np
from scipy import ndimage

from segment.data.scan import Grid
from segment.errors import InputError

SPACING_TOLERANCE = 1e-3  # relative; headers hold float32, and a thousandth of a voxel moves no lesion
Order = Literal[1, 3]  # of a spline: linear or cubic
NEGLIGIBLE = 1e-9  # weight of a voxel in a spline
ANISOTROPY = 3.0  # beyond this spacing ratio a spline across slices rings more than it informs (as in nnU-Net)


@dataclass(frozen=True, eq=False)
class Placement:
    """The way between a scan's own grid and the network's grid.

    Attributes:
        grid: The scan's own grid.
        crop: Start and stop per canonical (RAS) axis, in voxels of the canonical scan.
        shape: The network grid's shape; equal to the crop's where no resampling is needed.
    """

    grid: Grid
    crop: tuple[tuple[int, int], ...]
    shape: tuple[int, int, int]

    @property
    def crop_shape(self) -> tuple[int, int, int]:
        """Voxels of the crop per canonical axis."""
        (a, b), (c, d), (e, f) = self.crop
        return b - a, d - c, f - e

    @property
    def crop_slices(self) -> tuple[slice, ...]:
        """The crop as an index into the canonical scan."""
        return tuple(slice(start, stop) for start, stop in self.crop)

    @property
    def canonical_affine(self) -> np.ndarray:
        """float64 [4, 4]: canonical voxel of the uncropped scan -> world mm."""
        return self.grid.affine @ nib.orientations.inv_ornt_aff(_orientation(self.grid.affine), self.grid.shape)

    @property
    def affine(self) -> np.ndarray:
        """float64 [4, 4]: network voxel -> world mm."""
        step = np.asarray(self.crop_shape, float) / self.shape
        to_canonical = np.eye(4)
        to_canonical[:3, :3] = np.diag(step)
        to_canonical[:3, 3] = 0.5 * step - 0.5 + [start for start, _ in self.crop]
        return self.canonical_affine @ to_canonical

    @property
    def voxel_mm3(self) -> float:
        """Volume of a network voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {
            "grid_shape": list(self.grid.shape),
            "grid_affine": np.asarray(self.grid.affine, float).tolist(),
            "crop": [list(ends) for ends in self.crop],
            "shape": list(self.shape),
        }

    @staticmethod
    def from_json(values: Any) -> Placement:
        """Reads what `to_json` gave. Raises InputError when a key is missing or malformed."""
        try:
            x, y, z = (int(count) for count in values["grid_shape"])
            i, j, k = (int(count) for count in values["shape"])
            crop = tuple((int(start), int(stop)) for start, stop in values["crop"])
            affine = np.asarray(values["grid_affine"], np.float64).reshape(4, 4)
        except (KeyError, TypeError, ValueError) as cause:
            raise InputError(
                f"placement: expected grid_shape, grid_affine, crop and shape, found a fault: {cause}"
            ) from cause
        return Placement(Grid((x, y, z), affine), crop, (i, j, k))


def _orientation(affine: np.ndarray) -> np.ndarray:
    return nib.orientations.io_orientation(affine)


def canonical_spacing(grid: Grid) -> tuple[float, float, float]:
    """Voxel spacing in mm per canonical (RAS) axis."""
    order = np.argsort(_orientation(grid.affine)[:, 0])
    x, y, z = (float(grid.spacing_mm[axis]) for axis in order)
    return x, y, z


def nonzero_box(image: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Start and stop per axis of the smallest box around every voxel that is not 0 in any channel.

    Args:
        image: [x, y, z, channels].

    Returns:
        Three pairs; the whole image when it is 0 everywhere.
    """
    occupied = (image != 0).any(axis=-1)
    box = []
    for axis in range(3):
        hits = np.flatnonzero(occupied.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append((int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, image.shape[axis]))
    return tuple(box)


def network_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Voxels per axis that cover the extent of `shape` at the target spacing: at least 1, the same where both agree."""
    x, y, z = (
        int(count) if abs(spacing - target) <= SPACING_TOLERANCE * target else max(1, round(count * spacing / target))
        for count, spacing, target in zip(shape, spacing_mm, target_mm, strict=True)
    )
    return x, y, z


def spline_orders(spacing_mm: Sequence[float], target_mm: Sequence[float]) -> tuple[Order, Order, Order]:
    """Spline order per axis for images: 3, but 1 across a coarse axis of strongly anisotropic data.

    An axis is coarse when its spacing is more than 3 times the finest, in the scan or on the network grid.
    """
    own, goal = np.divide(spacing_mm, min(spacing_mm)), np.divide(target_mm, min(target_mm))
    orders: list[Order] = [
        1 if coarse else 3 for coarse in np.maximum(own, goal) > ANISOTROPY * (1 + SPACING_TOLERANCE)
    ]
    return orders[0], orders[1], orders[2]


@lru_cache(maxsize=64)
def axis_matrix(size: int, new_size: int, order: Order) -> np.ndarray:
    """float32 [new_size, size]: interpolation along one axis, from `size` voxels to `new_size` over the same extent.

    Column j is the response to a single 1 at voxel j under scipy's prefiltered spline of the order; beyond the
    outermost voxel centres the edge value goes on.
    """
    position = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    matrix = np.stack(
        [ndimage.map_coordinates(unit, position[None], order=order, mode="nearest") for unit in np.eye(size)], axis=1
    )
    # Far from its voxel the response falls below what float32 sees, into denormals that the product is slow on.
    matrix = np.where(np.abs(matrix) < NEGLIGIBLE, 0.0, matrix).astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def resample(volume: np.ndarray, shape: Sequence[int], orders: Sequence[Order]) -> np.ndarray:
    """Resamples one volume over the same extent, clipped to its own range so that splines do not overshoot.

    Args:
        volume: float32 [x, y, z].
        shape: Voxels per axis of the result.
        orders: Spline order per axis.

    Returns:
        float32 of `shape`; the volume itself when the shape is the same already.
    """
    if tuple(shape) == volume.shape:
        return volume
    low, high = volume.min(), volume.max()
    result = np.ascontiguousarray(volume, np.float32)
    # The axis that shrinks most goes first: the later products are smaller.
    for axis in sorted(range(3), key=lambda axis: shape[axis] / volume.shape[axis]):
        if shape[axis] == result.shape[axis]:
            continue
        matrix = axis_matrix(result.shape[axis], int(shape[axis]), orders[axis])
        if axis == 0:
            result = (matrix @ result.reshape(result.shape[0], -1)).reshape(-1, *result.shape[1:])
        elif axis == 1:
            result = np.matmul(matrix, result)
        else:
            result = (result.reshape(-1, result.shape[2]) @ matrix.T).reshape(*result.shape[:2], -1)
    return np.clip(result, low, high, out=result)


def resample_nearest(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The value of the voxel in which each new voxel's centre lies, for labels and masks.

    Args:
        volume: [x, y, z] of any dtype, kept.
        shape: Voxels per axis of the result.
    """
    if tuple(shape) == volume.shape:
        return volume
    # Centre (i + 0.5) * n / m lies in voxel floor(...); in integers, so that no rounding error moves a tie.
    index = [(2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(volume.shape, shape, strict=True)]
    return volume[np.ix_(*index)]
