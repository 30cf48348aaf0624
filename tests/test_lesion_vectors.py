"""The shared mask pairs and candidate lists, whose values at least two independent implementations agree on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from segment.config import EvaluationConfig
from segment.data.scan import read_mask
from segment.evaluation.froc import FP_RATES, candidate_points, choose_point, froc_summary, recall_at_rates
from segment.evaluation.metrics import CaseResult, evaluate_case

SHARED = os.environ.get("SEGMENT_SHARED")
pytestmark = pytest.mark.skipif(
    SHARED is None, reason="SEGMENT_SHARED is not set: the shared lesion vectors are not here"
)
CASES = ("v01_basic_iso", "v02_aniso", "v04_empty_gt", "v05_empty_pred", "v06_both_empty", "v07_split", "v10_tiny")
FROC = ("f1_all_detected", "f3_lesion_free_scan")
SAME = {"rel": 2e-5, "abs": 1e-12}


def vectors(name: str) -> dict[str, Any]:
    return json.loads((Path(str(SHARED)) / "lesion_vectors" / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return vectors("expected.json")["cases"]


def evaluated(case_id: str, expected: dict[str, Any]) -> CaseResult:
    folder = Path(str(SHARED)) / "lesion_vectors"
    label, grid = read_mask(folder / expected[case_id]["gt"])
    prediction, found = read_mask(folder / expected[case_id]["pred"])
    assert found.matches(grid)
    return evaluate_case(case_id, label, prediction, grid, config=EvaluationConfig())


def same(found: float | None, wanted: float | None) -> bool:
    return found is wanted if wanted is None or found is None else found == pytest.approx(wanted, **SAME)


def test_every_case_and_candidate_list_is_tested(expected: dict[str, Any]) -> None:
    assert sorted(expected) == sorted(CASES)
    assert sorted(vectors("froc_vectors.json")) == sorted(FROC)


@pytest.mark.parametrize("case_id", CASES)
class TestMaskPairs:
    def test_grid_and_counts(self, case_id: str, expected: dict[str, Any]) -> None:
        case, wanted = evaluated(case_id, expected).case, expected[case_id]
        assert case["shape"] == wanted["shape"]
        assert case["spacing_mm"] == pytest.approx(wanted["spacing_mm"], rel=1e-6)
        assert same(case["voxel_mm3"], wanted["voxel_volume_mm3"])
        for name in ("gt_voxels", "pred_voxels", "status", "n_gt", "n_pred", "n_split", "n_merge"):
            assert case[name] == wanted[name], name

    def test_overlap_of_the_masks(self, case_id: str, expected: dict[str, Any]) -> None:
        case, wanted = evaluated(case_id, expected).case, expected[case_id]["expected"]
        for name in ("dice", "iou", "hd95_mm", "surface_dice_1mm"):
            assert same(case[name], wanted[name]), (name, case[name], wanted[name])
            assert (case[name] is None) == (name in case["undefined"])

    def test_detection_both_ways(self, case_id: str, expected: dict[str, Any]) -> None:
        case, wanted = evaluated(case_id, expected).case, expected[case_id]["expected"]
        assert case["any"] == wanted["any_overlap"]
        assert {name: case["iou10"][name] for name in ("tp", "fp", "fn")} == wanted["iou_ge_0.1"]
        assert same(case["mean_matched_iou"], wanted["mean_iou_of_matches"])
        for way, name in (("any", "recall_by_bin_any"), ("iou10", "recall_by_bin_iou_ge_0.1")):
            for size, entry in wanted[name].items():
                found = case["recall_by_bin"][way][size]
                assert (found["hit"], found["n"]) == (entry["hit"], entry["n"])
                assert same(found["recall"], entry["recall"])

    def test_every_label_lesion(self, case_id: str, expected: dict[str, Any]) -> None:
        names = (
            "n_voxels",
            "volume_mm3",
            "size_bin",
            "detected_any",
            "best_iou",
            "n_overlapping",
            "detected_iou10",
            "matched_iou",
        )
        keys = ("voxels", "mm3", "bin", "detected_any", "best_iou", "n_overlapping_preds", "matched", "matched_iou")
        rows = [row for row in evaluated(case_id, expected).lesions if row["side"] == "gt"]
        found = sorted([row[name] for name in names] for row in rows)
        wanted = sorted([lesion[key] for key in keys] for lesion in expected[case_id]["gt_lesions"])
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            assert [item for item in ours if not isinstance(item, float)] == [
                item for item in theirs if not isinstance(item, float)
            ]
            assert all(same(a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(b, float))


@pytest.mark.parametrize("name", FROC)
class TestCandidateLists:
    def test_points(self, name: str) -> None:
        entry = vectors("froc_vectors.json")[name]
        points = candidate_points(entry["cases"])
        wanted = entry["expected"]
        found = froc_summary(points, n_lesions=wanted["n_lesions"], n_scans=wanted["n_scans"])
        assert len(found["points"]) == len(wanted["points"])
        for ours, theirs in zip(found["points"], wanted["points"], strict=True):
            assert {key: ours[key] for key in theirs} == pytest.approx(theirs)
        assert found["recall_at_fp_per_scan"] == pytest.approx(wanted["recall_at_fp_per_scan"])
        assert found["mean_recall_over_fp_levels"] == pytest.approx(wanted["mean_recall_over_fp_levels"])
        assert list(recall_at_rates(points)) == [f"{rate:g}" for rate in FP_RATES]

    def test_operating_point(self, name: str) -> None:
        entry = vectors("froc_vectors.json")[name]
        chosen = choose_point(candidate_points(entry["cases"]), rule="recall", max_fp_per_scan=1.0)
        assert chosen is not None
        wanted = entry["expected"]["operating_point_at_1_fp_per_scan"]
        assert {key: getattr(chosen, key) for key in wanted} == pytest.approx(wanted)
