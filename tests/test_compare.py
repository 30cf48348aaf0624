"""Two predictions of the same cases: paired differences, their intervals, and who found what."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_nifti

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.errors import InputError
from segment.evaluation.compare import compare_folders
from segment.evaluation.metrics import CaseResult, evaluate_case
from segment.evaluation.paired import compare_results, compared_lesions

CONFIG = EvaluationConfig(bootstrap_draws=300)


def row(text: str) -> np.ndarray:
    return np.array([[[int(c)] if c != "." else [0] for c in text]], np.uint8)


def case(name: str, label: str, prediction: str, config: EvaluationConfig = CONFIG) -> CaseResult:
    grid = Grid((1, len(label), 1), np.eye(4))
    return evaluate_case(name, row(label), row(prediction), grid, config=config)


def compare(first: list[CaseResult], second: list[CaseResult], **options: Any) -> dict[str, Any]:
    return compare_results(first, second, **({"names": ("old", "new"), "config": CONFIG, "seed": 0} | options))


LABELS = ("11..1...", "1.......", "........")
FIRST = [
    case(name, label, found)
    for name, label, found in zip("abc", LABELS, ("11......", "1......1", "...1...."), strict=True)
]
SECOND = [
    case(name, label, found)
    for name, label, found in zip("abc", LABELS, ("11..1...", "........", "........"), strict=True)
]


class TestFigures:
    def test_differences_are_second_minus_first(self) -> None:
        figures = compare(FIRST, SECOND)["figures"]
        # Recall 2 of 3 each; false positives 2 and 0 in three scans.
        assert (figures["recall"]["first"], figures["recall"]["second"], figures["recall"]["difference"]) == (
            2 / 3,
            2 / 3,
            0.0,
        )
        assert figures["fp_per_scan"]["difference"] == pytest.approx(-2 / 3)
        assert figures["precision"]["difference"] == pytest.approx(1 - 0.5)
        assert figures["iou10.<=10"]["first"] == pytest.approx(2 / 3)

    def test_means_over_cases_are_paired(self) -> None:
        figures = compare(FIRST, SECOND)["figures"]
        # Case c: 0 for the first, undefined for the second, so neither mean has it. Dice: 0.8 and 2/3; 1 and 0.
        assert (figures["macro.dice"]["n"], figures["macro.dice"]["of"]) == (2, 3)
        assert figures["macro.dice"]["first"] == pytest.approx((0.8 + 2 / 3) / 2)
        assert figures["macro.dice"]["second"] == pytest.approx(0.5)

    def test_equal_results_differ_by_nothing_for_certain(self) -> None:
        for name, figure in compare(FIRST, FIRST)["figures"].items():
            assert figure["difference"] in (0.0, None), name
            assert figure["interval"] in ([0.0, 0.0], None), name

    def test_both_sides_are_resampled_together(self) -> None:
        rng = np.random.default_rng(0)
        first, second = [], []
        for name in range(30):
            hits = rng.random(6) < 0.6
            hits[0] = True
            label = "1." * 6
            found = "".join("1." if hit else ".." for hit in hits)
            # The second misses exactly one lesion more than the first.
            fewer = found.replace("1", ".", 1)
            first.append(case(f"{name:02d}", label, found))
            second.append(case(f"{name:02d}", label, fewer))
        figure = compare(first, second)["figures"]["recall"]
        low, high = figure["interval"]
        assert figure["difference"] == pytest.approx(-1 / 6)
        assert high - low < 1e-9  # unpaired it would be some 0.2 wide

    def test_one_case_has_no_interval(self) -> None:
        assert {figure["interval"] for figure in compare(FIRST[:1], SECOND[:1])["figures"].values()} == {None}

    def test_different_cases_cannot_be_compared(self) -> None:
        with pytest.raises(InputError, match="case c, class lesion: expected it in both results"):
            compare(FIRST, SECOND[:2])
        with pytest.raises(InputError, match="nothing to compare"):
            compare([], [])


class TestLesions:
    def test_who_found_what(self) -> None:
        found = compare(FIRST, SECOND)
        assert found["lesions"]["all"] == {"both": 1, "first_only": 1, "second_only": 1, "neither": 0}
        assert found["lesions"]["small"] == found["lesions"]["<=10"] == found["lesions"]["all"]
        assert found["lesions"][">200"] == {"both": 0, "first_only": 0, "second_only": 0, "neither": 0}
        (first,), (second,) = found["found_by_first_only"], found["found_by_second_only"]
        assert (first["case_id"], first["lesion_id"], first["iou_first"], first["iou_second"]) == ("b", 1, 1.0, None)
        assert (second["case_id"], second["lesion_id"], second["centroid_world_mm"]) == ("a", 2, [0.0, 4.0, 0.0])

    def test_ignored_lesions_are_left_out(self) -> None:
        config = EvaluationConfig(min_lesion_mm3=2.0)
        results = [case("a", "11..1...", "11......", config)]
        assert [lesion["lesion_id"] for lesion in compared_lesions(results, results)] == [1]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    predictions = {"old": ("11......", "1......1", "...1...."), "new": ("11..1...", "........", "........")}
    for folder, rows in {"labels": LABELS, **predictions}.items():
        for name, text in zip("abc", rows, strict=True):
            volume = np.zeros((3, 8, 4), np.uint8)
            volume[1:2, :, 1:2] = row(text)
            write_nifti(tmp_path / folder / f"{name}.nii.gz", volume)
    return tmp_path


def run(folder: Path) -> int:
    return compare_folders(
        folder / "old",
        folder / "new",
        folder / "labels",
        folder / "out",
        config=CONFIG,
        seed=0,
        images=None,
        classes=None,
        missing="error",
        workers=1,
        language="en",
        force=False,
    )


class TestFolders:
    def test_everything_is_written(self, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(folders) == 0
        names = {path.name for path in (folders / "out").iterdir()} - {".segment-output"}
        assert names == {
            "comparison.html",
            "comparison.json",
            "compared_lesions.csv",
            "failures.csv",
            "first",
            "second",
        }
        found = json.loads((folders / "out" / "comparison.json").read_text())
        assert (found["n_cases"], found["left_out"]) == (3, [])
        assert (found["first"], found["second"]) == ("old", "new")  # folders above may name a patient
        assert (folders / "out" / "second" / "report.html").exists()
        with (folders / "out" / "compared_lesions.csv").open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        assert [(line["case_id"], line["found_first"], line["found_second"]) for line in rows] == [
            ("a", "true", "true"), ("a", "false", "true"), ("b", "true", "false")
        ]  # fmt: skip
        assert "lesions that only the first finds: 1, only the second: 1" in capsys.readouterr().out

    def test_a_case_that_fails_on_one_side_is_left_out_of_both(self, folders: Path) -> None:
        (folders / "new" / "b.nii.gz").write_bytes(b"broken")
        assert run(folders) == 1
        found = json.loads((folders / "out" / "comparison.json").read_text())
        assert (found["n_cases"], found["left_out"]) == (2, ["b"])
        assert json.loads((folders / "out" / "first" / "summary.json").read_text())["n_cases"] == 2
        assert "b.nii.gz" in (folders / "out" / "failures.csv").read_text()

    def test_the_classes_of_one_folder_are_those_of_both(self, folders: Path) -> None:
        """nnU-Net writes dataset.json beside its predictions, other tools do not."""
        (folders / "old" / "dataset.json").write_text('{"labels": {"background": 0, "ms": 1}}')
        assert run(folders) == 0
        with (folders / "out" / "compared_lesions.csv").open(newline="") as handle:
            assert {line["class"] for line in csv.DictReader(handle)} == {"ms"}

    def test_two_folders_of_other_classes_are_refused(self, folders: Path) -> None:
        for name, value in (("old", 1), ("new", 2)):
            (folders / name / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lesion": value}}))
        with pytest.raises(InputError, match=r"new: expected the classes .* of .*old, found .* in dataset\.json"):
            run(folders)
        assert not (folders / "out").exists()

    def test_nothing_in_common_succeeds(self, folders: Path) -> None:
        for name in "abc":
            (folders / "new" / f"{name}.nii.gz").write_bytes(b"broken")
        with pytest.raises(InputError, match="no case could be evaluated in both folders"):
            run(folders)
