"""A label and a prediction, lesion by lesion: what counts, what overlaps, what matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segment.evaluation.lesions import (
    Components,
    Overlaps,
    below,
    bounding_box,
    class_mask,
    common_order,
    find_components,
    find_overlaps,
    look_up,
    match_one_to_one,
)


@dataclass(frozen=True, eq=False)
class LesionPair:
    """The lesions of one class in a label and a prediction, inside the bounding box of both.

    Components come largest first, so the ignored label lesions are the last ones.

    Attributes:
        origin: int64 [3], the voxel of the image where the box starts.
        gt, pred: The components inside the box; predicted ones below the minimum size are gone.
        gt_ignored: bool [gt], label lesions below the minimum size.
        pred_ignored: bool [pred], predictions that overlap ignored lesions only.
        overlaps: Every pair that shares voxels, ignored lesions included.
        counted: The overlaps with lesions that are not ignored.
        matches: The one-to-one assignment among `counted`.
        n_removed: How many predicted components were below the minimum size.
    """

    origin: np.ndarray
    gt: Components
    pred: Components
    gt_ignored: np.ndarray
    pred_ignored: np.ndarray
    overlaps: Overlaps
    counted: Overlaps
    matches: Overlaps
    n_removed: int

    @property
    def gt_overlapping(self) -> np.ndarray:
        """With how many predictions each label lesion shares voxels: int64 [gt]."""
        return np.bincount(self.overlaps.gt, minlength=len(self.gt))

    @property
    def pred_overlapping(self) -> np.ndarray:
        """With how many label lesions, ignored ones left out, each prediction shares voxels: int64 [pred]."""
        return np.bincount(self.counted.pred, minlength=len(self.pred))

    def gt_matched(self) -> np.ndarray:
        """Which label lesions have a match: bool [gt]."""
        return np.isin(np.arange(len(self.gt)), self.matches.gt)

    def pred_matched(self) -> np.ndarray:
        """Which predictions have a match: bool [pred]."""
        return np.isin(np.arange(len(self.pred)), self.matches.pred)

    def counted_mask(self, side: str) -> np.ndarray:
        """The boolean mask, inside the box, of the lesions of `gt` or `pred` that are not ignored."""
        components, ignored = (self.gt, self.gt_ignored) if side == "gt" else (self.pred, self.pred_ignored)
        if not ignored.any():
            return components.labels != 0
        return look_up(np.append(False, ~ignored), components.labels)


def pair_lesions(
    label: np.ndarray,
    prediction: np.ndarray,
    *,
    values: Sequence[int],
    voxel_mm3: float,
    min_lesion_mm3: float,
    match_iou: float,
) -> LesionPair:
    """Labels one class of both masks once, builds their overlap table and matches their lesions.

    Args:
        label, prediction: Integers [x, y, z] of one shape; either may be empty.
        values: The values of the class.
        voxel_mm3: Volume of a voxel.
        min_lesion_mm3: Smaller label lesions are ignored, smaller predicted ones removed; 0 keeps all.
        match_iou: The least IoU of a match, inclusive.
    """
    box, origin = union_box(label, prediction)
    order = common_order(label, prediction)
    gt, pred = (find_components(np.asarray(class_mask(mask[box], values), order=order)) for mask in (label, prediction))
    gt_ignored = below(gt.n_voxels * voxel_mm3, min_lesion_mm3)
    kept = int((~below(pred.n_voxels * voxel_mm3, min_lesion_mm3)).sum())
    n_removed = len(pred) - kept
    pred = largest(pred, kept)
    overlaps = find_overlaps(gt, pred)
    counted = overlaps.select(~gt_ignored[overlaps.gt])
    touching = np.bincount(overlaps.pred, minlength=kept)
    pred_ignored = (touching > 0) & (np.bincount(counted.pred, minlength=kept) == 0)
    matches = match_one_to_one(counted, min_iou=match_iou)
    return LesionPair(origin, gt, pred, gt_ignored, pred_ignored, overlaps, counted, matches, n_removed)


def union_box(first: np.ndarray, second: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """The smallest box that holds the voxels above 0 of both masks, and its first voxel (int64 [3]); empty if none."""
    boxes = [box for box in (bounding_box(first), bounding_box(second)) if box is not None]
    if not boxes:
        return (slice(0, 0),) * 3, np.zeros(3, np.int64)
    sides = tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in zip(*boxes, strict=True))
    return sides, np.array([side.start for side in sides], np.int64)


def largest(components: Components, count: int) -> Components:
    """The first `count` components; the others become background."""
    if count == len(components):
        return components
    labels = components.labels * (components.labels <= count)
    kept = slice(0, count)
    return Components(
        labels, components.n_voxels[kept], components.start[kept], components.stop[kept], components.centroid[kept]
    )
