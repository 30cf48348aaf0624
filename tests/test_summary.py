"""Pooling, averaging, intervals and the bytes of the files."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.errors import InputError
from segment.evaluation.bootstrap import interval, resampled_sums
from segment.evaluation.metrics import CaseResult, evaluate_case
from segment.evaluation.rows import COLUMNS
from segment.evaluation.summary import iou_histogram, summarise
from segment.evaluation.tables import csv_text, sorted_lesions, write_report

CONFIG = EvaluationConfig(bootstrap_draws=200)


def case(name: str, label: str, prediction: str, *, side_mm: float = 1.0, **options: Any) -> CaseResult:
    """A case of one row of voxels; a dot is background and a digit a label value."""
    masks = [np.array([[int(c) if c != "." else 0 for c in text]], np.uint8) for text in (label, prediction)]
    grid = Grid((1, len(label), 1), np.diag([1, side_mm, 1, 1.0]))
    return evaluate_case(name, *masks, grid, config=CONFIG, **options)


def summary(*results: CaseResult, config: EvaluationConfig = CONFIG, seed: int = 0) -> dict[str, Any]:
    return summarise(results, config=config, seed=seed, inputs={})


FOUND = case("a", "11..1....", "11......1")  # 1 of 2 lesions, 1 false positive
MISSED = case("b", "1........", ".........")
FREE = case("c", ".........", "1.1.1....")
CLEAN = case("d", ".........", ".........")
LARGE = case("e", "11..1....", "11..1....", side_mm=60.0)  # 120 and 60 mm3


class TestMicro:
    def test_lesions_are_pooled(self) -> None:
        micro = summary(FOUND, MISSED, FREE, CLEAN, LARGE)["micro"]
        assert (micro["n_scans"], micro["n_gt"], micro["n_pred"]) == (5, 5, 7)
        assert micro["iou10"] == {"tp": 3, "fp": 4, "fn": 2, "recall": 3 / 5, "precision": 3 / 7, "f1": 6 / 12}
        assert micro["any"] == {
            "tp_gt": 3, "fn": 2, "tp_pred": 3, "fp": 4, "recall": 3 / 5, "precision": 3 / 7, "fp_per_scan": 4 / 5
        }  # fmt: skip
        assert micro["fp_per_scan"] == 4 / 5
        assert (micro["small_lesion_recall"], micro["n_small"], micro["n_small_found"]) == (1 / 3, 3, 1)
        assert {name: (entry["hit"], entry["n"]) for name, entry in micro["recall_by_bin"]["iou10"].items()} == {
            "<=10": (1, 3), "10-50": (0, 0), "50-200": (2, 2), ">200": (0, 0)
        }  # fmt: skip
        assert micro["recall_by_bin"]["iou10"]["10-50"]["recall"] is None
        assert micro["fp_by_bin"]["iou10"] == {"<=10": 4, "10-50": 0, "50-200": 0, ">200": 0}
        assert micro["mean_matched_iou"] == 1.0

    def test_masks_are_pooled_by_volume(self) -> None:
        micro = summary(FOUND, LARGE)["micro"]
        # Shared 2 + 180 mm3, label 3 + 180, prediction 3 + 180.
        assert micro["dice"] == pytest.approx(2 * 182 / 366)
        assert micro["iou"] == pytest.approx(182 / 184)

    def test_figures_without_anything_to_count_are_null(self) -> None:
        micro = summary(CLEAN)["micro"]
        assert micro["small_lesion_recall"] is micro["dice"] is micro["mean_matched_iou"] is None
        assert micro["iou10"]["recall"] is micro["iou10"]["precision"] is micro["iou10"]["f1"] is None
        assert micro["fp_per_scan"] == 0.0


class TestMacro:
    def test_means_are_over_the_cases_that_define_a_figure(self) -> None:
        macro = summary(FOUND, MISSED, FREE, CLEAN)["macro"]
        # Dice: 2 * 2 / (3 + 3), 0, 0 and undefined.
        assert macro["dice"]["mean"] == pytest.approx(2 / 9)
        assert (macro["dice"]["median"], macro["dice"]["n"], macro["dice"]["n_undefined"]) == (0.0, 3, 1)
        assert (macro["recall"]["mean"], macro["recall"]["n"], macro["recall"]["n_undefined"]) == (0.25, 2, 2)
        assert (macro["hd95_mm"]["n"], macro["hd95_mm"]["n_undefined"]) == (1, 3)
        assert (macro["fp"]["mean"], macro["fp"]["n"]) == (1.0, 4)

    def test_nowhere_defined(self) -> None:
        assert summary(CLEAN)["macro"]["dice"] == {
            "mean": None, "median": None, "n": 0, "n_undefined": 1, "interval": None
        }  # fmt: skip


class TestWhole:
    def test_cases_by_status(self) -> None:
        found = summary(FOUND, MISSED, FREE, CLEAN)
        assert found["status"] == {"ok": 1, "gt_empty": 1, "pred_empty": 1, "both_empty": 1}
        assert found["n_cases"] == 4

    def test_histogram(self) -> None:
        # IoUs of a third, exactly 0.1 (twice: rounding must not move it) and 1, and two misses.
        tenth = case("t", "111111....", ".....11111")
        histogram = iou_histogram([case("s", "11....", ".11..."), tenth, tenth, LARGE, MISSED, FOUND])
        assert histogram["n"] == [2, 2, 0, 1, 0, 0, 0, 0, 0, 3]
        assert sum(histogram["n"]) == 8

    def test_under_resolved_bins_count_cases(self) -> None:
        assert summary(FOUND, LARGE)["under_resolved"] == {"<=10": 1, "10-50": 1, "50-200": 1}

    def test_what_the_figures_rest_on_is_stored(self) -> None:
        found = summarise(
            [FOUND], config=CONFIG, seed=3, inputs={"b": "1", "a": "0"}, operating_point={"threshold": 0.4}
        )
        assert found["bootstrap"] == {"draws": 200, "seed": 3, "level": 0.95, "unit": "case"}
        assert list(found["inputs"]) == ["a", "b"]
        assert found["operating_point"] == {"threshold": 0.4}
        assert found["config"]["match_iou"] == 0.1
        assert "0.1" in found["definitions"]["iou10"]
        assert {"segment", "python", "numpy", "connected-components-3d"} <= set(found["versions"])

    def test_the_order_of_the_cases_changes_nothing(self) -> None:
        assert summary(FOUND, FREE, MISSED) == summary(MISSED, FOUND, FREE)

    def test_classes_are_pooled_and_shown_apart(self) -> None:
        results = [
            case(name, "1.2..", prediction, value=value, class_name=class_name)
            for name, prediction in (("a", "1...."), ("b", "1.2.2"))
            for value, class_name in ((1, "core"), (2, "edge"))
        ]
        found = summary(*results)
        assert found["classes"] == ["core", "edge"]
        assert (found["n_cases"], found["micro"]["n_scans"], found["micro"]["n_gt"]) == (2, 2, 4)
        assert found["micro"]["iou10"]["recall"] == 3 / 4
        assert found["micro"]["fp_per_scan"] == 0.5
        assert found["by_class"]["core"]["micro"]["iou10"]["recall"] == 1.0
        assert found["by_class"]["edge"]["micro"]["iou10"]["recall"] == 0.5

    def test_no_result(self) -> None:
        with pytest.raises(InputError, match="nothing to summarise"):
            summary()


class TestIntervals:
    def test_whole_cases_are_drawn(self) -> None:
        values = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
        sums = resampled_sums(values, draws=600, seed=1)
        assert sums.shape == (600, 2)
        assert np.array_equal(sums[:, 1], 10 * sums[:, 0])
        assert set(sums[:, 0]) <= {float(a + b + c) for a in (1, 2, 4) for b in (1, 2, 4) for c in (1, 2, 4)}
        assert sums[:, 0].mean() == pytest.approx(7.0, abs=0.3)
        assert np.array_equal(sums, resampled_sums(values, draws=600, seed=1))
        assert not np.array_equal(sums, resampled_sums(values, draws=600, seed=2))

    def test_the_middle_95_percent(self) -> None:
        assert interval(np.arange(1001.0)) == [25.0, 975.0]
        assert interval(np.array([np.nan, 3.0, np.nan])) == [3.0, 3.0]
        assert interval(np.array([np.nan])) is None

    def test_the_spread_of_a_mean_is_the_standard_error(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(400, 1))
        low, high = interval(resampled_sums(values, draws=2000, seed=0)[:, 0] / 400) or [math.nan, math.nan]
        assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)

    def test_every_headline_has_one(self) -> None:
        found = summary(FOUND, MISSED, FREE, LARGE)
        for name in ("recall", "precision", "f1", "small_lesion_recall", "fp_per_scan", "dice", "iou"):
            low, high = found["micro"]["intervals"][name]
            value = found["micro"]["iou10"][name] if name in ("recall", "precision", "f1") else found["micro"][name]
            assert low <= value <= high
        for entry in found["macro"].values():
            assert entry["interval"][0] <= entry["mean"] <= entry["interval"][1]

    def test_one_case_has_none(self) -> None:
        found = summary(FOUND)
        assert set(found["micro"]["intervals"].values()) == {None}
        assert found["macro"]["dice"]["interval"] is None

    def test_one_kind_of_case_has_no_width(self) -> None:
        twin = case("z", "11..1....", "11......1")
        assert summary(FOUND, twin)["micro"]["intervals"]["recall"] == [0.5, 0.5]


class TestFiles:
    def write(self, output: Path, *results: CaseResult) -> dict[str, Any]:
        return write_report(results, output, config=CONFIG, seed=0, inputs={}, scans=lambda case_id: None)

    def test_the_same_input_gives_the_same_bytes(self, tmp_path: Path) -> None:
        found = self.write(tmp_path / "one", FOUND, FREE, MISSED)
        self.write(tmp_path / "two", MISSED, FOUND, FREE)
        names = sorted(path.name for path in (tmp_path / "one").iterdir())
        assert names == ["cases.json", "lesions.csv", "report.html", "summary.json"]
        for name in names:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
        assert json.loads((tmp_path / "one" / "summary.json").read_text()) == json.loads(json.dumps(found))

    def test_cases_are_a_sorted_list(self, tmp_path: Path) -> None:
        self.write(tmp_path, MISSED, FOUND)
        cases = json.loads((tmp_path / "cases.json").read_text())
        assert [entry["case_id"] for entry in cases] == ["a", "b"]
        assert (cases[1]["hd95_mm"], cases[1]["undefined"]) == (None, {"hd95_mm": "the prediction is empty"})

    def test_lesions_are_rows_sorted_by_case_class_side_and_number(self) -> None:
        rows = list(csv.DictReader(io.StringIO(csv_text(COLUMNS, sorted_lesions([MISSED, FOUND])))))
        assert [(row["case_id"], row["side"], row["lesion_id"]) for row in rows] == [
            ("a", "gt", "1"), ("a", "gt", "2"), ("a", "pred", "1"), ("a", "pred", "2"), ("b", "gt", "1")
        ]  # fmt: skip
        assert tuple(rows[0]) == COLUMNS
        assert (rows[0]["bbox"], rows[0]["centroid_world_mm"], rows[0]["detected_iou10"]) == (
            "0 0 0 1 2 1",
            "0.0 0.5 0.0",
            "true",
        )
        assert (rows[1]["matched_id"], rows[1]["is_fp"], rows[1]["score_max"]) == ("", "", "")
        assert (rows[3]["is_fp"], rows[3]["fp_touching"]) == ("true", "false")
