"""FROC: recall against false positives per scan over thresholds, and the choice of an operating point on it.

A point is exactly what a model run there does: the probability is binarised at >= threshold, components that are too
small or whose highest probability is too low are removed, the others are matched one-to-one, and counts are pooled over
all cases, the lesion-free ones included. The peak beside the threshold is hysteresis thresholding (Canny, 1986): the
threshold says how far a lesion reaches, the peak whether it is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from segment.config import EvaluationConfig
from segment.errors import InputError
from segment.evaluation.lesions import (
    Components,
    Overlaps,
    at_most,
    below,
    common_order,
    find_components,
    find_overlaps,
    highest_inside,
    match_one_to_one,
)
from segment.evaluation.pairs import union_box

THRESHOLDS = (*(round(0.05 * step, 2) for step in range(1, 20)), 0.99)
FP_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per scan
_SLACK = 1e-9  # a rate of exactly the target counts as under it
Rule = Literal["small_lesion_recall", "recall"]


@dataclass(frozen=True, eq=False)
class Sweep:
    """One case and class over thresholds, and minimum volumes and peaks of predicted components.

    Attributes:
        thresholds: Rising probabilities.
        min_volumes_mm3: The least volume of a predicted component, rising; smaller ones are removed.
        min_peaks: The least highest probability of a predicted component, rising, in [0, 1); those that do not reach it
            are removed. Up to the threshold it removes none.
        n_gt, n_small: Label lesions that count, and small ones among them.
        tp, fp, small_tp: int64 [thresholds, volumes, peaks].
    """

    thresholds: tuple[float, ...]
    min_volumes_mm3: tuple[float, ...]
    min_peaks: tuple[float, ...]
    n_gt: int
    n_small: int
    tp: np.ndarray
    fp: np.ndarray
    small_tp: np.ndarray


@dataclass(frozen=True)
class Point:
    """What a model does at one threshold, minimum volume and peak, over all cases; rates are None where undefined."""

    threshold: float
    min_lesion_mm3: float
    tp: int
    fp: int
    recall: float | None
    fp_per_scan: float
    small_lesion_recall: float | None
    min_peak: float = 0.0


@dataclass(frozen=True, eq=False)
class _Truth:
    """The label lesions of a case: which are too small to count, and which of the others are small (bool [n])."""

    lesions: Components
    ignored: np.ndarray
    small: np.ndarray


def sweep_case(
    label: np.ndarray,
    probability: np.ndarray,
    *,
    voxel_mm3: float,
    config: EvaluationConfig,
    thresholds: Sequence[float] = THRESHOLDS,
    min_volumes_mm3: Sequence[float] = (0.0,),
    min_peaks: Sequence[float] = (0.0,),
) -> Sweep:
    """Counts hits and false positives of one case at every threshold, minimum volume and peak.

    Args:
        label: Boolean [x, y, z] of one class; may be empty.
        probability: Float [x, y, z] in [0, 1] of the same class.
        voxel_mm3: Volume of a voxel.
        config: Matching, the limit of small, and the minimum size, which holds for predictions at the least.
        thresholds: Rising, in (0, 1).
        min_volumes_mm3: Rising.
        min_peaks: Rising, in [0, 1).
    """
    box, _ = union_box(label, probability >= thresholds[0])
    order = common_order(label, probability)
    label, probability = (np.asarray(array[box], order=order) for array in (label, probability))
    truth = _truth(label, voxel_mm3, config)
    counts = np.zeros((3, len(thresholds), len(min_volumes_mm3), len(min_peaks)), np.int64)
    for row, threshold in enumerate(thresholds):
        pred = find_components(probability >= threshold)
        overlaps = find_overlaps(truth.lesions, pred)
        # In the precision in which voxels are compared: float32(0.7) reaches 0.7, the same value as float64 does not.
        highest = highest_inside(pred, probability).astype(probability.dtype) if min_peaks[-1] > threshold else None
        for column, least in enumerate(min_volumes_mm3):
            kept = ~below(pred.n_voxels * voxel_mm3, max(least, config.min_lesion_mm3))
            ways = [kept if highest is None else kept & (highest >= peak) for peak in min_peaks]
            counts[:, row, column] = _count_each(ways, overlaps, truth, config.match_iou)
    n_gt, n_small = int((~truth.ignored).sum()), int(truth.small.sum())
    return Sweep(tuple(thresholds), tuple(min_volumes_mm3), tuple(min_peaks), n_gt, n_small, *counts)


def _truth(label: np.ndarray, voxel_mm3: float, config: EvaluationConfig) -> _Truth:
    lesions = find_components(label)
    volumes = lesions.n_voxels * voxel_mm3
    ignored = below(volumes, config.min_lesion_mm3)
    return _Truth(lesions, ignored, at_most(volumes, config.small_mm3) & ~ignored)


def _count_each(ways: Sequence[np.ndarray], overlaps: Overlaps, truth: _Truth, match_iou: float) -> np.ndarray:
    """Hits, false positives and small hits for each set of predictions (bool [pred]), each within the one before.

    Returns:
        int64 [3, ways]. Where a set has lost none, as at a peak up to the threshold, nothing is matched again.
    """
    counts = np.zeros((3, len(ways)), np.int64)
    n_before = -1
    for place, kept in enumerate(ways):
        n_kept = int(kept.sum())
        if n_kept == n_before:
            counts[:, place] = counts[:, place - 1]
        else:
            counts[:, place] = _count(kept, n_kept, overlaps, truth, match_iou)
        n_before = n_kept
    return counts


def _count(kept: np.ndarray, n_kept: int, overlaps: Overlaps, truth: _Truth, match_iou: float) -> tuple[int, int, int]:
    left = overlaps.select(kept[overlaps.pred])
    counted = left.select(~truth.ignored[left.gt])
    matches = match_one_to_one(counted, min_iou=match_iou)
    n_ignored = len(np.setdiff1d(left.pred, counted.pred))
    n_hit = len(matches.gt)
    return n_hit, n_kept - n_hit - n_ignored, int(truth.small[matches.gt].sum())


def pool(sweeps: Sequence[Sweep], *, n_scans: int) -> list[Point]:
    """The points of all cases together, highest threshold first, then smallest minimum volume, then smallest peak.

    Args:
        sweeps: One for each case and class, over the same thresholds, volumes and peaks; at least one.
        n_scans: All scans, the lesion-free ones included.
    """
    tp, fp, small_tp = (np.sum([getattr(sweep, name) for sweep in sweeps], axis=0) for name in ("tp", "fp", "small_tp"))
    n_gt, n_small = sum(sweep.n_gt for sweep in sweeps), sum(sweep.n_small for sweep in sweeps)
    return [
        Point(
            threshold=threshold,
            min_lesion_mm3=least,
            tp=int(tp[row, column, place]),
            fp=int(fp[row, column, place]),
            recall=int(tp[row, column, place]) / n_gt if n_gt else None,
            fp_per_scan=int(fp[row, column, place]) / n_scans,
            small_lesion_recall=int(small_tp[row, column, place]) / n_small if n_small else None,
            min_peak=peak,
        )
        for row, threshold in reversed(list(enumerate(sweeps[0].thresholds)))
        for column, least in enumerate(sweeps[0].min_volumes_mm3)
        for place, peak in enumerate(sweeps[0].min_peaks)
    ]


def candidate_points(cases: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """The points of candidate lists, one for each score that occurs, highest first; candidates with that score are in.

    Args:
        cases: By name, `n_gt` lesions and `candidates`, each with its `score` and `gt`, the index of the lesion that it
            hits or None. Of several that hit one lesion the first by score is its match and the others are false
            positives, as matching is one-to-one.

    Raises:
        InputError: There is no case, or a candidate names a lesion that its case does not have.
    """
    if not cases:
        raise InputError("expected at least one case with candidates, found none")
    n_gt = sum(case["n_gt"] for case in cases.values())
    scored: list[tuple[float, bool]] = []
    for name, case in cases.items():
        found: set[int] = set()
        for candidate in sorted(case["candidates"], key=lambda candidate: -candidate["score"]):
            lesion = candidate["gt"]
            if lesion is not None and not 0 <= lesion < case["n_gt"]:
                raise InputError(f"case {name}: expected a lesion from 0 to {case['n_gt'] - 1}, found {lesion}")
            scored.append((candidate["score"], lesion is not None and lesion not in found))
            found |= {lesion} - {None}
    points = []
    for threshold in sorted({score for score, _ in scored}, reverse=True):
        hits = [hit for score, hit in scored if score >= threshold]
        tp, fp = sum(hits), len(hits) - sum(hits)
        points.append(Point(threshold, 0.0, tp, fp, tp / n_gt if n_gt else None, fp / len(cases), None))
    return points


def recall_at_rates(points: Sequence[Point], rates: Sequence[float] = FP_RATES) -> dict[str, float | None]:
    """For each rate the highest recall among the points at or under it: no interpolation, 0 where there is none.

    Keys are the rates as short text ("0.125", "1"). None without any lesion.
    """
    recalls: dict[str, float | None] = {}
    for rate in rates:
        within = [point.recall for point in points if point.fp_per_scan <= rate + _SLACK]
        known = [recall for recall in within if recall is not None]
        undefined = any(point.recall is None for point in points)
        recalls[f"{rate:g}"] = None if undefined else max(known, default=0.0)
    return recalls


def froc_summary(points: Sequence[Point], *, n_lesions: int, n_scans: int) -> dict[str, Any]:
    """The FROC part of summary.json: every point, recall at the fixed rates, and their mean."""
    recalls = recall_at_rates(points)
    defined = [recall for recall in recalls.values() if recall is not None]
    return {
        "n_lesions": n_lesions,
        "n_scans": n_scans,
        "points": [
            {
                "threshold": point.threshold,
                "tp": point.tp,
                "fp": point.fp,
                "recall": point.recall,
                "fp_per_scan": point.fp_per_scan,
                "small_lesion_recall": point.small_lesion_recall,
            }
            for point in points
        ],
        "recall_at_fp_per_scan": recalls,
        "mean_recall_over_fp_levels": sum(defined) / len(defined) if defined else None,
    }


def choose_point(points: Sequence[Point], *, rule: Rule, max_fp_per_scan: float) -> Point | None:
    """The operating point: the highest recall by `rule` among points with at most the target false positives per scan.

    Ties go to fewer false positives, then to the higher threshold, then to the smaller minimum volume, then to the
    smaller peak.

    Args:
        points: From validation cases only; all thresholds, minimum volumes and peaks.
        rule: Which recall is maximised.
        max_fp_per_scan: The target.

    Returns:
        None when no point has so few false positives.

    Raises:
        InputError: The recall is undefined: the cases hold no (small) lesion.
    """
    if any(getattr(point, rule) is None for point in points):
        advice = "choose by recall instead, or add cases" if rule == "small_lesion_recall" else "add cases with lesions"
        kind = "small lesion" if rule == "small_lesion_recall" else "lesion"
        raise InputError(f"the operating point cannot be chosen by {rule}: the cases hold no {kind}; {advice}")
    allowed = [point for point in points if point.fp_per_scan <= max_fp_per_scan + _SLACK]
    return min(
        allowed,
        key=lambda point: (-getattr(point, rule), point.fp, -point.threshold, point.min_lesion_mm3, point.min_peak),
        default=None,
    )
