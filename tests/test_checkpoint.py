"""Checkpoints come back whole, damaged ones are noticed, old ones go, and a full disk costs nothing."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from segment.errors import InputError
from segment.training.checkpoint import Checkpoints, restore
from segment.training.distribution import mirrored_strategy


def variables(value: float) -> dict[str, tf.Variable]:
    return {
        "model/0000": tf.Variable(tf.fill([2, 3], value), name="kernel"),
        "optimizer/iterations": tf.Variable(7, dtype=tf.int64),
        "loss_scale/scale": tf.Variable(value * 2),
    }


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestRoundTrip:
    def test_values_and_info_come_back_exactly(self, tmp_path: Path) -> None:
        third = 1 / 3
        saved = variables(third)
        Checkpoints(tmp_path / "c").save(5, saved, {"seconds": 0.1, "row": [math.nan]}, best_step=None)
        found = Checkpoints(tmp_path / "c").latest()
        assert found is not None
        assert (found.step, found.info) == (5, {"seconds": 0.1, "row": [None]})
        fresh = variables(0.0)
        restore(fresh, found)
        for name in saved:
            np.testing.assert_array_equal(saved[name].numpy(), fresh[name].numpy())
            assert found.arrays[name].dtype == saved[name].numpy().dtype

    def test_nothing_there_is_none(self, tmp_path: Path) -> None:
        assert Checkpoints(tmp_path / "absent").latest() is None
        assert Checkpoints(tmp_path).latest() is None

    def test_every_replica_gets_the_value(self, tmp_path: Path, four_cpus: list[str]) -> None:
        Checkpoints(tmp_path).save(1, {"w/0": tf.Variable([1.0, 2.0])}, {}, best_step=None)
        strategy = mirrored_strategy(four_cpus[:2])
        with strategy.scope():
            mirrored = tf.Variable([0.0, 0.0])
        found = Checkpoints(tmp_path).latest()
        assert found is not None
        restore({"w/0": mirrored}, found)
        for value in strategy.experimental_local_results(mirrored):
            np.testing.assert_array_equal(value.numpy(), [1.0, 2.0])


class TestKept:
    def test_last_two_and_the_best(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (10, 20, 30, 40):
            checkpoints.save(step, variables(step), {}, best_step=10)
        assert steps_in(tmp_path) == ["step-00000010.ckpt", "step-00000030.ckpt", "step-00000040.ckpt"]

    def test_a_new_best_frees_the_old_one(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (10, 20, 30, 40):
            checkpoints.save(step, variables(step), {}, best_step=10 if step < 40 else 40)
        assert steps_in(tmp_path) == ["step-00000030.ckpt", "step-00000040.ckpt"]

    def test_the_same_step_again_replaces_it(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(10, variables(1.0), {"validated": 0}, best_step=None)
        checkpoints.save(10, variables(1.0), {"validated": 10}, best_step=10)
        found = checkpoints.latest()
        assert found is not None
        assert found.info == {"validated": 10}


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


class TestDamage:
    @pytest.mark.parametrize("damage", [cut, flip, lambda content: b"", lambda content: b"something else\n" + content])
    def test_falls_back_with_a_warning(
        self, damage: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (10, 20):
            checkpoints.save(step, variables(step), {"step": step}, best_step=None)
        path = tmp_path / "step-00000020.ckpt"
        path.write_bytes(damage(path.read_bytes()))
        found = checkpoints.latest()
        assert found is not None
        assert found.step == 10
        assert "step-00000020.ckpt is damaged" in capsys.readouterr().err
        assert steps_in(tmp_path) == ["step-00000010.ckpt", "step-00000020.damaged"]

    def test_all_damaged_is_an_error(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (10, 20):
            checkpoints.save(step, variables(step), {}, best_step=None).write_bytes(b"")
        with pytest.raises(InputError, match=r"all 2 checkpoints are damaged.*--force"):
            checkpoints.latest()

    def test_another_shape_or_name_is_an_error_and_assigns_nothing(self, tmp_path: Path) -> None:
        Checkpoints(tmp_path).save(10, variables(1.0), {}, best_step=None)
        found = Checkpoints(tmp_path).latest()
        assert found is not None
        other = variables(0.0) | {"model/0000": tf.Variable([9.0])}
        with pytest.raises(InputError, match=r"model/0000: expected \(1,\), found \(2, 3\)"):
            restore(other, found)
        assert float(other["loss_scale/scale"]) == 0.0
        with pytest.raises(InputError, match=r"model/0001: expected \(\), found nothing"):
            restore(variables(0.0) | {"model/0001": tf.Variable(1.0)}, found)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 4 KiB, as on a disk that is full (the system call fails in the same place)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    def test_is_a_clear_error_and_the_last_checkpoint_stays(
        self, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        checkpoints = Checkpoints(tmp_path)
        big = {"model/0000": tf.Variable(tf.zeros([10_000]))}
        checkpoints.save(10, big, {}, best_step=None)
        request.getfixturevalue("small_files")
        with pytest.raises(InputError, match=r"cannot write .*step-00000020\.ckpt: .*free space"):
            checkpoints.save(20, big, {}, best_step=None)
        assert steps_in(tmp_path) == ["step-00000010.ckpt"]
        found = checkpoints.latest()
        assert found is not None
        assert found.step == 10
