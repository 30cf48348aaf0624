"""The lesion definitions once more, in plain Python sets and by enumeration; shares no code with the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

Voxel = tuple[int, ...]


def components(mask: np.ndarray) -> list[frozenset[Voxel]]:
    """The sets of voxels that touch by a face, an edge or a corner."""
    left = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=mask.ndim) if any(step)]
    found = []
    while left:
        queue = [left.pop()]
        group = set(queue)
        while queue:
            voxel = queue.pop()
            near = {tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in steps} & left
            left -= near
            group |= near
            queue += near
        found.append(frozenset(group))
    return found


def iou(first: frozenset[Voxel], second: frozenset[Voxel]) -> Fraction:
    """Shared voxels over all voxels, exactly."""
    return Fraction(len(first & second), len(first | second))


def best_matching(gt: Sequence[frozenset[Voxel]], pred: Sequence[frozenset[Voxel]]) -> tuple[Fraction, int]:
    """Over every one-to-one matching of pairs with IoU >= 1/10: the greatest total IoU, then the most matches."""

    def best(index: int, used: frozenset[int]) -> tuple[Fraction, int]:
        if index == len(gt):
            return Fraction(0), 0
        options = [best(index + 1, used)]
        for other, candidate in enumerate(pred):
            if other not in used and iou(gt[index], candidate) >= Fraction(1, 10):
                total, count = best(index + 1, used | {other})
                options.append((total + iou(gt[index], candidate), count + 1))
        return max(options)

    return best(0, frozenset())


def edges(mask: np.ndarray) -> list[Voxel]:
    """The voxels with a face neighbour that is background or outside."""
    inside = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    found = []
    for voxel in inside:
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            near = tuple(i + step * (other == axis) for other, i in enumerate(voxel))
            if near not in inside:
                found.append(voxel)
                break
    return found


def percentile_95(values: Sequence[float]) -> float:
    """Linear between the two nearest values."""
    ordered = sorted(values)
    place = 0.95 * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def hd95_mm(label: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]) -> float | None:
    """The larger directed 95th percentile of edge voxel distances, every pair looked at."""
    first, second = edges(label), edges(prediction)
    if not first or not second:
        return None

    def directed(points: list[Voxel], others: list[Voxel]) -> float:
        return percentile_95([min(distance_mm(point, other, spacing_mm) for other in others) for point in points])

    return max(directed(first, second), directed(second, first))


def distance_mm(first: Voxel, second: Voxel, spacing_mm: Sequence[float]) -> float:
    """Between two voxel centres."""
    return math.sqrt(sum(((a - b) * side) ** 2 for a, b, side in zip(first, second, spacing_mm, strict=True)))


def cells(mask: np.ndarray) -> dict[Voxel, tuple[bool, ...]]:
    """The corner voxels of each 2x2x2 (2x2) cell that the surface passes, corners in the order of itertools.product."""
    padded = np.pad(mask, 1)
    found = {}
    for place in itertools.product(*(range(length - 1) for length in padded.shape)):
        corners = tuple(
            bool(padded[tuple(a + b for a, b in zip(place, corner, strict=True))])
            for corner in itertools.product((0, 1), repeat=mask.ndim)
        )
        if any(corners) and not all(corners):
            found[place] = corners
    return found


def small_bin(volume_mm3: float, edges_mm3: Sequence[float] = (10.0, 50.0, 200.0)) -> str:
    """The name of the size bin with the default edges."""
    names = ("<=10", "10-50", "50-200", ">200")
    return next(
        (name for name, edge in zip(names, edges_mm3, strict=False) if volume_mm3 <= edge * 1.000001), names[-1]
    )
