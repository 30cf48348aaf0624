"""Training on bad data or options: one line, exit code 2, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf  # noqa: F401 - the four logical devices are set up before any test runs
from builders import AFFINE, write_nifti
from cli_helpers import SHAPE, one_line, tiny_config, truncate, two_channels

from segment.cli import main


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return two_channels(tmp_path / "data", cases=3)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_config(tmp_path_factory.mktemp("config"))


class Faults:
    """Each spoils the dataset in one way; the name of the case it spoils is `case1`."""

    @staticmethod
    def missing_file(root: Path) -> None:
        (root / "labelsTr" / "case1.nii.gz").unlink()

    @staticmethod
    def truncated(root: Path) -> None:
        truncate(root / "imagesTr" / "case1_0000.nii.gz")

    @staticmethod
    def other_grid(root: Path) -> None:
        write_nifti(root / "labelsTr" / "case1.nii.gz", np.ones(SHAPE, np.uint8), AFFINE @ np.diag([2, 1, 1, 1]))

    @staticmethod
    def missing_channel(root: Path) -> None:
        (root / "imagesTr" / "case1_0001.nii.gz").unlink()

    @staticmethod
    def not_a_number(root: Path) -> None:
        image = np.full(SHAPE, 100.0, np.float32)
        image[3, 4, 5] = np.nan
        write_nifti(root / "imagesTr" / "case1_0000.nii.gz", image)

    @staticmethod
    def undeclared_value(root: Path) -> None:
        label = np.zeros(SHAPE, np.uint8)
        label[2:4, 2:4, 2:4] = 7
        write_nifti(root / "labelsTr" / "case1.nii.gz", label)

    @staticmethod
    def all_empty(root: Path) -> None:
        for path in (root / "labelsTr").iterdir():
            write_nifti(path, np.zeros(SHAPE, np.uint8))

    @staticmethod
    def no_cases(root: Path) -> None:
        for folder in ("imagesTr", "labelsTr"):
            for path in (root / folder).iterdir():
                path.unlink()


class TestTrainRefuses:
    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            pytest.param(Faults.missing_file, ("case1", "labelsTr/case1.nii.gz"), id="missing-file"),
            pytest.param(Faults.truncated, ("case1", "case1_0000.nii.gz", "truncated"), id="truncated"),
            pytest.param(Faults.other_grid, ("case1", "labelsTr/case1.nii.gz", "grid"), id="other-grid"),
            pytest.param(Faults.missing_channel, ("case1", "case1_0001.nii.gz"), id="missing-channel"),
            pytest.param(Faults.not_a_number, ("case1", "case1_0000.nii.gz", "NaN"), id="nan"),
            pytest.param(
                Faults.undeclared_value,
                ("case1", "expected the values 0 (background), 1 (lesion), found 7"),
                id="undeclared-value",
            ),
            pytest.param(Faults.all_empty, ("expected a label with foreground",), id="all-labels-empty"),
            pytest.param(Faults.no_cases, ("found none",), id="empty-dataset"),
        ],
    )
    def test_bad_data(
        self,
        dataset: Path,
        config: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        spoil: Callable[[Path], None],
        words: tuple[str, ...],
    ) -> None:
        spoil(dataset)
        assert main(["train", str(config), f"data.root={dataset}", "--run-dir", str(tmp_path / "run")]) == 2
        message = one_line(capsys)
        assert [word for word in words if word not in message] == [], message
        assert not (tmp_path / "run").exists()

    def test_an_unknown_key(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", str(config), "train.stps=5"]) == 2
        assert "unknown key 'train.stps'; did you mean 'steps'?" in one_line(capsys)

    def test_a_dataset_that_is_not_there(
        self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["train", str(config), f"data.root={tmp_path / 'none'}", "--run-dir", str(tmp_path / "run")]) == 2
        assert str(tmp_path / "none") in one_line(capsys)

    def test_a_run_folder_that_exists(self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        (run_dir / "kept.txt").touch()
        before = sorted(run_dir.rglob("*"))
        assert main(["train", str(config), "--run-dir", str(run_dir)]) == 2
        assert "already holds files; pass --resume to go on or --force" in one_line(capsys)
        assert sorted(run_dir.rglob("*")) == before

    def test_a_run_folder_that_cannot_be_made(
        self, dataset: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        run = tmp_path / "file" / "run"
        assert main(["train", str(config), f"data.root={dataset}", "--run-dir", str(run)]) == 2
        assert f"run folder {run}: {tmp_path / 'file'} is a file, expected a folder" in one_line(capsys)

    def test_skip_invalid_trains_on_the_rest_and_says_what_it_left_out(
        self, dataset: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        truncate(dataset / "imagesTr" / "case1_0000.nii.gz")
        arguments = ["train", str(config), f"data.root={dataset}", "data.skip_invalid=true"]
        assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 0
        assert "case1_0000.nii.gz" in capsys.readouterr().err
