"""Whole runs with accumulated gradients, averaged weights and the search for bad numbers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from builders import tiny_dataset
from data_helpers import make_test_plan, store_case

from segment.config import Config
from segment.data.pipeline import patch_dataset
from segment.training.checkpoint import Checkpoints
from segment.training.step import TrainingError, TrainStep
from segment.training.trainer import train


def configuration(root: Path, run_dir: Path, **options: Any) -> Config:
    """A network of two levels on 16^3 patches; `options` are the section train."""
    fixed = {"precision": "float32", "optimizer": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.01}}
    return Config.model_validate(
        {
            "run_dir": run_dir,
            "data": {"root": root, "validation_cases": ["case2"]},
            "model": {"filters": [4, 8], "patch_size": [16, 16, 16]},
            "train": fixed | options,
        }
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", cases=3, shape=(32, 32, 16))


def last_state(run_dir: Path) -> dict[str, np.ndarray]:
    found = Checkpoints(run_dir / "checkpoints").latest()
    assert found is not None
    return found.arrays


class TestAccumulation:
    def test_sees_the_patches_of_one_large_batch_from_any_step_on(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:6, 4:6, 4:6] = 1
        prepared = [store_case(tmp_path / "a", rng.normal(size=(16, 16, 16, 1)), label, values=(1,))]
        plan = make_test_plan(channels=1, label_values={"lesion": 1})
        found = []
        for batch_size, accumulate_steps in ((4, 1), (1, 4)):
            config = Config.model_validate({"train": {"batch_size": batch_size, "accumulate_steps": accumulate_steps}})
            found.append(next(iter(patch_dataset(prepared, plan, config, first_step=3, steps=1))))
        for name, array in found[0].items():
            assert array.shape[0] == 4
            np.testing.assert_array_equal(array, found[1][name])


class TestResume:
    def test_average_and_accumulation_resume_to_the_last_bit(
        self, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The two training cases hold 8 patches of 16^3 in all, so an epoch is 2 steps of 2 x 2 patches.
        options = {"epochs": 3, "batch_size": 2, "accumulate_steps": 2, "ema_decay": 0.9}
        straight = train(configuration(dataset, tmp_path / "straight", **options), resume=False, force=False)
        assert straight.step == 6
        original = TrainStep.__call__
        calls: list[int] = []

        def call(self: TrainStep, *arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *arguments, **named)

        monkeypatch.setattr(TrainStep, "__call__", call)
        config = configuration(dataset, tmp_path / "stopped", **options)
        assert train(config, resume=False, force=False).exit_code == 143
        assert train(config, resume=True, force=False).step == 6
        assert len(calls) == 6
        expected, found = (last_state(tmp_path / name) for name in ("straight", "stopped"))
        assert sorted(found) == sorted(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)

        saved = tf.keras.models.load_model(tmp_path / "stopped" / "model.keras", compile=False).get_weights()
        for index, weight in enumerate(saved):  # the average is what is kept
            np.testing.assert_array_equal(weight, found[f"average/{index:04d}"])
            assert (weight != found[f"model/{index:04d}"]).any()


class TestDebugNumerics:
    def test_stops_at_the_first_bad_step_and_names_layer_and_case(self, dataset: Path, tmp_path: Path) -> None:
        config = configuration(
            dataset,
            tmp_path / "run",
            steps=60,
            debug_numerics=True,
            optimizer={"name": "adamw", "learning_rate": 1e30, "warmup_share": 0.0},
        )
        with pytest.raises(
            TrainingError,
            match=r"train\.debug_numerics\): step \d: the first number that is not finite is in the "
            r"(output|gradient) .*layer \w+ on case case[01]: (NaN|Inf|a finite number whose square is not)",
        ):
            train(config, resume=False, force=False)
