"""Turning and scaling of 3D patches in one resampling, and flips and 90-degree turns, which resample nothing.

Rotation and scale are one matrix about the patch's centre. The source is cut as large as that matrix needs, so no
corner of a turned patch is empty unless the scan ends there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segment.data.components import label_components

CLOSE_RATIO = 2.0  # voxels are turned within a plane whose two spacings differ less than this, as the network pools
SAME_SPACING = 1e-2  # relative difference up to which a 90-degree turn takes one axis for another
CV_LIMIT = 32_000  # rows or columns that cv2.remap can address, and some to spare
SLAB_VOXELS = 2**15


@dataclass(frozen=True)
class Symmetry:
    """A flip and 90-degree turn: output axis i is source axis `order[i]`, mirrored where `mirrored[i]` says so."""

    order: tuple[int, int, int]
    mirrored: tuple[bool, bool, bool]

    def apply(self, volume: np.ndarray) -> np.ndarray:
        """A view of [x, y, z] of any dtype."""
        return volume.transpose(self.order)[tuple(slice(None, None, -1 if turn else 1) for turn in self.mirrored)]


IDENTITY = Symmetry((0, 1, 2), (False, False, False))


def axis_orders(spacing_mm: Sequence[float], size: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """The orders of axes that keep spacing and size: all six for cubes of isotropic voxels, the identity first."""

    def same(axis: int, other: int) -> bool:
        return size[axis] == size[other] and math.isclose(spacing_mm[axis], spacing_mm[other], rel_tol=SAME_SPACING)

    orders = ((x, y, z) for x, y, z in itertools.permutations(range(3)))
    return tuple(order for order in orders if all(map(same, order, range(3))))


def draw_symmetry(rng: np.random.Generator, orders: Sequence[tuple[int, int, int]], *, flip: bool) -> Symmetry:
    """One of the orders, and with `flip` each axis mirrored half of the time; every combination is as likely."""
    order = orders[int(rng.integers(len(orders)))]
    x, y, z = (bool(turn) for turn in (rng.random(3) < 0.5) & flip)
    return Symmetry(order, (x, y, z))


def draw_matrix(rng: np.random.Generator, spacing_mm: Sequence[float], *, degrees: float, scale: float) -> np.ndarray:
    """A random rotation and scaling as a matrix on voxel offsets from the patch's centre.

    Angles are uniform up to `degrees` about each axis across which both spacings are close (below a ratio of 2), so
    that thick slices are turned within themselves only. The factor is log-uniform between 1 / scale and scale and the
    same for all axes, except those of 2 times the finest spacing and more, which keep their slices.

    Args:
        rng: All randomness comes from it.
        spacing_mm: Per axis.
        degrees: Largest angle, 0 or more.
        scale: Largest factor by which things grow, 1 or more.

    Returns:
        float64 [3, 3]: offset in the patch, in voxels -> offset in the source.
    """
    spacing = np.asarray(spacing_mm, float)
    fine = spacing < CLOSE_RATIO * spacing.min() * (1 - 1e-3)
    matrix = np.eye(3)
    for one, other in ((1, 2), (0, 2), (0, 1)):
        angle = math.radians(rng.uniform(-degrees, degrees))
        if fine[one] and fine[other]:
            turn = np.eye(3)
            turn[one, one] = turn[other, other] = math.cos(angle)
            turn[one, other] = -math.sin(angle)
            turn[other, one] = math.sin(angle)
            matrix = matrix @ turn
    grown = scale ** rng.uniform(-1.0, 1.0)
    matrix = matrix @ np.diag(np.where(fine, 1.0 / grown, 1.0))
    return np.diag(1.0 / spacing) @ matrix @ np.diag(spacing)


@dataclass(frozen=True, eq=False)
class Warp:
    """One resampling of a patch.

    Attributes:
        matrix: float64 [3, 3]: voxel offset from the patch's centre -> from the same point of the source.
        size: Voxels of the patch per axis.
        first: First voxel of the box that is cut from the volume; may lie outside.
        box: Voxels of that box per axis.
        centre: The patch's centre, in voxels of the box.
    """

    matrix: np.ndarray
    size: tuple[int, int, int]
    first: tuple[int, int, int]
    box: tuple[int, int, int]
    centre: np.ndarray

    @staticmethod
    def around(
        start: Sequence[int],
        size: tuple[int, int, int],
        matrix: np.ndarray,
        held: Sequence[tuple[int, int]] | None,
    ) -> Warp:
        """The warp of the patch whose first corner is at voxel `start`, about its centre.

        Where that would move the box `held` (start and stop per axis) out of the patch, the patch moves after it: so
        far that it holds all of the box, or the middle of one that has grown too large.
        """
        half = (np.asarray(size) - 1) / 2
        centre = np.asarray(start) + half
        if held is not None:
            corners = np.array(list(itertools.product(*((first, stop - 1) for first, stop in held))))
            mapped = np.linalg.solve(matrix, (corners - centre).T).T + half
            low, high = mapped.min(axis=0), mapped.max(axis=0)
            middle = (low + high) / 2
            fits = high - low <= np.asarray(size) - 1
            low, high = np.where(fits, low, middle), np.where(fits, high, middle)
            centre = centre + matrix @ (np.minimum(low, 0) + np.maximum(high - (np.asarray(size) - 1), 0))
        reach = np.abs(matrix) @ half
        first = np.floor(centre - reach - 1e-6).astype(int)
        # A voxel beyond the last one that counts: linear interpolation reads both neighbours, the last of weight 0.
        box = np.ceil(centre + reach + 1e-6).astype(int) + 2 - first
        x, y, z = (int(value) for value in first)
        i, j, k = (int(value) for value in box)
        return Warp(matrix, size, (x, y, z), (i, j, k), centre - first)

    def _slabs(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
        """A few slices of the patch at a time: which, and their source coordinates, three times float32 [x, y * z].

        In voxels of the box. What is computed for a slab stays in the processor's cache until it is done.
        """
        origin = self.centre - self.matrix @ ((np.asarray(self.size) - 1) / 2)
        count = max(1, SLAB_VOXELS // (self.size[1] * self.size[2]))
        _, along_y, along_z = (np.arange(size) for size in self.size)
        within = [
            (origin[axis] + (self.matrix[axis, 1] * along_y)[:, None] + self.matrix[axis, 2] * along_z).reshape(-1)
            for axis in range(3)
        ]
        for first in range(0, self.size[0], count):
            part = slice(first, min(first + count, self.size[0]))
            steps = np.arange(part.start, part.stop)
            x, y, z = (
                (self.matrix[axis, 0] * steps).astype(np.float32)[:, None] + within[axis].astype(np.float32)
                for axis in range(3)
            )
            yield part, x, y, z

    def image(self, channels: np.ndarray) -> np.ndarray:
        """Trilinear interpolation.

        Two bilinear look-ups in the slices before and after each point, which OpenCV does several times faster than
        scipy's splines of order 1; its weights are exact to 1/32 of a voxel or better, by version.

        Args:
            channels: float32 [channels, *box], C-ordered.

        Returns:
            float32 [channels, *size].
        """
        atlases = [_atlas(values) for values in channels]
        result = np.empty((len(channels), self.size[0], self.size[1] * self.size[2]), np.float32)
        for part, x, y, z in self._slabs():
            before = np.floor(x)
            np.clip(before, 0, self.box[0] - 2, out=before)
            x -= before  # now the share of the slice after
            places = [_places(index, y, z, self.box) for index in (before, before + 1)]
            for channel, atlas in zip(result, atlases, strict=True):
                low, high = (_look_up(atlas, *place, cv2.INTER_LINEAR) for place in places)
                high -= low
                high *= x
                np.add(high, low, out=channel[part])
        return result.reshape(len(channels), *self.size)

    def label(self, label: np.ndarray) -> np.ndarray:
        """The nearest voxel's value, and at least one voxel of every lesion whose middle lies in the patch.

        Nearest keeps the volume of small lesions right on average, where interpolation and a threshold would shrink
        all of them. What falls between the points that are looked up, as single voxels do when a patch shrinks, gets
        the voxel nearest to its middle.

        Args:
            label: uint8 [*box].

        Returns:
            uint8 [*size].
        """
        lesions = np.flatnonzero(label != 0)
        moved = np.zeros((self.size[0], self.size[1] * self.size[2]), np.uint8)
        if not lesions.size:
            return moved.reshape(self.size)
        atlas, found = _atlas(label), []
        for part, x, y, z in self._slabs():
            nearest = np.rint(x), np.rint(y), np.rint(z)
            moved[part] = _look_up(atlas, *_places(*nearest, self.box), cv2.INTER_NEAREST)
            hit = moved[part] != 0
            found.append(np.ravel_multi_index([array[hit].astype(np.intp) for array in nearest], self.box))
        seen = np.concatenate(found)
        for value in np.unique(label.reshape(-1)[lesions]):
            numbers, count = label_components(label == value, connectivity=26)
            owner = numbers.reshape(-1)[lesions]
            kept = np.zeros(count + 1, bool)
            kept[numbers.reshape(-1)[seen]] = True
            kept[0] = True
            lost = ~kept[owner]
            if lost.any():
                self._restore(moved, lesions[lost], owner[lost], int(value))
        return moved.reshape(self.size)

    def _restore(self, moved: np.ndarray, voxels: np.ndarray, owner: np.ndarray, value: int) -> None:
        """Sets the voxel nearest to the middle of each lost lesion, where that lies in the patch."""
        _, number = np.unique(owner, return_inverse=True)
        places = np.stack(np.unravel_index(voxels, self.box))
        middle = np.stack([np.bincount(number, along) for along in places]) / np.bincount(number)  # [3, lost]
        offset = np.linalg.solve(self.matrix, middle - self.centre[:, None])
        place = np.rint(offset.T + (np.asarray(self.size) - 1) / 2).astype(int)
        inside = ((place >= 0) & (place < self.size)).all(axis=1)
        moved.reshape(self.size)[tuple(place[inside].T)] = value


def _wide(box: tuple[int, int, int]) -> int:
    """How many slices stand beside each other in the atlas: one, or as many as keep its rows within reach of cv2."""
    return -(-box[0] // max(1, CV_LIMIT // box[1]))


def _atlas(channel: np.ndarray) -> np.ndarray:
    """The slices of [x, y, z] as one picture: below each other, or in rows of several."""
    slices, rows, columns = channel.shape
    wide = _wide(channel.shape)
    if wide == 1:
        return channel.reshape(slices * rows, columns)
    padded = np.zeros((-(-slices // wide) * wide, rows, columns), channel.dtype)
    padded[:slices] = channel
    return padded.reshape(-1, wide, rows, columns).transpose(0, 2, 1, 3).reshape(-1, wide * columns)


def _places(
    index: np.ndarray, row: np.ndarray, column: np.ndarray, box: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column in the atlas of points in slice `index` (whole numbers), float32."""
    _, rows, columns = box
    wide = np.float32(_wide(box))
    if wide == 1:
        top = index * np.float32(rows)
        top += row
        return top, column
    down = np.floor(index / wide)
    return down * np.float32(rows) + row, column + (index - down * wide) * np.float32(columns)


def _look_up(atlas: np.ndarray, row: np.ndarray, column: np.ndarray, how: int) -> np.ndarray:
    """cv2.remap in blocks of the size that it can write."""
    if max(row.shape) <= CV_LIMIT:
        return cv2.remap(atlas, column, row, how)
    result = np.empty(row.shape, atlas.dtype)
    for top in range(0, row.shape[0], CV_LIMIT):
        for left in range(0, row.shape[1], CV_LIMIT):
            block = np.s_[top : top + CV_LIMIT, left : left + CV_LIMIT]
            result[block] = cv2.remap(atlas, column[block], row[block], how)
    return result
