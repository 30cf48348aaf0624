"""The lesion census, and what the network's grid does to lesions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_dataset, write_case, write_dataset_json, write_nifti

from segment.cli import main
from segment.data.audit import audit_resampling, ceiling_on_recall
from segment.data.cases import find_dataset
from segment.data.census import LesionLoad, bin_names, census_table, count_by_size, lesion_load

EDGES = (10.0, 50.0)


class TestCensus:
    def test_lesions_of_two_classes(self) -> None:
        label = np.zeros((6, 6, 6), np.uint8)
        label[0, 0, 0] = label[1, 1, 1] = 1  # touch at a corner: one lesion
        label[5, 5, 3:6] = 2
        label[3, 3, 3] = 9  # no class
        assert lesion_load(label, (1, 2), voxel_mm3=2.0) == LesionLoad((4.0, 6.0))
        assert lesion_load(np.zeros_like(label), (1,), voxel_mm3=1.0) == LesionLoad(())

    def test_an_edge_belongs_to_the_bin_below(self) -> None:
        assert bin_names(EDGES) == ("<=10", "10-50", ">50")
        load = LesionLoad((1.0, 10.0, 10.1, 50.0, 51.0))
        assert count_by_size(load, EDGES) == ((2, 2, 1), (11.0, pytest.approx(60.1), 51.0))
        assert count_by_size(LesionLoad(()), EDGES) == ((0, 0, 0), (0.0, 0.0, 0.0))

    def test_table_ends_with_all(self) -> None:
        *_, everything = census_table({"a": LesionLoad((4.0,)), "b": LesionLoad((20.0, 60.0))}, EDGES)
        assert everything == {
            "case": "all",
            "lesions": 3,
            "mm3": 84.0,
            "lesions_by_size": {"<=10": 1, "10-50": 1, ">50": 1},
            "mm3_by_size": {"<=10": 4.0, "10-50": 20.0, ">50": 60.0},
        }


def one_case(folder: Path, label: np.ndarray) -> Path:
    """A case of 1 mm voxels whose image is nowhere 0."""
    write_dataset_json(folder)
    write_case(folder, "case0", np.random.default_rng(0).normal(100, 10, label.shape), label, np.eye(4))
    return folder


class TestResampling:
    def test_on_its_own_grid_nothing_is_lost(self, tmp_path: Path) -> None:
        label = (np.random.default_rng(0).random((9, 8, 7)) < 0.05).astype(np.uint8)
        (case,) = audit_resampling(
            find_dataset(one_case(tmp_path, label), layout="auto"), spacing_mm=(1, 1, 1), workers=1
        )
        assert case.findable == case.lesions > 3
        assert (case.vanished, case.merged) == ((), ())

    def test_what_vanishes_and_what_merges(self, tmp_path: Path) -> None:
        """At 3 mm the centre of each new voxel lies in the middle one of three; by hand along the first axis."""
        label = np.zeros((18, 9, 9), np.uint8)
        label[0, 0, 0] = 1  # no middle voxel: vanishes
        label[6:9, 3:6, 3:6] = 1  # a whole new voxel: stays
        label[10, 3:6, 3:6] = 1  # a middle layer beside it: becomes a whole new voxel, next to the other
        (case,) = audit_resampling(
            find_dataset(one_case(tmp_path, label), layout="auto"), spacing_mm=(3, 3, 3), workers=1
        )
        assert (case.lesions, case.findable) == (3, 1)
        assert [(lesion.voxel, lesion.volume_mm3) for lesion in case.vanished] == [((0, 0, 0), 1.0)]
        assert [[(lesion.voxel, lesion.volume_mm3) for lesion in group] for group in case.merged] == [
            [((7, 4, 4), 27.0), ((10, 4, 4), 9.0)]
        ]
        assert ceiling_on_recall([case]) == pytest.approx(1 / 3)
        assert ceiling_on_recall([]) is None

    def test_a_lesion_outside_the_image_vanishes(self, tmp_path: Path) -> None:
        label = np.zeros((10, 10, 10), np.uint8)
        label[1, 1, 1] = label[6, 6, 6] = 1
        folder = one_case(tmp_path, label)
        image = np.zeros((10, 10, 10), np.float32)
        image[3:, 3:, 3:] = np.random.default_rng(0).normal(100, 10, (7, 7, 7))
        write_nifti(folder / "imagesTr/case0_0000.nii.gz", image, np.eye(4))
        (case,) = audit_resampling(find_dataset(folder, layout="auto"), spacing_mm=(1, 1, 1), workers=1)
        assert [lesion.voxel for lesion in case.vanished] == [(1, 1, 1)]
        assert case.findable == 1


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestCommand:
    def test_tables_and_file(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_dataset(here / "data", patients={"case0": "p", "case1": "p"})
        assert main(["check", "data"]) == 0
        shown = capsys.readouterr().out
        assert "3 cases of 2 patients; errors: 0, warnings: 0; all of it: audit.json" in shown
        assert "of 3 lesions 0 vanish and 0 merge; recall on that grid is at most 1.000" in shown
        assert "3 (48)" in shown  # three lesions of 16 mm3
        values = json.loads(Path("audit.json").read_text())
        assert values["cases"]["case1"] == {"patient": "p", "spacing_mm": [1.0, 1.0, 2.0]}
        assert values["census"][-1]["lesions_by_size"] == {"<=10": 0, "10-50": 3, "50-200": 0, ">200": 0}
        assert values["resampling"]["ceiling_on_recall"] == 1.0
        first = Path("audit.json").read_bytes()
        assert main(["check", "data", "--workers", "1"]) == 0  # an earlier audit is replaced
        assert Path("audit.json").read_bytes() == first

    def test_an_error_gives_2_and_the_rest_is_still_audited(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tiny_dataset(here / "data") / "imagesTr/case1_0000.nii.gz").write_bytes(b"")
        (here / "own.yaml").write_text("data: {spacing_mm: [4, 4, 4]}\nevaluation: {bin_edges_mm3: [50]}\n")
        assert main(["check", "data", "--config", "own.yaml", "--output", "deep/found.json"]) == 2
        shown = capsys.readouterr().out
        assert "error: case case1: channel FLAIR: data/imagesTr/case1_0000.nii.gz: expected a NIfTI file" in shown
        assert "next:" not in shown
        values = json.loads(Path("deep/found.json").read_text())
        assert [finding["kind"] for finding in values["findings"]] == ["truncated"]
        assert [case["case_id"] for case in values["resampling"]["cases"]] == ["case0", "case2"]
        assert values["resampling"]["spacing_mm"] == [4.0, 4.0, 4.0]
        assert list(values["census"][0]["lesions_by_size"]) == ["<=50", ">50"]

    def test_what_cannot_be_written_is_still_shown(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_dataset(here / "data")
        (here / "flat").touch()
        assert main(["check", "data", "--output", "flat/audit.json"]) == 2
        shown = capsys.readouterr()
        assert "3 cases; errors: 0" in shown.out
        assert "flat" in shown.err

    def test_no_valid_case(self, here: Path) -> None:
        (tiny_dataset(here / "data", cases=1) / "imagesTr/case0_0000.nii.gz").unlink()
        assert main(["check", "data"]) == 2
        assert json.loads(Path("audit.json").read_text())["resampling"]["ceiling_on_recall"] is None

    def test_a_file_of_somebody_elses_is_not_replaced(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_dataset(here / "data")
        Path("audit.json").write_text('{"my": "notes"}')
        assert main(["check", "data"]) == 2
        assert "expected a new file or an earlier audit, found another" in capsys.readouterr().err
        assert Path("audit.json").read_text() == '{"my": "notes"}'

    def test_what_is_not_there(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["check", "nothere"]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: dataset nothere does not exist; give a folder with dataset.json")
        assert "data.root" not in message
        assert not Path("audit.json").exists()

    def test_dataset_json_itself(self, here: Path) -> None:
        tiny_dataset(here)
        assert main(["check", "dataset.json"]) == 0
