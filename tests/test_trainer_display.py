"""What a person sees of a whole run: the progress bar, the pictures, the last table, and when a training ends early."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf
from builders import tiny_dataset
from rich.console import Console

from segment import progress
from segment.config import Config
from segment.training import loop
from segment.training.step import TrainStep
from segment.training.trainer import train


def configuration(root: Path, run_dir: Path, **options: Any) -> Config:
    """A network of two levels on 16^3 patches; `options` are the section train."""
    return Config.model_validate(
        {
            "run_dir": run_dir,
            "data": {"root": root, "validation_cases": ["case2"]},
            "model": {"filters": [4, 8], "patch_size": [16, 16, 16]},
            "train": options,
        }
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", cases=3, shape=(32, 32, 16))


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Sends SIGTERM to this process during a step, counted from 1 over all runs."""
    calls: list[int] = []
    original = TrainStep.__call__

    def call(self: TrainStep, *arguments: Any, **options: Any) -> Any:
        calls.append(len(calls) + 1)
        if calls[-1] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **options)

    monkeypatch.setattr(TrainStep, "__call__", call)


class TestEarlyStopping:
    def test_waiting_goes_on_where_it_was_and_the_best_model_is_reported(
        self,
        dataset: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        still = {
            "steps": 12,
            "precision": "float32",
            "validate_every": 2,
            "patience": 2,
            "log_every": 2,
            "optimizer": {"learning_rate": 1e-12},
        }
        config = configuration(dataset, tmp_path / "run", **still)
        stop_in_step(monkeypatch, 5)
        assert train(config, resume=False, force=False).exit_code == 143
        done = train(config, resume=True, force=False)
        # Nothing is learnt: step 2 is the best at first, steps 4 and 6 are as good, the later one is kept.
        assert (done.exit_code, done.step, done.best_step) == (0, 6, 6)
        said = capsys.readouterr()
        assert "2 validations without a better one (train.patience): the training ends here" in said.err
        assert "\x1b" not in said.err + said.out
        first, *_ = said.out.splitlines()
        assert re.fullmatch(r".*/run: 6 steps \(stopped early\) in \d+\.\d min, training loss \d\.\d{3}", first)
        assert len({len(line) for line in said.out.splitlines()[1:8]}) == 1  # the table is whole
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert (manifest["finished"], manifest["stopped_early"]) == (True, True)
        again = train(config, resume=True, force=False)
        assert (again.exit_code, again.step) == (0, 6)
        pictures = sorted(path.name for path in (tmp_path / "run" / "slices").iterdir())
        assert pictures == [f"step_{step:07d}_case2.png" for step in (2, 4, 6)]
        assert all((tmp_path / "run" / "slices" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)


class TestSpeed:
    def test_steps_of_an_earlier_process_are_not_counted(
        self, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a clock that ticks whenever it is read, so that every step takes two seconds."""
        ticks = itertools.count()
        monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
        options = {"steps": 8, "precision": "float32", "validate_every": 8, "log_every": 4, "batch_size": 2}
        config = configuration(dataset, tmp_path / "run", **options)
        stop_in_step(monkeypatch, 7)
        assert train(config, resume=False, force=False).exit_code == 143
        assert train(config, resume=True, force=False).exit_code == 0
        with (tmp_path / "run" / "metrics.csv").open(newline="") as handle:
            assert [row["patches_per_second"] for row in csv.DictReader(handle)] == ["1", "1"]


class TestTerminal:
    def test_float16_scales_the_loss_and_a_terminal_shows_it(
        self, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
        monkeypatch.setattr(progress, "CONSOLE", terminal)
        options = {"steps": 2, "precision": "mixed_float16", "log_every": 1, "validate_every": 1}
        assert train(configuration(dataset, tmp_path / "run", **options), resume=False, force=False).exit_code == 0
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.file.getvalue())
        line = r"Training .*1/2 \d:\d\d:\d\d [-\d]:.* loss \d\.\d{4}  \d+\.\d patches/s  scale 32768"
        assert re.search(line, shown)
        assert re.search(r"2/2 .* loss \d\.\d{4}  recall \d\.\d{3}  \d+\.\d patches/s  scale 32768", shown)
        with (tmp_path / "run" / "metrics.csv").open(newline="") as handle:
            _, row = csv.DictReader(handle)
        assert row["loss_scale"] == "32768"
        assert float(row["loss"]) < 10
        assert tf.keras.mixed_precision.global_policy().name == "float32"
