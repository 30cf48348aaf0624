"""Surface distances in mm: the 95th percentile of the Hausdorff distance, and the surface Dice at a tolerance.

Masks are boolean, [x, y, z] or [x, y]. In 2D edge voxels have 4 neighbours instead of 6, and contour lengths stand for
surface areas; an image of one slice must come without its slice axis, or all of it is edge.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.spatial import cKDTree

from segment.evaluation.lesions import bounding_box, common_order

TOLERANCE_SLACK = (
    1e-6  # relative: a distance of exactly the tolerance is within it, whatever float32 headers made of it
)
_BLOCK = 1 << 20  # voxels at a time

# The pieces of surface that cut a group of edge-connected corners off the others in a 2x2x2 cell of unit voxels, as
# area vectors whose components are absolute: spacing scales each by itself, and the signs do not change an area. The
# first axis, `a`, depends on the group (see `_pieces`). The cut passes through the middle of the cell's edges.
_Pieces = tuple[tuple[float, float, float], ...]
_CORNER: _Pieces = ((1 / 8, 1 / 8, 1 / 8),)  # a triangle: legs of 1/2 on all three axes
_EDGE: _Pieces = ((0, 1 / 2, 1 / 2),)  # a rectangle along a: 1 by the diagonal of 1/2 and 1/2
_BEND: _Pieces = (
    (1 / 2, 0, 0),
    (3 / 8, 3 / 8, 3 / 8),
)  # three corners of a face across a: half the face, and a flat trapezoid
_FACE: _Pieces = ((1, 0, 0),)  # a square across a
_TRIPOD: _Pieces = ((3 / 4, 3 / 4, 3 / 4),)  # a corner and its three neighbours: a flat regular hexagon
_CHAIN = (
    (1 / 2, 1 / 2, 1 / 2),
    (1 / 4, 1 / 4, 0),
    (1 / 4, 0, 1 / 4),
)  # bends twice, its middle along a: trapezoid, two ears


def hd95_mm(label: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> float | None:
    """The larger of the two directed 95th percentiles of the distances between edge voxels, in mm.

    Edge voxels are those that a 6-neighbour erosion removes, where outside the volume counts as background. The
    percentile interpolates linearly between the two nearest distances.

    Args:
        label: Boolean [x, y, z] or [x, y].
        prediction: Boolean, same shape.
        spacing_mm: Voxel spacing along each axis.

    Returns:
        A distance >= 0, or None when at least one mask is empty.
    """
    label, prediction, spacing = _walkable(label, prediction, spacing_mm)
    first, second = edge_voxels(label) * spacing, edge_voxels(prediction) * spacing
    if len(first) == 0 or len(second) == 0:
        return None
    return max(_percentile_to(first, second), _percentile_to(second, first))


def _percentile_to(points: np.ndarray, others: np.ndarray) -> float:
    distance, _ = cKDTree(others).query(points)
    return float(np.percentile(distance, 95))


def surface_dice(
    label: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], *, tolerance_mm: float
) -> float | None:
    """The share of both surfaces that lies within `tolerance_mm` of the other one, by area.

    As google-deepmind/surface-distance defines it (Nikolov et al., "Deep learning to achieve clinically applicable
    segmentation of head and neck anatomy for radiotherapy", 2018): surface elements sit at the corners between voxels,
    their areas are those of marching cubes, and distances go from corner to corner. Outside the volume is background.

    Args:
        label: Boolean [x, y, z] or [x, y].
        prediction: Boolean, same shape.
        spacing_mm: Voxel spacing along each axis.
        tolerance_mm: Inclusive, with a relative tolerance of 1e-6.

    Returns:
        A share in [0, 1]; 0 when exactly one mask is empty, None when both are.
    """
    label, prediction, spacing = _walkable(label, prediction, spacing_mm)
    first, first_area = surface_elements(label, spacing)
    second, second_area = surface_elements(prediction, spacing)
    if len(first) == 0 and len(second) == 0:
        return None
    if len(first) == 0 or len(second) == 0:
        return 0.0
    reach = tolerance_mm * (1 + TOLERANCE_SLACK)
    within = first_area[_reaches(first, second, reach)].sum() + second_area[_reaches(second, first, reach)].sum()
    return float(within / (first_area.sum() + second_area.sum()))


def _reaches(points: np.ndarray, others: np.ndarray, reach: float) -> np.ndarray:
    distance, _ = cKDTree(others).query(points, distance_upper_bound=reach)
    return np.isfinite(distance)


def edge_voxels(mask: np.ndarray) -> np.ndarray:
    """The indices of a mask's edge voxels: int64 [n, axes] for a boolean mask of 2 or 3 axes."""
    padded, start = _crop_and_pad(mask)
    flat = padded.ravel()
    edges = [np.zeros(0, np.int64)]
    for inside in _voxels_in_blocks(flat):
        interior = np.ones(len(inside), bool)
        for stride in _strides(padded.shape):
            interior &= flat[inside - stride] & flat[inside + stride]
        edges.append(inside[~interior])
    return np.stack(np.unravel_index(np.concatenate(edges), padded.shape), axis=1) + start


def surface_elements(mask: np.ndarray, spacing_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places in mm (float64 [n, axes]) and areas in mm2 (lengths in mm in 2D; float64 [n]) of a mask's surface.

    There is an element at every corner between voxels where some but not all of the 2x2x2 (2x2) voxels are inside.
    """
    padded, start = _crop_and_pad(mask)
    codes = np.zeros(padded.size, np.uint8)
    steps = [int(np.dot(corner, _strides(padded.shape))) for corner in _corners(mask.ndim)]
    for inside in _voxels_in_blocks(padded.ravel()):
        for bit, step in enumerate(steps):
            # No voxel comes twice in `inside`, so that each assignment sees every corner at most once.
            codes[inside - step] |= np.uint8(1 << bit)
    table = surface_table(tuple(float(side) for side in spacing_mm))
    elements = np.flatnonzero((codes != 0) & (codes != len(table) - 1))
    places = np.stack(np.unravel_index(elements, padded.shape), axis=1) + start
    return places * spacing_mm, table[codes[elements]]


def _voxels_in_blocks(flat: np.ndarray) -> Iterator[np.ndarray]:
    """The indices of the true values of a flat array, a block at a time: large masks need no index of every voxel."""
    for first in range(0, len(flat), _BLOCK):
        yield np.flatnonzero(flat[first : first + _BLOCK]) + first


def _crop_and_pad(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mask's bounding box with a margin of one empty voxel, C-ordered, and the index of its first voxel."""
    box = bounding_box(mask if mask.ndim == 3 else mask[..., None])
    if box is None:
        return np.zeros((2,) * mask.ndim, bool), np.zeros(mask.ndim, np.int64)
    sides = box[: mask.ndim]
    return np.pad(mask[sides], 1), np.array([side.start - 1 for side in sides], np.int64)


def _strides(shape: tuple[int, ...]) -> list[int]:
    """How far neighbours along each axis are apart in a C-ordered flat array."""
    return [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]


def _walkable(
    label: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The masks with their axes reversed where they lie in column order: distances stay, and C order is faster here."""
    spacing = np.asarray(spacing_mm, np.float64)
    if common_order(label, prediction) == "F":
        return label.T, prediction.T, spacing[::-1]
    return label, prediction, spacing


def _corners(axes: int) -> list[tuple[int, ...]]:
    """The corners of a cell in the order of their bits in a neighbour code."""
    return list(itertools.product((0, 1), repeat=axes))


@functools.lru_cache(maxsize=64)
def surface_table(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """The surface in a cell for each neighbour code: float64 [256] areas in mm2 for 3 axes, [16] lengths in mm for 2.

    Bit k of a code is set when the k-th corner of the cell, in the order of `itertools.product((0, 1), repeat=axes)`,
    is inside. The smaller group of corners is cut off (a code and its complement have the same surface); corners of it
    that share no cell edge are cut off each by itself.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    corners = _corners(len(spacing))
    # An area vector's component along an axis is scaled by the spacing of the other two.
    scale = np.prod(spacing) / spacing
    table = np.zeros(1 << len(corners))
    for code in range(len(table)):
        inside = [corner for bit, corner in enumerate(corners) if code >> bit & 1]
        if 2 * len(inside) > len(corners):
            inside = [corner for corner in corners if corner not in inside]
        for group in _edge_connected(inside):
            pieces = _pieces(np.array(group)) if len(spacing) == 3 else _contour(np.array(group))
            table[code] += np.linalg.norm(pieces * scale, axis=1).sum()
    table.setflags(write=False)
    return table


def _edge_connected(corners: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """The corners in groups that are connected along edges of the cell."""
    groups: list[list[tuple[int, ...]]] = []
    for corner in corners:
        near = [
            group
            for group in groups
            if any(sum(a != b for a, b in zip(corner, other, strict=True)) == 1 for other in group)
        ]
        groups = [group for group in groups if group not in near] + [[corner, *itertools.chain(*near)]]
    return groups


def _pieces(group: np.ndarray) -> np.ndarray:
    """The area vectors [pieces, 3] that cut off a group [corners, 3] of at most 4 edge-connected corners of a cell."""
    steps = np.array([abs(a - b) for a, b in itertools.combinations(group, 2) if abs(a - b).sum() == 1])
    along = (
        steps.sum(axis=0) if len(steps) else np.zeros(3, int)
    )  # how many cell edges of the group run along each axis
    if len(group) == 1:
        shape, first = _CORNER, 0
    elif len(group) == 2:
        shape, first = _EDGE, int(np.argmax(along))
    elif len(group) == 3:
        shape, first = _BEND, int(np.argmin(along))
    elif len(steps) == 4:
        shape, first = _FACE, int(np.argmin(along))
    elif any((abs(group - corner).sum(axis=1) <= 1).all() for corner in group):
        shape, first = _TRIPOD, 0
    else:
        shape, first = _CHAIN, _middle_axis(group)
    return np.roll(np.array(shape, np.float64), first, axis=1)


def _middle_axis(chain: np.ndarray) -> int:
    """The axis of the middle edge of four corners in a chain: the one between the two corners with two neighbours."""
    middle = [corner for corner in chain if (abs(chain - corner).sum(axis=1) == 1).sum() == 2]
    return int(np.argmax(abs(middle[0] - middle[1])))


def _contour(group: np.ndarray) -> np.ndarray:
    """The length vectors [pieces, 2], across the line, that cut one or two edge-connected corners off a square cell."""
    if len(group) == 1:
        return np.array([[1 / 2, 1 / 2]])
    return np.array([[0.0, 1.0]]) if group[0][0] != group[1][0] else np.array([[1.0, 0.0]])
