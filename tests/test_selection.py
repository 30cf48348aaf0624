"""Which model is kept: the recall within a budget by hand, its ties and fallbacks, and when the waiting ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segment.config import Config, TrainConfig
from segment.data.grid import Grid
from segment.training import selection
from segment.training.selection import BudgetSearch, Progress, selection_instead, selection_score

SHAPE = (20, 12, 12)
GRID = Grid(SHAPE, np.eye(4))  # voxels of 1 mm3
FIGURES = {
    "small_lesion_recall_at_fp": 0.5,
    "recall_at_fp": 0.6,
    "lesion_recall": 0.7,
    "small_lesion_recall": 0.4,
    "lesion_f1": 0.3,
    "fp_per_scan": 2.0,
    "dice": 0.2,
    "iou": 0.1,
}


def configuration(*, budget: float = 1.0, selection: str = "small_lesion_recall_at_fp", **inference: Any) -> Config:
    return Config.model_validate(
        {
            "run_dir": Path("run"),
            "data": {"root": Path("data")},
            "train": {"selection": selection},
            "inference": {"operating_point": {"max_fp_per_scan": budget}, **inference},
        }
    )


def case(lesions: dict[int, float], false_positives: dict[int, float]) -> tuple[np.ndarray, np.ndarray, Grid]:
    """2x2x2 lesions at some x with the probability that the model gives them, and such false positives elsewhere."""
    label, probability = np.zeros(SHAPE, bool), np.zeros(SHAPE, np.float32)
    for x, value in lesions.items():
        label[x : x + 2, 1:3, 1:3] = True
        probability[x : x + 2, 1:3, 1:3] = value
    for x, value in false_positives.items():
        probability[x : x + 2, 8:10, 8:10] = value
    return label, probability, GRID


def found(config: Config, *cases: tuple[np.ndarray, np.ndarray, Grid]) -> tuple[float | None, float | None]:
    search = BudgetSearch(config, n_scans=len(cases))
    for label, probability, grid in cases:
        search.add(label, probability, grid)
    figures = search.figures()
    return figures["small_lesion_recall_at_fp"], figures["recall_at_fp"]


class TestBudgetSearch:
    def test_the_lowest_threshold_within_the_budget_counts(self) -> None:
        # Found at up to 0.85, 0.45, 0.25 and 0.07; false positives come in at 0.55, 0.35 and 0.15.
        one = case({1: 0.85, 5: 0.45, 9: 0.25, 13: 0.07}, {1: 0.55, 5: 0.35, 9: 0.15})
        assert found(configuration(budget=0), one) == (0.25, 0.25)
        assert found(configuration(budget=1), one) == (0.5, 0.5)
        assert found(configuration(budget=2), one) == (0.75, 0.75)
        assert found(configuration(budget=3), one) == (1.0, 1.0)

    def test_the_budget_is_of_all_scans_together(self) -> None:
        noisy = case({1: 0.45}, {1: 0.9, 5: 0.9})
        clean = case({1: 0.25}, {})
        for cases in ((noisy, clean), (clean, noisy)):
            assert found(configuration(budget=1), *cases) == (1.0, 1.0)
            assert found(configuration(budget=0.5), *cases) == (0.0, 0.0)  # within it at 0.95 only

    def test_a_threshold_that_is_given_up_changes_no_figure_and_costs_no_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        original = selection.sweep_case

        def sweep_case(*arguments: Any, **options: Any) -> Any:
            asked.append(options["thresholds"])
            return original(*arguments, **options)

        monkeypatch.setattr(selection, "sweep_case", sweep_case)
        many = case({1: 0.65}, {1: 0.35, 5: 0.35, 9: 0.35})
        few = case({1: 0.25, 5: 0.75}, {1: 0.35})
        assert found(configuration(budget=1), many, few) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
        assert asked == [selection.THRESHOLDS, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)]

    def test_a_model_that_is_never_within_the_budget_has_0(self) -> None:
        noise = case({1: 0.97}, {1: 0.99, 5: 0.99})
        assert found(configuration(budget=0.1), noise, case({1: 0.97}, {})) == (0.0, 0.0)

    def test_without_small_lesions_or_any(self) -> None:
        label, probability, _ = case({}, {})
        label[:8, :8, :8] = True  # 512 mm3
        probability[:8, :8, :8] = 0.8
        assert found(configuration(), (label, probability, GRID)) == (None, 1.0)
        assert found(configuration(), case({}, {1: 0.9})) == (None, None)

    def test_predictions_below_the_least_volume_are_no_false_positives(self) -> None:
        label, probability, _ = case({1: 0.45}, {})
        probability[10, 5, 5] = probability[15, 5, 5] = 0.9
        assert found(configuration(budget=0), (label, probability, GRID)) == (0.0, 0.0)
        assert found(configuration(budget=0, min_lesion_mm3=3), (label, probability, GRID)) == (1.0, 1.0)

    def test_the_configured_threshold_is_tried_too(self) -> None:
        one = case({1: 0.47}, {1: 0.43})
        assert found(configuration(budget=0), one) == (0.0, 0.0)
        assert found(configuration(budget=0, threshold=0.45), one) == (1.0, 1.0)


class TestScore:
    def test_order_of_the_figures(self) -> None:
        assert selection_score(FIGURES, "small_lesion_recall_at_fp") == (0.5, 0.6, 0.2)
        assert selection_score(FIGURES, "lesion_f1") == (0.3, 0.2)
        assert selection_score(FIGURES, "iou") == (0.1, 0.2)
        assert selection_score(FIGURES, "dice") == (0.2, 0.2)

    def test_without_small_lesions_all_lesions_decide(self) -> None:
        figures = FIGURES | {"small_lesion_recall_at_fp": math.nan}
        more = figures | {"recall_at_fp": 0.61, "dice": 0.0}
        assert selection_score(more, "small_lesion_recall_at_fp") > selection_score(
            figures, "small_lesion_recall_at_fp"
        )
        said = selection_instead(figures, configuration(budget=3))
        assert said is not None
        assert "recall of all lesions at 3 false positives a scan" in said
        assert selection_instead(figures, configuration(selection="dice")) is None

    @pytest.mark.parametrize("name", ["small_lesion_recall_at_fp", "iou", "dice", "lesion_f1"])
    def test_without_any_lesion_fewer_false_positives_are_better(self, name: str) -> None:
        undefined = dict.fromkeys(("small_lesion_recall_at_fp", "recall_at_fp", "lesion_recall"), math.nan)
        noisy = FIGURES | undefined | {"fp_per_scan": 3.0, "lesion_f1": 0.0, "dice": 0.0, "iou": 0.0}
        clean = FIGURES | undefined | {"fp_per_scan": 0.0, "lesion_f1": math.nan, "dice": math.nan, "iou": math.nan}
        assert selection_score(clean, name) > selection_score(noisy, name)
        assert "fewest false positives" in str(selection_instead(clean, configuration(selection=name)))

    def test_nothing_is_said_where_the_selection_holds(self) -> None:
        assert selection_instead(FIGURES, configuration()) is None


class TestJudge:
    def play(self, scores: list[float], **options: Any) -> tuple[Progress, list[bool], int]:
        """Validations every 10 steps with these Dice values until the end or the early stop."""
        progress, config, kept = Progress(), TrainConfig(selection="dice", **options), []
        for dice in scores:
            progress.step += 10
            kept.append(progress.judge(FIGURES | {"dice": dice}, config))
            if progress.stopped:
                break
        return progress, kept, len(kept)

    def test_of_equals_the_later_is_kept(self) -> None:
        progress, kept, _ = self.play([0.1, 0.3, 0.3, 0.2])
        assert kept == [True, True, True, False]
        assert (progress.best_step, progress.validated, progress.stopped) == (30, 40, False)

    def test_patience_counts_validations_without_a_better_one(self) -> None:
        # An equal one is kept, but it is no progress.
        progress, kept, count = self.play([0.1, 0.3, 0.3, 0.2, 0.9], patience=2)
        assert (count, kept[-1], progress.best_step, progress.stopped) == (4, False, 30, True)

    def test_a_better_one_starts_the_count_anew(self) -> None:
        progress, _, count = self.play([0.1, 0.0, 0.2, 0.0, 0.1, 0.1], patience=3)
        assert (count, progress.waited, progress.stopped) == (6, 3, True)
        assert progress.best_step == 30

    def test_recall_for_the_bar(self) -> None:
        progress = Progress()
        progress.judge(FIGURES, TrainConfig())
        assert progress.recall == 0.4
        progress.judge(FIGURES | {"small_lesion_recall": math.nan}, TrainConfig())
        assert progress.recall == 0.7
