"""The figures of one case and class: an object of cases.json and its rows of lesions.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.errors import InputError
from segment.evaluation.distances import hd95_mm, surface_dice
from segment.evaluation.froc import Sweep, sweep_case
from segment.evaluation.lesions import at_most, bin_names, class_mask, size_bins
from segment.evaluation.pairs import LesionPair, pair_lesions
from segment.evaluation.rows import lesion_rows

SURFACE_TOLERANCE_MM = 1.0
MANY_COMPONENTS = 10_000


@dataclass(frozen=True)
class CaseResult:
    """One case and class.

    Attributes:
        case: The object of cases.json, plain values only.
        lesions: The rows of lesions.csv, label lesions first, each by lesion_id.
        notes: What a reader should know, for example that there are very many components.
        sweep: The counts over thresholds, where they were asked for.
    """

    case: dict[str, Any]
    lesions: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    sweep: Sweep | None = None


def evaluate_case(
    case_id: str,
    label: np.ndarray,
    prediction: np.ndarray,
    grid: Grid,
    *,
    config: EvaluationConfig,
    value: int = 1,
    class_name: str = "lesion",
    probability: np.ndarray | None = None,
    distances: bool = True,
    froc: bool = False,
) -> CaseResult:
    """Compares one prediction with its label, for one class.

    Args:
        case_id: The name in all tables.
        label: Integers [x, y, z] or [x, y]; empty masks are fine.
        prediction: Integers of the same shape.
        grid: The grid of both; its shape is theirs, with a 1 at the end for [x, y].
        config: Size bins, minimum size and matching.
        value: The label value of the class, in both masks.
        class_name: The name of the class in all tables.
        probability: Float [x, y, z] in [0, 1] of this class, for the greatest one inside each lesion.
        distances: False leaves out HD95 and surface Dice, the slow part.
        froc: True adds the counts at every threshold, from the probability.

    Raises:
        InputError: A shape differs from the grid's.
        ValueError: `froc` without a probability.
    """
    result, _ = measure(
        case_id,
        label,
        prediction,
        grid,
        config=config,
        values=(value,),
        class_name=class_name,
        probability=probability,
        distances=distances,
        froc=froc,
    )
    return result


def measure(
    case_id: str,
    label: np.ndarray,
    prediction: np.ndarray,
    grid: Grid,
    *,
    config: EvaluationConfig,
    values: Sequence[int],
    class_name: str,
    probability: np.ndarray | None,
    distances: bool,
    froc: bool,
) -> tuple[CaseResult, LesionPair]:
    """As `evaluate_case`, for a class that may have several values; gives the paired lesions too."""
    label = _volume(label, grid, case_id, "the label")
    prediction = _volume(prediction, grid, case_id, "the prediction")
    if froc and probability is None:
        raise ValueError(f"case {case_id}: froc needs a probability")
    if probability is not None:
        probability = _volume(probability, grid, case_id, "the probability")
    pair = pair_lesions(
        label,
        prediction,
        values=values,
        voxel_mm3=grid.voxel_mm3,
        min_lesion_mm3=config.min_lesion_mm3,
        match_iou=config.match_iou,
    )
    case = _basic_figures(case_id, class_name, pair, grid)
    case |= _mask_figures(case, pair, grid, distances)
    case |= _lesion_figures(pair, grid.voxel_mm3, config)
    rows = lesion_rows(case_id, class_name, pair, grid, config=config, probability=probability)
    sweep = None
    if froc and probability is not None:
        gt_mask = class_mask(label, values)
        sweep = sweep_case(gt_mask, probability, voxel_mm3=grid.voxel_mm3, config=config)
    return CaseResult(case, rows, _notes(pair), sweep), pair


def _basic_figures(case_id: str, class_name: str, pair: LesionPair, grid: Grid) -> dict[str, Any]:
    """Names, grid and volumes."""
    gt_voxels = int(pair.gt.n_voxels[~pair.gt_ignored].sum())
    pred_voxels = int(pair.pred.n_voxels[~pair.pred_ignored].sum())
    return {
        "case_id": case_id,
        "class": class_name,
        "status": status_of(gt_voxels, pred_voxels),
        "shape": [int(length) for length in grid.shape],
        "spacing_mm": [float(side) for side in grid.spacing_mm],
        "voxel_mm3": float(grid.voxel_mm3),
        "gt_voxels": gt_voxels,
        "pred_voxels": pred_voxels,
        "shared_voxels": int(pair.counted.n_shared.sum()),
        "gt_mm3": gt_voxels * grid.voxel_mm3,
        "pred_mm3": pred_voxels * grid.voxel_mm3,
    }


def status_of(gt_voxels: int, pred_voxels: int) -> str:
    """ok, gt_empty, pred_empty or both_empty."""
    if gt_voxels and pred_voxels:
        return "ok"
    if pred_voxels:
        return "gt_empty"
    return "pred_empty" if gt_voxels else "both_empty"


def ratio(part: float, whole: float) -> float | None:
    """A share, or None where there is nothing to take a share of."""
    return part / whole if whole else None


def detection(tp: int, fp: int, fn: int) -> dict[str, Any]:
    """Counts with recall (None without lesions), precision (None without predictions) and F1 (None without either)."""
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "recall": ratio(tp, tp + fn),
        "precision": ratio(tp, tp + fp),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def _volume(array: np.ndarray, grid: Grid, case_id: str, name: str) -> np.ndarray:
    volume = array[..., None] if array.ndim == 2 else array
    if volume.shape != tuple(grid.shape):
        raise InputError(
            f"case {case_id}: expected {name} to have the grid's shape {tuple(grid.shape)}, found {array.shape}"
        )
    return volume


def _mask_figures(case: dict[str, Any], pair: LesionPair, grid: Grid, distances: bool) -> dict[str, Any]:
    """Dice, IoU, HD95 and surface Dice of the masks, and the reason of each that is undefined."""
    gt, pred, shared = case["gt_voxels"], case["pred_voxels"], case["shared_voxels"]
    figures: dict[str, Any] = {"dice": ratio(2 * shared, gt + pred), "iou": ratio(shared, gt + pred - shared)}
    reason = {
        "gt_empty": "the label is empty",
        "pred_empty": "the prediction is empty",
        "both_empty": "both masks are empty",
    }
    undefined = {}
    figures |= {"hd95_mm": None, "surface_dice_1mm": None}
    if distances and case["status"] == "ok":
        gt_mask, pred_mask, spacing_mm = _surfaces(pair, grid)
        figures["hd95_mm"] = hd95_mm(gt_mask, pred_mask, spacing_mm)
        figures["surface_dice_1mm"] = surface_dice(gt_mask, pred_mask, spacing_mm, tolerance_mm=SURFACE_TOLERANCE_MM)
    elif distances and case["status"] != "both_empty":
        figures["surface_dice_1mm"] = 0.0
    for name, figure in figures.items():
        if figure is None:
            skipped = not distances and name in ("hd95_mm", "surface_dice_1mm")
            undefined[name] = "not computed" if skipped else reason[case["status"]]
    return {**figures, "undefined": undefined}


def _surfaces(pair: LesionPair, grid: Grid) -> tuple[np.ndarray, np.ndarray, Sequence[float]]:
    """Both masks and the spacing, without the slice axis of a 2D image."""
    masks = pair.counted_mask("gt"), pair.counted_mask("pred")
    slice_axes = [axis for axis, length in enumerate(grid.shape) if length == 1]
    if len(slice_axes) != 1:
        return *masks, grid.spacing_mm
    gt_mask, pred_mask = (mask.squeeze(slice_axes[0]) for mask in masks)
    return gt_mask, pred_mask, np.delete(grid.spacing_mm, slice_axes[0]).tolist()


def _lesion_figures(pair: LesionPair, voxel_mm3: float, config: EvaluationConfig) -> dict[str, Any]:
    """Counts by lesion: found in both ways, by size, split, merged and false."""
    lesion, prediction = ~pair.gt_ignored, ~pair.pred_ignored
    gt_any = (pair.gt_overlapping > 0)[lesion]
    gt_hit = pair.gt_matched()[lesion]
    pred_any = (pair.pred_overlapping > 0)[prediction]
    pred_hit = pair.pred_matched()[prediction]
    volumes = pair.gt.n_voxels[lesion] * voxel_mm3
    bins = size_bins(volumes, config.bin_edges_mm3)
    fp_bins = size_bins(pair.pred.n_voxels[prediction] * voxel_mm3, config.bin_edges_mm3)
    names = bin_names(config.bin_edges_mm3)
    small = at_most(volumes, config.small_mm3)
    tp = int(gt_hit.sum())
    return {
        "n_gt": int(lesion.sum()),
        "n_pred": int(prediction.sum()),
        "any": {
            "tp_gt": int(gt_any.sum()),
            "fn": int((~gt_any).sum()),
            "tp_pred": int(pred_any.sum()),
            "fp": int((~pred_any).sum()),
        },
        "iou10": detection(tp, int((~pred_hit).sum()), int((~gt_hit).sum())),
        "recall_by_bin": {"any": _recall_by_bin(gt_any, bins, names), "iou10": _recall_by_bin(gt_hit, bins, names)},
        "fp_by_bin": {
            "any": _count_by_bin(fp_bins[~pred_any], names),
            "iou10": _count_by_bin(fp_bins[~pred_hit], names),
        },
        "under_resolved": [
            name for name, edge in zip(names, config.bin_edges_mm3, strict=False) if is_under_resolved(edge, voxel_mm3)
        ],
        "n_split": int((pair.gt_overlapping[lesion] > 1).sum()),
        "n_merge": int((pair.pred_overlapping[prediction] > 1).sum()),
        "fp_touching": int((~pred_hit & pred_any).sum()),
        "small_lesion_recall": ratio(int(gt_hit[small].sum()), int(small.sum())),
        "n_small": int(small.sum()),
        "n_small_found": int(gt_hit[small].sum()),
        "mean_matched_iou": ratio(float(pair.matches.iou.sum()), tp),
        "n_ignored_gt": int(pair.gt_ignored.sum()),
        "n_ignored_pred": int(pair.pred_ignored.sum()),
        "n_removed_pred": pair.n_removed,
    }


def is_under_resolved(edge_mm3: float, voxel_mm3: float) -> bool:
    """Whether a bin's upper edge holds fewer than 4 voxels, so that hardly any lesion can fall into it."""
    return bool(edge_mm3 * (1 + 1e-6) < 4 * voxel_mm3)


def _recall_by_bin(hit: np.ndarray, bins: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    total = np.bincount(bins, minlength=len(names))
    found = np.bincount(bins[hit], minlength=len(names))
    return {
        name: {"hit": int(hits), "n": int(n), "recall": ratio(int(hits), int(n))}
        for name, hits, n in zip(names, found, total, strict=True)
    }


def _count_by_bin(bins: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return {name: int(n) for name, n in zip(names, np.bincount(bins, minlength=len(names)), strict=True)}


def _notes(pair: LesionPair) -> tuple[str, ...]:
    sides = (("label", len(pair.gt)), ("prediction", len(pair.pred)))
    return tuple(
        f"the {side} has {count:,} components, more than {MANY_COMPONENTS:,}: is it noise, or no mask at all?"
        for side, count in sides
        if count > MANY_COMPONENTS
    )
