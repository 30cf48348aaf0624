"""The choice of an operating point, its file and plot, and what a prediction makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from inference_helpers import quick_config
from operating_helpers import CASES, row, searched

from segment.config_inference import OperatingPointConfig
from segment.data.scan import Grid
from segment.evaluation.froc import THRESHOLDS, Point, candidate_points
from segment.inference.operating_point import FILE, PLOT, PointSearch, choose, describe
from segment.inference.operating_point import write_operating_point as write_point

OPTIONS = OperatingPointConfig()


def point(threshold: float, small: float | None, fp_per_scan: float, recall: float | None = None, **more: Any) -> Point:
    values = {"min_lesion_mm3": 0.0, "tp": round(8 * (recall or small or 0)), "fp": round(fp_per_scan * 8), **more}
    return Point(
        threshold=threshold,
        recall=small if recall is None else recall,
        fp_per_scan=fp_per_scan,
        small_lesion_recall=small,
        **values,
    )


class TestChoose:
    def test_the_rule_decides(self) -> None:
        best = point(0.5, 0.7, 1.0)
        found = choose([point(0.9, 0.5, 0.1), best, point(0.3, 0.9, 1.5)], OPTIONS, n_scans=8)
        assert (found.point, found.chosen_by, found.notes) == (best, "small_lesion_recall", ())

    def test_without_small_lesions_all_lesions_decide(self) -> None:
        best = point(0.5, None, 1.0, recall=0.7)
        found = choose([point(0.9, None, 0.1, recall=0.5), best], OPTIONS, n_scans=8)
        assert (found.point, found.chosen_by) == (best, "recall")
        assert "by the recall of all" in found.notes[0]

    def test_where_no_small_lesion_is_found_under_the_target_all_lesions_decide(self) -> None:
        best = point(0.5, 0.0, 1.0, recall=0.7)
        found = choose([point(0.9, 0.0, 0.1, recall=0.5), best, point(0.3, 0.9, 4)], OPTIONS, n_scans=8)
        assert found.point is best

    def test_where_nothing_is_found_under_the_target_the_nearest_point_is_taken_and_said(self) -> None:
        nearest = point(0.8, 0.2, 3.0)
        found = choose([point(0.9, 0.0, 0.5), nearest, point(0.3, 0.9, 9.0)], OPTIONS, n_scans=8)
        assert (found.point, found.chosen_by) == (nearest, "fewest_fp")
        assert "at most 1 false positives a scan finds a lesion: this is the nearest, with 3.00" in found.notes[0]

    def test_a_network_that_finds_nothing(self) -> None:
        found = choose([point(0.9, 0.0, 0.0), point(0.1, 0.0, 5.0)], OPTIONS, n_scans=8)
        assert found.point is None
        assert "no threshold finds a lesion" in found.notes[0]

    def test_why_all_lesions_decide(self) -> None:
        (note, _) = choose([point(0.5, None, 0.0, 0.7)], OPTIONS, n_scans=1).notes
        assert note == "the validation cases hold no small lesion: chosen by the recall of all"
        (note, _) = choose([point(0.5, 0.0, 0.0, 0.7)], OPTIONS, n_scans=1).notes
        assert note.startswith("no small lesion is found at up to")

    def test_no_lesions_at_all(self) -> None:
        found = choose([point(0.9, None, 0.5)], OPTIONS, n_scans=8)
        assert found.point is None
        assert "hold no lesion" in found.notes[0]

    @pytest.mark.parametrize(("n_scans", "words"), [(1, "on 1 validation case:"), (4, "on 4 validation cases:")])
    def test_few_cases_are_said(self, n_scans: int, words: str) -> None:
        assert words in choose([point(0.5, 0.7, 0.0)], OPTIONS, n_scans=n_scans).notes[-1]

    @pytest.mark.parametrize("name", ["f1_all_detected", "f3_lesion_free_scan"])
    def test_the_shared_vectors(self, name: str) -> None:
        shared = os.environ.get("SEGMENT_SHARED")
        if not shared:
            pytest.skip("SEGMENT_SHARED is not set: the shared lesion vectors are not here")
        entry = json.loads((Path(shared) / "lesion_vectors" / "froc_vectors.json").read_text())[name]
        points = candidate_points(entry["cases"])
        found = choose(points, OperatingPointConfig(rule="recall"), n_scans=entry["expected"]["n_scans"]).point
        wanted = entry["expected"]["operating_point_at_1_fp_per_scan"]
        assert {key: getattr(found, key) for key in wanted} == pytest.approx(wanted)


class TestSearch:
    def test_threshold_and_minimum_volume_together(self) -> None:
        values = searched(CASES, operating_point={"max_fp_per_scan": 0.0})
        assert (values["threshold"], values["min_lesion_mm3"], values["chosen"]) == (0.3, 2.0, True)
        assert values["at_point"]["small_lesion_recall"] == 1.0
        assert values["at_configured"] == {
            "threshold": 0.5, "min_lesion_mm3": 0.0, "tp": 1, "fp": 0,
            "recall": 0.5, "fp_per_scan": 0.0, "small_lesion_recall": 0.5, "min_peak": 0.0,
        }  # fmt: skip
        assert values["cases"] == ["a", "b"]

    def test_a_target_that_allows_them_needs_no_minimum_volume_but_fewer_are_better(self) -> None:
        assert searched(CASES)["min_lesion_mm3"] == 2.0  # as many found, fewer false positives

    def test_the_configured_minimum_is_the_least(self) -> None:
        values = searched(CASES, min_lesion_mm3=2.5)
        assert values["counts"]["min_volumes_mm3"] == [2.5, 3.0, 5.0, 8.0, 12.0, 20.0]

    def test_what_the_evaluation_ignores_is_taken_out_of_the_masks(self) -> None:
        config = quick_config()
        ignoring = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"min_lesion_mm3": 2})})
        search = PointSearch(ignoring)
        for case_id, (label, probability) in CASES.items():
            search.add(case_id, label > 0, probability, Grid(label.shape, np.eye(4)))
        values = search.finish(model_sha256="m", inputs={})
        assert (values["min_lesion_mm3"], values["at_configured"]["min_lesion_mm3"]) == (2.0, 2.0)

    def test_a_configured_threshold_off_the_grid_is_tried_too(self) -> None:
        values = searched(CASES, threshold=0.33)
        assert 0.33 in values["counts"]["thresholds"]
        assert values["at_configured"]["threshold"] == 0.33

    def test_nothing_found_keeps_the_configuration(self) -> None:
        values = searched({"a": (row(1, 0, 0), row(0, 0, 0))}, threshold=0.4)
        assert (values["threshold"], values["chosen"]) == (0.4, False)
        assert values["calibration"]["temperature"] is None

    def test_the_report_gets_the_froc_at_its_own_thresholds(self) -> None:
        search = PointSearch(quick_config(threshold=0.33))
        label, probability = CASES["a"]
        sweep = search.add("a", label > 0, probability, Grid(label.shape, np.eye(4)))
        assert (sweep.thresholds, sweep.min_volumes_mm3, sweep.min_peaks) == (THRESHOLDS, (0.0,), (0.0,))
        assert sweep.tp.shape == sweep.fp.shape == sweep.small_tp.shape == (len(THRESHOLDS), 1, 1)
        assert sweep.fp[:, 0, 0].tolist() == [1] * 7 + [0] * 13  # up to 0.35

    def test_several_classes_are_pooled_over_scans(self) -> None:
        search = PointSearch(quick_config())
        for label, probability in CASES.values():
            search.add("one scan", label > 0, probability, Grid(label.shape, np.eye(4)))
        counts = search.finish(model_sha256="", inputs={})["counts"]
        assert (counts["n_scans"], counts["n_lesions"]) == (1, 2)


class TestFiles:
    def test_plot_and_values(self, tmp_path: Path) -> None:
        values = searched(CASES)
        write_point(tmp_path, values)
        assert json.loads((tmp_path / FILE).read_text()) == json.loads(json.dumps(values))
        picture = ElementTree.parse(tmp_path / PLOT).getroot()
        circles = [item for item in picture.iter() if item.tag.endswith("circle") and item.get("class") == "chosen"]
        assert len(circles) == 2  # recall of all and of small lesions
        assert "Threshold 0.3" in str(circles[0][0].text)

    def test_in_words(self) -> None:
        line, note = describe(searched(CASES))
        assert line == (
            "operating point: threshold 0.3, predictions from 2 mm3: small-lesion recall 1.00, "
            "0.00 false positives a scan on 2 validation cases"
        )
        assert note == "chosen on 2 validation cases: others may do worse"
