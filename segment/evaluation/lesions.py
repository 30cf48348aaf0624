"""Lesions as connected components, how two masks overlap lesion by lesion, and which lesion matches which prediction.

Arrays are [x, y, z]; a 2D image has one slice, where 26-connectivity is 8-connectivity.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cc3d
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
    raw, count = label_components(mask, connectivity=26)
    if count == 0:
        empty = np.zeros((0, 3), np.int64)
        return Components(np.zeros(mask.shape, np.uint16), np.zeros(0, np.int64), empty, empty, np.zeros((0, 3)))
    statistics = cc3d.statistics(raw)
    n_voxels = np.asarray(statistics["voxel_counts"][1:], np.int64)
    boxes = np.array([[(side.start, side.stop) for side in box] for box in statistics["bounding_boxes"][1:]], np.int64)
    centroid = np.asarray(statistics["centroids"][1:], np.float64)
    order = np.lexsort((*centroid.T[::-1], *boxes[:, ::-1, 0].T, -n_voxels))
    rank = np.zeros(count + 1, raw.dtype)
    rank[order + 1] = np.arange(1, count + 1)
    labels = look_up(rank, raw)
    return Components(labels, n_voxels[order], boxes[order, :, 0], boxes[order, :, 1], centroid[order])


def look_up(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`table[labels]` for a contiguous array, in its memory layout, without the index array of eight times its size."""
    values = np.full_like(labels, table[0], dtype=table.dtype)
    source, target = labels.ravel(order="K"), values.ravel(order="K")
    for start in range(0, len(source), _BLOCK):
        block = slice(start, start + _BLOCK)
        inside = np.flatnonzero(source[block])
        target[block][inside] = table[source[block][inside]]
    return values


def find_overlaps(gt: Components, pred: Components) -> Overlaps:
    """The overlap table of two labelled masks of one shape: every pair of components with at least one shared voxel."""
    gt_labels, pred_labels = _flat_together(gt.labels, pred.labels)
    shared = np.flatnonzero((gt_labels != 0) & (pred_labels != 0))
    width = len(pred) + 1
    codes = gt_labels[shared].astype(np.int64) * width + pred_labels[shared]
    pairs, n_shared = np.unique(codes, return_counts=True)
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
    inside = np.flatnonzero(labels)
    highest = np.full(len(components), -np.inf)
    np.maximum.at(highest, labels[inside].astype(np.int64) - 1, flat[inside])
    return highest


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
    plane = np.asarray(mask.any(axis=2))
    if not plane.any():
        return None
    sides = []
    for line in (plane.any(axis=1), plane.any(axis=0), mask.any(axis=(0, 1))):
        found = np.flatnonzero(line)
        sides.append(slice(int(found[0]), int(found[-1]) + 1))
    return sides[0], sides[1], sides[2]
