"""Lesions as connected components, how two masks overlap lesion by lesion, and which lesion matches which prediction.

Arrays are [x, y, z]; a 2D image has one slice, where 26-connectivity is 8-connectivity.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csgraph

from segment.data.components import label_components

VOLUME_TOLERANCE = 1e-6  # relative: spacing comes from float32 headers
IOU_TOLERANCE = 1e-9
# Among assignments of equal total IoU the one with more matches is taken, so that the counts depend on neither the
# order of the lesions nor the orientation of the image. Far above rounding, far below any difference of two IoUs.
_PER_MATCH = 1e-11
_BLOCK = 1 << 20  # voxels at a time
_RUNS = 1 << 12  # runs of voxels at a time


@dataclass(frozen=True, eq=False)
class Components:
    """The 26-connected components of one mask. Component i has the label i + 1; the largest comes first."""

    labels: np.ndarray  # unsigned [x, y, z], 0 is background
    n_voxels: np.ndarray  # int64 [n]
    start: np.ndarray  # int64 [n, 3], first voxel of the bounding box
    stop: np.ndarray  # int64 [n, 3], one past the last voxel
    centroid: np.ndarray  # float64 [n, 3], in voxels

    def __len__(self) -> int:
        return len(self.n_voxels)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The pairs of a label lesion and a predicted one that share voxels, sorted by both indices.

    `gt` and `pred` are int64 [pairs] indices from 0, `n_shared` int64 [pairs] voxels, `iou` float64 [pairs] in (0, 1].
    """

    gt: np.ndarray
    pred: np.ndarray
    n_shared: np.ndarray
    iou: np.ndarray

    def select(self, keep: np.ndarray) -> Overlaps:
        """The pairs where the boolean array [pairs] is true."""
        return Overlaps(self.gt[keep], self.pred[keep], self.n_shared[keep], self.iou[keep])


def find_components(mask: np.ndarray) -> Components:
    """Labels the 26-connected components of a boolean mask [x, y, z] (8-connected where an axis has one voxel).

    Nothing is dilated, filled or left out. Components are numbered by falling size, equal sizes by their place.
    An empty mask gives no component. The labels keep the memory layout of the mask.
    """
    first, length = _runs(mask)
    shape, order = mask.shape, common_order(mask, mask)
    raw, count = label_components(mask, connectivity=26)
    del mask  # where nobody else holds it, the labels take its place
    if count == 0:
        empty = np.zeros((0, 3), np.int64)
        return Components(np.zeros(shape, np.uint16), np.zeros(0, np.int64), empty, empty, np.zeros((0, 3)))
    number = np.asarray(raw, order=order).ravel(order="K")[first].astype(np.int64)
    n_voxels, start, stop, centroid = _statistics(first, length, number - 1, shape, order, count)
    by_size = np.lexsort((*centroid.T[::-1], *start.T[::-1], -n_voxels))
    rank = np.zeros(count + 1, np.int64)
    rank[by_size + 1] = np.arange(1, count + 1)
    labels = np.zeros(shape, np.min_scalar_type(max(count, 256)), order=order)
    _fill(labels.ravel(order="K"), first, length, rank[number])
    return Components(labels, n_voxels[by_size], start[by_size], stop[by_size], centroid[by_size])


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The unbroken lines of true voxels along the axis that lies closest in memory.

    Lesions are few voxels of many, and a line of them counts once: all that follows looks at nothing else.

    Returns:
        The place of each line's first voxel in the flat array, in memory order, and its length: int64 [runs] each.
    """
    flat = mask.ravel(order="K")
    line = mask.shape[0 if common_order(mask, mask) == "F" else -1]
    firsts, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(flat), _BLOCK):
        inside = np.flatnonzero(flat[start : start + _BLOCK]) + start
        begins = np.flatnonzero((np.diff(inside, prepend=-2) != 1) | (inside % line == 0))
        firsts.append(inside[begins])
        lengths.append(np.diff(begins, append=len(inside)))
    return np.concatenate(firsts), np.concatenate(lengths)


def _statistics(
    first: np.ndarray,
    length: np.ndarray,
    index: np.ndarray,
    shape: tuple[int, ...],
    order: Literal["C", "F"],
    count: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Voxels, first and one past the last voxel, centroid: of `count` components from their runs (`index` from 0)."""
    n_voxels = np.bincount(index, weights=length, minlength=count)
    start, stop = np.zeros((2, count, 3), np.int64)
    centroid = np.zeros((count, 3))
    fastest = 0 if order == "F" else 2
    for axis, place in enumerate(np.unravel_index(first, shape, order=order)):
        last = place + length - 1 if axis == fastest else place
        start[:, axis] = shape[axis]
        np.minimum.at(start[:, axis], index, place)
        np.maximum.at(stop[:, axis], index, last + 1)
        centroid[:, axis] = np.bincount(index, weights=(place + last) * length / 2, minlength=count) / n_voxels
    return n_voxels.astype(np.int64), start, stop, centroid


def _fill(flat: np.ndarray, first: np.ndarray, length: np.ndarray, values: np.ndarray) -> None:
    """Writes a value into each run of a flat array."""
    for start in range(0, len(first), _RUNS):
        part = slice(start, start + _RUNS)
        n = length[part]
        inside = np.arange(n.sum()) + np.repeat(first[part] - (np.cumsum(n) - n), n)
        flat[inside] = np.repeat(values[part], n)


def look_up(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`table[labels]` for a contiguous array, in its memory layout, without the index array of eight times its size."""
    values = np.full_like(labels, table[0], dtype=table.dtype)
    source, target = labels.ravel(order="K"), values.ravel(order="K")
    for start in range(0, len(source), _BLOCK):
        block = slice(start, start + _BLOCK)
        inside = np.flatnonzero(source[block] != 0)
        target[block][inside] = table[source[block][inside]]
    return values


def find_overlaps(gt: Components, pred: Components) -> Overlaps:
    """The overlap table of two labelled masks of one shape: every pair of components with at least one shared voxel."""
    gt_labels, pred_labels = _flat_together(gt.labels, pred.labels)
    width = len(pred) + 1
    codes = [np.zeros(0, np.int64)]
    for start in range(0, len(gt_labels), _BLOCK):
        gt_block, pred_block = gt_labels[start : start + _BLOCK], pred_labels[start : start + _BLOCK]
        shared = np.flatnonzero((gt_block != 0) & (pred_block != 0))
        codes.append(gt_block[shared].astype(np.int64) * width + pred_block[shared])
    pairs, n_shared = np.unique(np.concatenate(codes), return_counts=True)
    gt_index, pred_index = pairs // width - 1, pairs % width - 1
    union = gt.n_voxels[gt_index] + pred.n_voxels[pred_index] - n_shared
    return Overlaps(gt_index, pred_index, n_shared.astype(np.int64), n_shared / union)


def match_one_to_one(overlaps: Overlaps, *, min_iou: float) -> Overlaps:
    """The one-to-one assignment with the greatest total IoU among the pairs with IoU >= min_iou.

    The bound is inclusive, with a tolerance of 1e-9. Pairs that share a lesion or a prediction form blocks, and each
    block is solved by itself with `scipy.optimize.linear_sum_assignment`. Of assignments with equal totals, one with
    the most matches is taken.

    Returns:
        The matched pairs, sorted by label lesion.
    """
    allowed = overlaps.select(overlaps.iou >= min_iou - IOU_TOLERANCE)
    if len(allowed.gt) == 0:
        return allowed
    n_gt, n_pred = allowed.gt.max() + 1, allowed.pred.max() + 1
    alone = (np.bincount(allowed.gt)[allowed.gt] == 1) & (np.bincount(allowed.pred)[allowed.pred] == 1)
    keep = alone.copy()
    contested = np.flatnonzero(~alone)
    if len(contested):
        graph = sparse.coo_matrix(
            (np.ones(len(contested)), (allowed.gt[contested], n_gt + allowed.pred[contested])),
            shape=(n_gt + n_pred,) * 2,
        )
        block = csgraph.connected_components(graph, directed=False)[1][allowed.gt[contested]]
        order = np.argsort(block, kind="stable")
        edges = np.flatnonzero(np.diff(block[order])) + 1
        for members in np.split(contested[order], edges):
            keep[members[_solve_block(allowed.gt[members], allowed.pred[members], allowed.iou[members])]] = True
    return allowed.select(keep)


def _solve_block(gt: np.ndarray, pred: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """The indices of the pairs in the assignment of greatest total IoU within one block."""
    rows, row = np.unique(gt, return_inverse=True)
    columns, column = np.unique(pred, return_inverse=True)
    gain = np.zeros((len(rows), len(columns)))
    gain[row, column] = iou + _PER_MATCH
    pair = np.full(gain.shape, -1, np.int64)
    pair[row, column] = np.arange(len(iou))
    chosen = pair[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]  # a forbidden pair gains 0: to be assigned to it is to stay unmatched


def common_order(first: np.ndarray, second: np.ndarray) -> Literal["C", "F"]:
    """The memory layout that two arrays share; C where they share none."""
    return "F" if first.flags.f_contiguous and second.flags.f_contiguous else "C"


def _flat_together(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays flattened in the same voxel order, without a copy where their memory layouts agree."""
    order = common_order(first, second)
    return first.ravel(order=order), second.ravel(order=order)


def highest_inside(components: Components, values: np.ndarray) -> np.ndarray:
    """The greatest value of a float array [x, y, z] inside each component: float64 [n]."""
    labels, flat = _flat_together(components.labels, values)
    inside = np.flatnonzero(labels != 0)
    highest = np.full(len(components), -np.inf)
    np.maximum.at(highest, labels[inside].astype(np.int64) - 1, flat[inside])
    return highest


def components_with(components: Components, voxels: np.ndarray) -> np.ndarray:
    """Whether each component holds at least one of the true voxels of a boolean array [x, y, z]: bool [n]."""
    holds = np.zeros(len(components) + 1, bool)
    if len(components):
        labels, flat = _flat_together(components.labels, voxels)
        for start in range(0, len(labels), _BLOCK):
            block = slice(start, start + _BLOCK)
            holds[labels[block][flat[block]]] = True
    return holds[1:]


def bin_names(edges_mm3: Sequence[float]) -> list[str]:
    """The names of the size bins, smallest first: edges (10, 50) give `<=10`, `10-50`, `>50`."""
    texts = [f"{edge:g}" for edge in edges_mm3]
    between = [f"{low}-{high}" for low, high in itertools.pairwise(texts)]
    return [f"<={texts[0]}", *between, f">{texts[-1]}"]


def size_bins(volume_mm3: np.ndarray, edges_mm3: Sequence[float]) -> np.ndarray:
    """The index of each volume's bin: int64, same shape. Upper edges are inside, with relative tolerance 1e-6."""
    upper = np.asarray(edges_mm3, np.float64) * (1 + VOLUME_TOLERANCE)
    return np.searchsorted(upper, volume_mm3, side="left").astype(np.int64)


def at_most(volume_mm3: np.ndarray, limit_mm3: float) -> np.ndarray:
    """Whether each volume is at most the limit, with relative tolerance 1e-6: bool, same shape."""
    return np.asarray(volume_mm3) <= limit_mm3 * (1 + VOLUME_TOLERANCE)


def below(volume_mm3: np.ndarray, limit_mm3: float) -> np.ndarray:
    """Whether each volume is smaller than the limit by more than the relative tolerance of 1e-6: bool, same shape."""
    return np.asarray(volume_mm3) < limit_mm3 * (1 - VOLUME_TOLERANCE)


def class_mask(mask: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Where an array of integers has one of the values: bool, same shape and memory layout."""
    inside = mask == values[0]
    for value in values[1:]:
        inside |= mask == value
    return inside


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box [x, y, z] that holds every voxel above 0 of a mask; None when there is none."""
    if mask.flags.c_contiguous and not mask.flags.f_contiguous:
        box = bounding_box(mask.T)  # the same looks, each along memory
        return None if box is None else box[::-1]
    plane = np.asarray(mask.any(axis=2))
    if not plane.any():
        return None
    sides = []
    for line in (plane.any(axis=1), plane.any(axis=0), mask.any(axis=(0, 1))):
        found = np.flatnonzero(line)
        sides.append(slice(int(found[0]), int(found[-1]) + 1))
    return sides[0], sides[1], sides[2]
