"""The figures of one prediction that `accuracy.py` compares, as the evaluation of the package counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segment.config import EvaluationConfig
from segment.data.grid import Grid
from segment.evaluation.metrics import evaluate_case

# Up to where float32 probabilities end: a network that is sure of what is none has few false positives only there.
SURE = (0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999)
THRESHOLDS = (0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 20)), *SURE)


@dataclass(frozen=True)
class Scored:
    """One prediction of one patient.

    Attributes:
        threshold, least_mm3, least_peak: What the mask was made with.
        small: Small lesions found (`iou10`), and their number.
        any: Lesions that share a voxel with the prediction, and their number.
        found: Lesions found (`iou10`).
        fp, fp_any: False positives of both kinds.
        dice, iou: Of the masks; 0 where the prediction is empty.
        bins: Size bin -> lesions found (`iou10`), and their number.
    """

    threshold: float
    least_mm3: float
    small: tuple[int, int]
    any: tuple[int, int]
    found: int
    fp: int
    fp_any: int
    dice: float
    iou: float
    bins: dict[str, tuple[int, int]]
    least_peak: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Scored:
        """The inverse of `to_json`."""
        pairs = {name: (int(pair[0]), int(pair[1])) for name, pair in values["bins"].items()}
        return cls(**{**values, "small": tuple(values["small"]), "any": tuple(values["any"]), "bins": pairs})

    @property
    def small_recall(self) -> float | None:
        """Share of the small lesions; None where there are none."""
        return share_of(self.small)

    @property
    def any_recall(self) -> float | None:
        """Share of the lesions that are touched; None where there are none."""
        return share_of(self.any)


def share_of(pair: tuple[int, int]) -> float | None:
    """Hits among so many; None of none."""
    return pair[0] / pair[1] if pair[1] else None


def score_mask(
    label: np.ndarray, mask: np.ndarray, grid: Grid, *, threshold: float, least_mm3: float, least_peak: float = 0.0
) -> Scored:
    """Of a mask and its label, uint8 [x, y, z], 1 in the class."""
    case = evaluate_case("patient", label, mask, grid, config=EvaluationConfig(), distances=False).case
    bins = {name: (row["hit"], row["n"]) for name, row in case["recall_by_bin"]["iou10"].items()}
    return Scored(
        threshold=threshold,
        least_mm3=least_mm3,
        small=(case["n_small_found"], case["n_small"]),
        any=(case["any"]["tp_gt"], case["n_gt"]),
        found=case["iou10"]["tp"],
        fp=case["iou10"]["fp"],
        fp_any=case["any"]["fp"],
        dice=case["dice"] or 0.0,
        iou=case["iou"] or 0.0,
        bins=bins,
        least_peak=least_peak,
    )


def score_thresholds(label: np.ndarray, probability: np.ndarray, grid: Grid) -> list[Scored]:
    """Of probabilities, float [x, y, z], at each of THRESHOLDS."""
    return [
        score_mask(label, (probability >= threshold).astype(np.uint8), grid, threshold=threshold, least_mm3=0.0)
        for threshold in THRESHOLDS
    ]


def best_within(scored: Sequence[Scored], *, fp: int) -> Scored:
    """The highest small-lesion recall, then recall by overlap, then Dice, at no more false positives.

    Where every threshold has more, the one with the fewest.
    """
    limit = max(fp, min(one.fp for one in scored))
    allowed = [one for one in scored if one.fp <= limit]
    return max(allowed, key=lambda one: (one.small_recall or 0.0, one.any_recall or 0.0, one.dice))
