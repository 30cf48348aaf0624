"""What is summed over cases: every pooled figure is a ratio of these sums, and so is every mean over cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WAYS = ("any", "iou10")
MACRO = ("dice", "iou", "hd95_mm", "surface_dice_1mm", "recall", "precision", "f1", "small_lesion_recall", "fp")
SUMMED = (
    "n_gt",
    "n_pred",
    "n_small",
    "n_small_found",
    "n_split",
    "n_merge",
    "fp_touching",
    "n_ignored_gt",
    "n_ignored_pred",
    "n_removed_pred",
    "gt_mm3",
    "pred_mm3",
)


def case_counts(case: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The numbers of one case of cases.json that are summed; `names` are those of the size bins."""
    one = {name: float(case[name]) for name in SUMMED}
    one["shared_mm3"] = case["shared_voxels"] * case["voxel_mm3"]
    one["matched_iou"] = (case["mean_matched_iou"] or 0.0) * case["iou10"]["tp"]
    for way, keys in (("any", ("tp_gt", "fn", "tp_pred", "fp")), ("iou10", ("tp", "fp", "fn"))):
        one |= {f"{way}.{key}": float(case[way][key]) for key in keys}
        for name in names:
            one[f"{way}.{name}.hit"] = float(case["recall_by_bin"][way][name]["hit"])
            one[f"{way}.{name}.n"] = float(case["recall_by_bin"][way][name]["n"])
            one[f"{way}.{name}.fp"] = float(case["fp_by_bin"][way][name])
    for name in MACRO:
        value = case_value(case, name)
        one[f"{name}.sum"], one[f"{name}.defined"] = value or 0.0, float(value is not None)
    return one


def case_value(case: Mapping[str, Any], name: str) -> float | None:
    """A figure of `MACRO` in one case; None where it is undefined."""
    value = case["iou10"][name] if name in ("recall", "precision", "f1", "fp") else case[name]
    return None if value is None else float(value)


def rates(sums: Mapping[str, Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Every figure that has an interval, from sums of `case_counts` and the number of `scans`.

    Args:
        sums: Numbers, or float [samples] each for many samples at once.
        names: Of the size bins.

    Returns:
        float64 of the same shape; NaN where a sample does not define the figure. `any.X` is under any overlap,
        `iou10.BIN` and `any.BIN` are recalls of a size bin, `macro.X` are means over cases, all others are pooled.
    """
    hit, missed, false = sums["iou10.tp"], sums["iou10.fn"], sums["iou10.fp"]
    parts = {
        "recall": (hit, hit + missed),
        "precision": (hit, hit + false),
        "f1": (2 * hit, 2 * hit + false + missed),
        "fp_per_scan": (false, sums["scans"]),
        "small_lesion_recall": (sums["n_small_found"], sums["n_small"]),
        "mean_matched_iou": (sums["matched_iou"], hit),
        "dice": (2 * sums["shared_mm3"], sums["gt_mm3"] + sums["pred_mm3"]),
        "iou": (sums["shared_mm3"], sums["gt_mm3"] + sums["pred_mm3"] - sums["shared_mm3"]),
        "any.recall": (sums["any.tp_gt"], sums["any.tp_gt"] + sums["any.fn"]),
        "any.precision": (sums["any.tp_pred"], sums["any.tp_pred"] + sums["any.fp"]),
        "any.fp_per_scan": (sums["any.fp"], sums["scans"]),
    }
    parts |= {f"{way}.{name}": (sums[f"{way}.{name}.hit"], sums[f"{way}.{name}.n"]) for way in WAYS for name in names}
    parts |= {f"macro.{name}": (sums[f"{name}.sum"], sums[f"{name}.defined"]) for name in MACRO}
    return {
        name: np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)
        for name, (part, whole) in parts.items()
    }
