"""Which validation was the best one: its figures, their order, and whether to wait for a better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segment.config import Config, TrainConfig
from segment.data.grid import Grid
from segment.evaluation.froc import Point, Sweep, pool, sweep_case

# Half as many as a report has: the choice between two models needs no finer ones, and each costs a labelling.
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_UNDEFINED = -1.0  # below every defined figure
_SLACK = 1e-9  # false positives of exactly the budget are within it


class BudgetSearch:
    """Recall at a budget of false positives a scan, over thresholds, counted case by case.

    Args:
        config: `inference` has the budget of the operating point, the configured threshold, which is tried too, and the
            least volume of a predicted lesion.
        n_scans: All cases that will be added, at least one.
    """

    def __init__(self, config: Config, *, n_scans: int) -> None:
        self._config = config
        self._n_scans = n_scans
        self._thresholds = tuple(sorted({*THRESHOLDS, config.inference.threshold}))
        self._counts: list[Sweep] = []

    def add(self, label: np.ndarray, probability: np.ndarray, grid: Grid) -> None:
        """Adds one class of a case.

        A threshold whose false positives so far are too many for all scans together is given up, and no further case is
        looked at there: no other case can take them back. The highest one is kept for its counts of label lesions.

        Args:
            label: Boolean [x, y, z].
            probability: float32 [x, y, z] in [0, 1].
            grid: Of both.
        """
        sweep = sweep_case(
            label,
            probability,
            voxel_mm3=grid.voxel_mm3,
            config=self._config.evaluation,
            thresholds=self._thresholds,
            min_volumes_mm3=(self._config.inference.min_lesion_mm3,),
        )
        self._counts.append(sweep)
        within = sorted(point.threshold for point in self._points())
        self._thresholds = tuple(within) or self._thresholds[-1:]
        self._counts = [_at(one, self._thresholds) for one in self._counts]

    def figures(self) -> dict[str, float | None]:
        """`small_lesion_recall_at_fp` and `recall_at_fp`: the highest at any threshold within the budget.

        0 where no threshold is within it; None where the cases have no such lesion. At least one case was added.
        """
        n_small, n_lesions = (sum(getattr(one, name) for one in self._counts) for name in ("n_small", "n_gt"))
        points = self._points()
        return {
            "small_lesion_recall_at_fp": _highest(points, "small_lesion_recall") if n_small else None,
            "recall_at_fp": _highest(points, "recall") if n_lesions else None,
        }

    def _points(self) -> list[Point]:
        """Those within the budget."""
        budget = self._config.inference.operating_point.max_fp_per_scan + _SLACK
        return [point for point in pool(self._counts, n_scans=self._n_scans) if point.fp_per_scan <= budget]


def _at(counts: Sweep, thresholds: tuple[float, ...]) -> Sweep:
    rows = [counts.thresholds.index(threshold) for threshold in thresholds]
    tables = {name: getattr(counts, name)[rows] for name in ("tp", "fp", "small_tp")}
    return replace(counts, thresholds=thresholds, **tables)


def _highest(points: Sequence[Point], recall: str) -> float:
    return max((getattr(point, recall) for point in points), default=0.0)


def headline_figures(summary: dict[str, Any]) -> dict[str, float]:
    """The figures of a summary that the log, the line on the terminal and the final table show; NaN where undefined.

    Those of `BudgetSearch` are among them where the summary holds them as "at_budget".
    """
    micro, macro = summary["micro"], summary["macro"]
    figures = {
        "lesion_f1": micro["iou10"]["f1"],
        "lesion_recall": micro["iou10"]["recall"],
        "lesion_precision": micro["iou10"]["precision"],
        "small_lesion_recall": micro["small_lesion_recall"],
        "fp_per_scan": micro["fp_per_scan"],
        "dice": macro["dice"]["mean"],
        "iou": macro["iou"]["mean"],
        **summary.get("at_budget", {}),
    }
    return {name: float("nan") if value is None else float(value) for name, value in figures.items()}


def in_words(value: float | None) -> str:
    """A figure with three decimals, or "undefined" for NaN and None."""
    return "undefined" if value is None or not np.isfinite(value) else f"{value:.3f}"


def selection_score(figures: dict[str, float], selection: str) -> tuple[float, ...]:
    """What decides which model is kept, the most important number first; the highest is the best.

    `small_lesion_recall_at_fp` is followed by the recall of all lesions at the same budget, which decides alone where
    the cases have no small ones, and by Dice, for few small lesions give many ties. The others are followed by Dice.
    An undefined figure counts as below every defined one. Without any lesion in the cases the model with the fewest
    false positives is the best, whatever the selection.

    Args:
        figures: Of `headline_figures`, always from the same cases.
        selection: As `train.selection`.
    """
    if not np.isfinite(figures["lesion_recall"]):
        return (-figures["fp_per_scan"],)
    second = ("recall_at_fp",) if selection == "small_lesion_recall_at_fp" else ()
    ranked = (figures[name] for name in (selection, *second, "dice"))
    return tuple(value if np.isfinite(value) else _UNDEFINED for value in ranked)


def selection_instead(figures: dict[str, float], config: Config) -> str | None:
    """What the model is kept by where the cases do not allow `train.selection`, as a sentence; else None."""
    if not np.isfinite(figures["lesion_recall"]):
        return "the validation cases hold no lesion: the model with the fewest false positives is kept"
    selection, budget = config.train.selection, config.inference.operating_point.max_fp_per_scan
    if selection == "small_lesion_recall_at_fp" and not np.isfinite(figures[selection]):
        return (
            f"the validation cases hold no lesion of at most the small size: the model is kept by the recall of all "
            f"lesions at {budget:g} false positives a scan"
        )
    return None


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint.

    Attributes:
        step: Steps done.
        validated: The step of the last validation, 0 before the first.
        best_step: The step of the best validation.
        best_score: Its `selection_score`; None before the first.
        waited: Validations since one was better than all before it.
        stopped: Whether so many that the training has ended early.
        recall: What the progress bar shows of the last validation; None where undefined.
        loss: Mean loss of the last row of metrics.csv.
        seconds: Time spent so far, over all sessions.
    """

    step: int = 0
    validated: int = 0
    best_step: int | None = None
    best_score: Sequence[float] | None = None
    waited: int = 0
    stopped: bool = False
    recall: float | None = None
    loss: float | None = None
    seconds: float = 0.0

    def judge(self, figures: dict[str, float], config: TrainConfig) -> bool:
        """Takes note of a validation at this step; returns whether its model is to be kept.

        Of equals the later model is kept, for it has seen more, but only a better one ends the waiting: with
        `train.patience` the training stops after so many validations without.
        """
        score = selection_score(figures, config.selection)
        before = None if self.best_score is None else tuple(self.best_score)
        better = before is None or score > before
        best = better or score == before
        if best:
            self.best_step, self.best_score = self.step, score
        self.waited = 0 if better else self.waited + 1
        self.stopped = config.patience is not None and self.waited >= config.patience
        shown = (figures[name] for name in ("small_lesion_recall", "lesion_recall"))
        self.recall = next((value for value in shown if np.isfinite(value)), None)
        self.validated = self.step
        return best
