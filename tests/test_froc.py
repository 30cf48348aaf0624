"""FROC points counted by hand, and the rules of the operating point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data_helpers import make_test_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.errors import InputError
from segment.evaluation import froc
from segment.evaluation.froc import (
    THRESHOLDS,
    Point,
    candidate_points,
    choose_point,
    froc_summary,
    pool,
    recall_at_rates,
    sweep_case,
)
from segment.evaluation.metrics import evaluate_case
from segment.evaluation.summary import summarise
from segment.inference.tiles import to_mask

CONFIG = EvaluationConfig(bootstrap_draws=20)


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)


def sweep(label: np.ndarray, probability: np.ndarray, **options: Any) -> Any:
    options = {"voxel_mm3": 1.0, "config": CONFIG, "thresholds": (0.2, 0.5, 0.7)} | options
    return sweep_case(label > 0, probability, **options)


class TestSweep:
    def test_thresholds(self) -> None:
        assert len(THRESHOLDS) == 20
        assert THRESHOLDS[:3] == (0.05, 0.1, 0.15)
        assert THRESHOLDS[-2:] == (0.95, 0.99)

    def test_counts_at_each_threshold(self) -> None:
        label = row(1, 1, 0, 0, 1, 0, 0, 0)
        probability = row(0.9, 0.6, 0, 0, 0.3, 0, 0, 0.6)
        found = sweep(label, probability)
        # 0.2: both lesions and one false positive; 0.5: the first; 0.7: the first with an IoU of a half.
        assert found.tp[:, 0, 0].tolist() == [2, 1, 1]
        assert found.fp[:, 0, 0].tolist() == [1, 1, 0]
        assert (found.n_gt, found.n_small) == (2, 2)

    def test_the_threshold_itself_is_inside_in_float32(self) -> None:
        # float32(0.7) is a little below 0.7.
        assert sweep(row(1), row(0.7)).tp[:, 0, 0].tolist() == [1, 1, 1]

    def test_a_point_is_a_run_at_that_threshold(self) -> None:
        rng = np.random.default_rng(2)
        label = rng.random((12, 11, 10)) < 0.05
        probability = rng.random((12, 11, 10)).astype(np.float32) ** 3
        probability[label] = np.sqrt(probability[label])
        found = sweep_case(label, probability, voxel_mm3=3.0, config=CONFIG)
        grid = Grid(label.shape, np.diag([1.0, 1.0, 3.0, 1.0]))
        for index, threshold in enumerate(THRESHOLDS):
            case = evaluate_case("c", label, probability >= threshold, grid, config=CONFIG, distances=False).case
            assert (found.tp[index, 0, 0], found.fp[index, 0, 0]) == (case["iou10"]["tp"], case["iou10"]["fp"])
            assert found.small_tp[index, 0, 0] == case["n_small_found"]

    def test_minimum_volumes_remove_predictions(self) -> None:
        label = row(1, 1, 0, 1, 0, 0, 0, 0, 0)
        probability = row(0.9, 0.9, 0, 0.9, 0, 0.9, 0.9, 0.9, 0)
        found = sweep(label, probability, thresholds=(0.5,), min_volumes_mm3=(0.0, 2.0, 3.0))
        assert found.tp[..., 0].tolist() == [[2, 1, 0]]
        assert found.fp[..., 0].tolist() == [[1, 1, 1]]

    def test_ignored_lesions_are_not_counted(self) -> None:
        label, probability = row(1, 1, 0, 0, 1, 0, 0), row(0.9, 0.9, 0, 0.9, 0.9, 0, 0.9)
        found = sweep(label, probability, thresholds=(0.5,), config=EvaluationConfig(min_lesion_mm3=2.0))
        # The second prediction overlaps the ignored lesion only, the third is below the minimum size.
        assert (found.n_gt, found.tp.item(), found.fp.item()) == (1, 1, 0)

    def test_an_empty_label_can_only_add_false_positives(self) -> None:
        found = sweep(row(0, 0, 0), row(0.6, 0, 0.3))
        assert found.tp.sum() == 0
        assert found.fp[:, 0, 0].tolist() == [2, 1, 0]

    def test_nothing_above_the_lowest_threshold(self) -> None:
        found = sweep(row(0, 0), row(0.1, 0.0))
        assert found.fp.sum() == found.tp.sum() == found.n_gt == 0


# A lesion of 12 voxels whose edge is faint and whose middle is sure, and 13 voxels that are neither, and no lesion.
FAINT = row(*[1] * 12, 0, *[0] * 13), row(*[0.2] * 6, 0.9, *[0.2] * 5, 0, *[0.5] * 13)


class TestPeaks:
    def test_the_peak_tells_apart_what_no_threshold_or_volume_can(self) -> None:
        found = sweep(*FAINT, min_volumes_mm3=(0.0, 5.0, 12.5), min_peaks=(0.0, 0.6, 0.95))
        # Volumes along the rows, peaks along the columns. At 0.2 both stand whole, and the false one is the larger.
        assert found.tp[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
        assert found.fp[0].tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]
        # From 0.5 the lesion is one voxel of 12, too few for a match, and so is itself a false positive.
        assert not found.tp[1:].any()
        assert found.fp[1].tolist() == [[2, 1, 0], [1, 0, 0], [1, 0, 0]]
        assert found.small_tp.tolist() == found.tp.tolist()

    def test_the_peak_itself_is_reached_in_float32(self) -> None:
        found = sweep(row(1), row(0.7), min_peaks=(0.0, 0.7, 0.71))
        assert found.tp[0, 0].tolist() == [1, 1, 0]

    def test_nothing_is_matched_again_where_no_prediction_is_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        matched = []
        original = froc.match_one_to_one
        monkeypatch.setattr(
            froc, "match_one_to_one", lambda *given, **named: matched.append(1) or original(*given, **named)
        )
        found = sweep(row(1, 0, 1), row(0.9, 0, 0.6), thresholds=(0.5,), min_peaks=(0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.95))
        assert found.tp[0, 0].tolist() == [2, 2, 2, 2, 1, 1, 0]
        assert len(matched) == 3

    @given(st.integers(0, 2**32 - 1), st.sampled_from((0.05, 0.3, 0.7)), st.sampled_from((0.0, 5.0, 9.0)))
    @settings(max_examples=25, deadline=None)
    def test_a_point_is_what_the_prediction_writes(self, seed: int, threshold: float, least: float) -> None:
        rng = np.random.default_rng(seed)
        label = rng.random((9, 8, 7)) < 0.05
        # Steps of 0.05, so that thresholds and peaks are met exactly.
        probability = (np.round(20 * rng.random(label.shape) ** 4) / 20).astype(np.float32)
        peaks = (0.0, 0.3, 0.6, 0.7, 0.95)
        options = {"voxel_mm3": 3.0, "config": CONFIG}
        found = sweep_case(
            label, probability, thresholds=(threshold,), min_volumes_mm3=(least,), min_peaks=peaks, **options
        )
        grid = Grid(label.shape, np.diag([1.0, 1.0, 3.0, 1.0]))
        for place, peak in enumerate(peaks):
            mask = to_mask(
                probability[..., np.newaxis],
                make_test_plan(),
                threshold=threshold,
                min_lesion_mm3=least,
                voxel_mm3=3.0,
                min_peak=peak,
            )
            case = evaluate_case("c", label, mask, grid, config=CONFIG, distances=False).case
            assert (found.tp[0, 0, place], found.fp[0, 0, place]) == (case["iou10"]["tp"], case["iou10"]["fp"])
            assert found.small_tp[0, 0, place] == case["n_small_found"]


class TestPooling:
    def test_over_peaks_too(self) -> None:
        found = sweep(*FAINT, thresholds=(0.2,), min_peaks=(0.0, 0.6))
        points = pool([found, found], n_scans=2)
        assert [(point.min_peak, point.tp, point.fp_per_scan) for point in points] == [(0.0, 2, 1.0), (0.6, 2, 0.0)]

    def test_every_scan_counts_in_the_rate(self) -> None:
        sweeps = [sweep(row(1, 0, 0), row(0.6, 0, 0.3)), sweep(row(0, 0, 0), row(0, 0, 0.6))]
        points = pool(sweeps, n_scans=4)
        assert [point.threshold for point in points] == [0.7, 0.5, 0.2]
        assert [(point.tp, point.fp, point.recall, point.fp_per_scan) for point in points] == [
            (0, 0, 0.0, 0.0), (1, 1, 1.0, 0.25), (1, 2, 1.0, 0.5)
        ]  # fmt: skip

    def test_without_lesions_recall_is_undefined(self) -> None:
        points = pool([sweep(row(0), row(0.6))], n_scans=1)
        assert {point.recall for point in points} == {None}
        assert set(recall_at_rates(points).values()) == {None}
        assert froc_summary(points, n_lesions=0, n_scans=1)["mean_recall_over_fp_levels"] is None

    def test_the_summary_has_the_froc_where_every_case_was_swept(self) -> None:
        label, probability = row(1, 0, 0), row(0.6, 0, 0.3)
        grid = Grid((3, 1, 1), np.eye(4))
        options = {"config": CONFIG, "probability": probability, "distances": False}
        swept = [evaluate_case(name, label, label, grid, froc=True, **options) for name in "ab"]
        summary = summarise(swept, config=CONFIG, seed=0, inputs={})
        assert summary["froc"]["n_lesions"] == 2
        assert [point["fp"] for point in summary["froc"]["points"]][-1] == 2
        assert [point["threshold"] for point in summary["froc"]["points"]] == list(THRESHOLDS)[::-1]
        plain = evaluate_case("c", label, label, grid, **options)
        assert "froc" not in summarise([*swept, plain], config=CONFIG, seed=0, inputs={})

    def test_froc_needs_a_probability(self) -> None:
        with pytest.raises(ValueError, match="needs a probability"):
            evaluate_case("c", row(1), row(1), Grid((1, 1, 1), np.eye(4)), config=CONFIG, froc=True)


def point(threshold: float, recall: float | None, fp_per_scan: float, **more: Any) -> Point:
    values = {"min_lesion_mm3": 0.0, "tp": 0, "fp": round(fp_per_scan * 8), "small_lesion_recall": recall} | more
    return Point(threshold=threshold, recall=recall, fp_per_scan=fp_per_scan, **values)


class TestRecallAtRates:
    def test_no_interpolation_and_zero_below_every_point(self) -> None:
        points = [point(0.9, 0.4, 0.25), point(0.5, 0.8, 1.5), point(0.1, 0.7, 3.0)]
        assert recall_at_rates(points) == {
            "0.125": 0.0, "0.25": 0.4, "0.5": 0.4, "1": 0.4, "2": 0.8, "4": 0.8, "8": 0.8
        }  # fmt: skip


class TestOperatingPoint:
    def choose(self, *points: Point, **options: Any) -> Point | None:
        return choose_point(points, **({"rule": "small_lesion_recall", "max_fp_per_scan": 1.0} | options))

    def test_the_highest_recall_under_the_target(self) -> None:
        best = point(0.5, 0.7, 1.0)
        assert self.choose(point(0.9, 0.5, 0.1), best, point(0.3, 0.9, 1.125)) is best

    def test_ties_go_to_fewer_false_positives_then_to_the_higher_threshold_then_to_the_smaller_volume(self) -> None:
        fewer = point(0.4, 0.7, 0.5)
        assert self.choose(point(0.5, 0.7, 1.0), fewer) is fewer
        higher = point(0.5, 0.7, 0.5)
        assert self.choose(fewer, higher) is higher
        assert self.choose(point(0.5, 0.7, 0.5, min_lesion_mm3=3.0), higher) is higher
        assert self.choose(point(0.5, 0.7, 0.5, min_peak=0.6), higher) is higher
        peaked = point(0.5, 0.7, 0.5, min_peak=0.6)
        assert self.choose(point(0.5, 0.7, 0.5, min_lesion_mm3=3.0), peaked) is peaked

    def test_rule(self) -> None:
        small = point(0.5, 0.6, 0.5, small_lesion_recall=0.5)
        all_sizes = point(0.6, 0.7, 0.5, small_lesion_recall=0.4)
        assert self.choose(small, all_sizes) is small
        assert self.choose(small, all_sizes, rule="recall") is all_sizes

    def test_no_point_under_the_target(self) -> None:
        assert self.choose(point(0.5, 0.7, 2.0)) is None

    def test_without_small_lesions_there_is_no_such_choice(self) -> None:
        with pytest.raises(InputError, match="hold no small lesion; choose by recall instead"):
            self.choose(point(0.5, 0.7, 0.5, small_lesion_recall=None))
        with pytest.raises(InputError, match="hold no lesion; add cases with lesions"):
            self.choose(point(0.5, None, 0.5), rule="recall")


class TestCandidates:
    def test_a_second_candidate_on_a_lesion_is_a_false_positive(self) -> None:
        cases = {"a": {"n_gt": 1, "candidates": [{"score": 0.5, "gt": 0}, {"score": 0.9, "gt": 0}]}}
        assert [(found.threshold, found.tp, found.fp) for found in candidate_points(cases)] == [
            (0.9, 1, 0),
            (0.5, 1, 1),
        ]

    def test_a_lesion_that_does_not_exist(self) -> None:
        with pytest.raises(InputError, match="case a: expected a lesion from 0 to 0, found 1"):
            candidate_points({"a": {"n_gt": 1, "candidates": [{"score": 0.5, "gt": 1}]}})

    def test_no_cases(self) -> None:
        with pytest.raises(InputError, match="at least one case"):
            candidate_points({})
