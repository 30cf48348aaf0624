"""Whole runs on a tiny dataset: what they leave behind, exact resuming, signals, and refusals."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from builders import tiny_dataset

from segment.config import Config, load_config
from segment.data.scan import read_mask
from segment.errors import InputError
from segment.training.checkpoint import Checkpoints
from segment.training.step import TrainingError, TrainStep
from segment.training.trainer import TrainResult, train

STEPS = 12
CLOCKS = {"data_wait_share", "patches_per_second"}  # the only figures that may differ between two runs


def configuration(root: Path, run_dir: Path, **options: Any) -> Config:
    """A network of two levels on 16^3 patches; `options` replace keys of the section train."""
    train_options = {
        "steps": STEPS,
        "batch_size": 2,
        "precision": "float32",
        "validate_every": 6,
        "log_every": 4,
        "optimizer": {"learning_rate": 0.01},
    }
    return Config.model_validate(
        {
            "run_dir": run_dir,
            "data": {"root": root, "validation_cases": ["case2"]},
            "model": {"filters": [4, 8], "patch_size": [16, 16, 16]},
            "loss": {"weighting": {"name": "fixed"}},  # so that a row's means multiply
            "train": train_options | options,
        }
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", cases=3, shape=(32, 32, 16))


@pytest.fixture(scope="module")
def straight(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A run of 12 steps without interruption, and its result."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    return run_dir, train(configuration(dataset, run_dir), resume=False, force=False)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return [{key: value for key, value in row.items() if key not in CLOCKS} for row in csv.DictReader(handle)]


def weights_in(run_dir: Path) -> dict[str, np.ndarray]:
    found = Checkpoints(run_dir / "checkpoints").latest()
    assert found is not None
    assert found.step == STEPS
    return found.arrays


class TestRun:
    def test_result_and_files(self, straight: tuple[Path, TrainResult], dataset: Path) -> None:
        run_dir, result = straight
        assert (result.exit_code, result.step, result.run_dir) == (0, STEPS, run_dir)
        assert result.best_step in (6, 12)
        names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}
        assert names == {
            "config.yaml",
            "plan.json",
            "split.json",
            "data.json",
            "manifest.json",
            "metrics.csv",
            "validation.csv",
            "slices",
            "tensorboard",
            "checkpoints",
            "model.keras",
            "operating_point.json",
            "operating_point.svg",
            "validation",
        }
        assert load_config(run_dir / "config.yaml") == configuration(dataset, run_dir)
        assert json.loads((run_dir / "split.json").read_text())["validation"] == ["case2"]
        assert {path.name for path in (run_dir / "validation" / "report").iterdir()} >= {
            "cases.json",
            "lesions.csv",
            "summary.json",
            "report.html",
        }

    def test_figures(self, straight: tuple[Path, TrainResult]) -> None:
        run_dir, result = straight
        rows = rows_of(run_dir / "metrics.csv")
        assert [row["step"] for row in rows] == ["4", "8", "12"]
        terms = ["binary_crossentropy", "dice", "focal"]
        for row in rows:
            total = sum(float(row[f"loss/{term}"]) * float(row[f"weight/{term}"]) for term in terms)
            assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
            assert float(row["gradient_norm"]) > 0
            assert (row["loss_scale"], row["skipped"]) == ("1", "0")
        # The middle of the fourth step, long after the warm-up: (1 - x)^0.9 with x = (3.5 / 12 - 0.02) / 0.98.
        expected = 0.01 * (1 - (3.5 / 12 - 0.02) / 0.98) ** 0.9
        assert float(rows[0]["learning_rate"]) == pytest.approx(expected, rel=1e-5)
        validations = rows_of(run_dir / "validation.csv")
        assert [row["step"] for row in validations] == ["6", "12"]
        assert validations[0]["best"] == "1"
        assert all(0 <= float(row["small_lesion_recall_at_fp"]) <= 1 for row in validations)
        with (run_dir / "metrics.csv").open(newline="") as handle:
            assert all(0 <= float(row["data_wait_share"]) <= 1 for row in csv.DictReader(handle))
        assert result.summary is not None
        assert result.summary["n_cases"] == 1

    def test_manifest(self, straight: tuple[Path, TrainResult], dataset: Path) -> None:
        manifest = json.loads((straight[0] / "manifest.json").read_text())
        assert manifest["finished"] is True
        assert manifest["versions"]["tensorflow"] == tf.__version__
        assert (manifest["precision"], manifest["replicas"], manifest["seed"]) == ("float32", 1, 0)
        assert len(manifest["data"]) == 6  # image and label of three cases
        assert all(len(digest) == 64 for digest in manifest["data"].values())
        assert 0 < manifest["peak_memory_gib"] < 1000

    def test_mask_is_on_the_grid_of_the_scan(self, straight: tuple[Path, TrainResult], dataset: Path) -> None:
        mask, grid = read_mask(straight[0] / "validation" / "masks" / "case2.nii.gz")
        _, label_grid = read_mask(dataset / "labelsTr" / "case2.nii.gz")
        assert grid.matches(label_grid)
        assert set(np.unique(mask)) <= {0, 1}

    def test_resuming_a_finished_run_changes_nothing(self, straight: tuple[Path, TrainResult], dataset: Path) -> None:
        run_dir, result = straight
        before = (weights_in(run_dir), (run_dir / "metrics.csv").read_bytes())
        again = train(configuration(dataset, run_dir), resume=True, force=False)
        assert again.summary is not None
        assert result.summary is not None
        assert again.summary["micro"] == result.summary["micro"]
        for name, array in weights_in(run_dir).items():
            np.testing.assert_array_equal(array, before[0][name])
        assert (run_dir / "metrics.csv").read_bytes() == before[1]


@pytest.fixture
def signal_in_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Sends the signal {"signal": number} to this process during step {"step": number}, counted from 1."""
    plan: dict[str, int] = {"calls": 0}
    original = TrainStep.__call__

    def call(self: TrainStep, *arguments: Any, **options: Any) -> Any:
        plan["calls"] += 1
        if plan["calls"] == plan["step"]:
            os.kill(os.getpid(), plan["signal"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(TrainStep, "__call__", call)
    return plan


class TestResume:
    def test_interrupted_and_resumed_is_the_same_to_the_last_bit(
        self,
        straight: tuple[Path, TrainResult],
        dataset: Path,
        tmp_path: Path,
        signal_in_step: dict[str, int],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        config = configuration(dataset, tmp_path / "run")
        signal_in_step.update(step=6, signal=signal.SIGTERM)  # between two rows, and just before a validation
        stopped = train(config, resume=False, force=False)
        assert (stopped.exit_code, stopped.step, stopped.summary) == (143, 6, None)
        assert "--resume" in capsys.readouterr().err
        done = train(config, resume=True, force=False)
        assert (done.exit_code, done.step) == (0, STEPS)
        assert done.best_step == straight[1].best_step
        expected = weights_in(straight[0])
        found = weights_in(tmp_path / "run")
        assert sorted(found) == sorted(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        for table in ("metrics.csv", "validation.csv"):
            assert rows_of(tmp_path / "run" / table) == rows_of(straight[0] / table)

    def test_a_missing_folder_begins_a_new_run_and_ctrl_c_is_130(
        self, dataset: Path, tmp_path: Path, signal_in_step: dict[str, int]
    ) -> None:
        signal_in_step.update(step=1, signal=signal.SIGINT)
        before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a shell
        result = train(configuration(dataset, tmp_path / "new"), resume=True, force=False)
        assert (result.exit_code, result.step) == (130, 1)
        assert signal.getsignal(signal.SIGINT) is before


class TestHardware:
    def test_four_replicas_give_the_weights_of_one(self, dataset: Path, tmp_path: Path, four_cpus: list[str]) -> None:
        found = {}
        for strategy, replicas in (("single", 1), ("mirrored", 4)):
            run_dir = tmp_path / strategy
            options = {"steps": 2, "batch_size": 4, "strategy": strategy, "optimizer": {"name": "sgd"}}
            assert train(configuration(dataset, run_dir, **options), resume=False, force=False).exit_code == 0
            assert json.loads((run_dir / "manifest.json").read_text())["replicas"] == replicas
            found[strategy] = Checkpoints(run_dir / "checkpoints").latest()
        single, mirrored = found["single"], found["mirrored"]
        assert single is not None
        assert mirrored is not None
        for name, array in single.arrays.items():
            np.testing.assert_allclose(mirrored.arrays[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


class TestLossMaps:
    def test_terms_that_need_maps_train(self, dataset: Path, tmp_path: Path) -> None:
        terms = [{"name": "dice"}, {"name": "component_dice"}, {"name": "boundary", "weight": 0.1}]
        config = configuration(dataset, tmp_path / "run", steps=1)
        config = Config.model_validate({**config.model_dump(), "loss": {"terms": terms}})
        assert train(config, resume=False, force=False).exit_code == 0
        (row,) = rows_of(tmp_path / "run" / "metrics.csv")
        assert 0 < float(row["loss/component_dice"]) <= 1
        assert np.isfinite(float(row["loss/boundary"]))


class TestBadNumbers:
    def test_twenty_skipped_steps_in_a_row_stop_with_the_cases(self, dataset: Path, tmp_path: Path) -> None:
        # The first steps blow the weights up; everything after them overflows.
        options = {"steps": 60, "optimizer": {"learning_rate": 1e30, "warmup_share": 0.0}, "validate_every": 60}
        config = configuration(dataset, tmp_path / "run", **options)
        with pytest.raises(TrainingError, match=r"20 steps in a row .* the first was step \d+ on cases case[01]"):
            train(config, resume=False, force=False)
        rows = rows_of(tmp_path / "run" / "metrics.csv")
        assert float(rows[-1]["skipped"]) >= 16
        assert rows[-1]["loss"] == ""


class TestRefusals:
    def test_existing_folder(self, straight: tuple[Path, TrainResult], dataset: Path) -> None:
        before = (straight[0] / "metrics.csv").read_bytes()
        with pytest.raises(InputError, match=r"already holds files; pass --resume to go on or --force"):
            train(configuration(dataset, straight[0]), resume=False, force=False)
        assert (straight[0] / "metrics.csv").read_bytes() == before

    def test_resume_with_another_configuration_names_the_key(
        self, straight: tuple[Path, TrainResult], dataset: Path
    ) -> None:
        config = configuration(dataset, straight[0], optimizer={"learning_rate": 0.02})
        with pytest.raises(InputError, match=r"train\.optimizer\.learning_rate: .* began with 0\.01, found 0\.02"):
            train(config, resume=True, force=False)

    def test_resume_with_changed_data(self, straight: tuple[Path, TrainResult], dataset: Path, tmp_path: Path) -> None:
        run_dir = tmp_path / "run"
        shutil.copytree(straight[0], run_dir)
        hashes = json.loads((run_dir / "data.json").read_text())
        path = str(dataset / "labelsTr" / "case0.nii.gz")
        (run_dir / "data.json").write_text(json.dumps(hashes | {path: "0" * 64}))
        with pytest.raises(InputError, match=r"case0\.nii\.gz changed since the run"):
            train(configuration(dataset, run_dir), resume=True, force=False)

    def test_resume_of_a_folder_that_is_no_run(self, dataset: Path, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(InputError, match=r"expected a run folder, found .* with other files"):
            train(configuration(dataset, tmp_path), resume=True, force=False)
        assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]

    def test_both_flags(self, dataset: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--resume goes on and --force starts anew"):
            train(configuration(dataset, tmp_path / "run"), resume=True, force=True)

    def test_bad_data_leaves_no_folder_behind(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"dataset .* does not exist"):
            train(configuration(tmp_path / "absent", tmp_path / "run"), resume=False, force=False)
        assert not (tmp_path / "run").exists()

    def test_bad_data_with_force_keeps_the_old_run(self, straight: tuple[Path, TrainResult], tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"dataset .* does not exist"):
            train(configuration(tmp_path / "absent", straight[0]), resume=False, force=True)
        assert (straight[0] / "model.keras").exists()
