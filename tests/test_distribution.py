"""Devices chosen by the configuration, strategies, and clear errors where there are too few."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from segment.config import TrainConfig, load_config
from segment.errors import InputError
from segment.model.hardware import compute_capabilities
from segment.training.distribution import (
    check_batch_size,
    choose_gpus,
    compile_repeatably,
    distributed_batches,
    lost_worker_explained,
    make_strategy,
    memory_explained,
    mirrored_strategy,
    strategy_name,
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine with {"count": n} GPUs; collects what is made visible and what may grow."""
    machine: dict[str, Any] = {"count": 0, "grow": []}
    names = lambda: [f"gpu{index}" for index in range(machine["count"])]  # noqa: E731
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: names())
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: machine.get("visible", names()))
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda found, kind: machine.update(visible=found))
    growth = SimpleNamespace(set_memory_growth=lambda gpu, on: machine["grow"].append(gpu))
    monkeypatch.setattr(tf.config, "experimental", growth)
    return machine


class TestGpus:
    def test_only_those_that_are_visible_choose_the_number_format(self, gpus: dict[str, Any]) -> None:
        capability = {"gpu0": (7, 5), "gpu1": (8, 0)}
        tf.config.experimental.get_device_details = lambda gpu: {"compute_capability": capability[gpu]}
        gpus["count"] = 2
        assert compute_capabilities() == [(7, 5), (8, 0)]
        choose_gpus((1,))
        assert compute_capabilities() == [(8, 0)]
        choose_gpus(())
        assert compute_capabilities() == []

    def test_too_little_memory_is_one_line_that_says_what_to_lower(self) -> None:
        message = r"lower train\.batch_size \(now 16\).* train\.accumulate_steps \(now 1\).* or model\.patch_size"
        with pytest.raises(InputError, match=message), memory_explained(TrainConfig(batch_size=16)):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    def test_those_of_the_configuration(self, gpus: dict[str, Any]) -> None:
        gpus["count"] = 4
        choose_gpus((3, 1))
        assert gpus["visible"] == gpus["grow"] == ["gpu3", "gpu1"]

    def test_all_by_default_and_none_on_request(self, gpus: dict[str, Any]) -> None:
        gpus["count"] = 2
        choose_gpus(None)
        assert "visible" not in gpus
        assert gpus["grow"] == ["gpu0", "gpu1"]
        choose_gpus(())
        assert gpus["visible"] == []

    @pytest.mark.parametrize(
        ("count", "found"), [(0, "found no GPU that it can use"), (1, "found GPU 0 only"), (3, "found GPUs 0 to 2")]
    )
    def test_one_that_is_not_there(self, count: int, found: str, gpus: dict[str, Any]) -> None:
        gpus["count"] = count
        with pytest.raises(InputError, match=rf"train\.gpus: expected GPU 3, TensorFlow {found}"):
            choose_gpus((0, 3) if count else (3,))

    def test_one_given_twice(self) -> None:
        with pytest.raises(ValueError, match=r"expected different GPUs, found \[1, 1\]"):
            TrainConfig.model_validate({"gpus": [1, 1]})

    def test_in_yaml(self, tmp_path: Any) -> None:
        (tmp_path / "c.yaml").write_text("train: {gpus: [0, 2], all_reduce: hierarchical_copy}\n")
        options = load_config(tmp_path / "c.yaml", ["train.strategy=mirrored"]).train
        assert (options.gpus, options.all_reduce, options.strategy) == ((0, 2), "hierarchical_copy", "mirrored")


class TestStrategies:
    def test_auto_and_single_are_the_default_without_gpus(self) -> None:
        for name in ("auto", "single"):
            strategy = make_strategy(name, all_reduce="auto", cluster=None)
            assert strategy is tf.distribute.get_strategy()
            assert strategy_name(strategy) == "single"

    @pytest.mark.parametrize("all_reduce", ["auto", "reduce_to_one", "hierarchical_copy"])
    def test_mirrored_takes_all_logical_cpus_without_gpus(self, all_reduce: str, four_cpus: list[str]) -> None:
        strategy = make_strategy("mirrored", all_reduce=all_reduce, cluster=None)
        assert strategy.num_replicas_in_sync == 4
        assert strategy_name(strategy) == "mirrored"

        def add() -> Any:
            context = tf.distribute.get_replica_context()
            number = tf.cast(context.replica_id_in_sync_group, tf.float32)
            (total,) = context.all_reduce(tf.distribute.ReduceOp.SUM, [number])
            return total

        totals = strategy.experimental_local_results(tf.function(lambda: strategy.run(add))())
        assert [float(total) for total in totals] == [6.0] * 4  # 0 + 1 + 2 + 3

    def test_nccl_needs_gpus(self) -> None:
        for name in ("auto", "mirrored", "multi_worker"):
            with pytest.raises(InputError, match=r"train\.all_reduce: nccl needs GPUs, TensorFlow found none"):
                make_strategy(name, all_reduce="nccl", cluster=None)

    def test_mirrored_needs_two(self, monkeypatch: pytest.MonkeyPatch, gpus: dict[str, Any]) -> None:
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["one"] if kind == "CPU" else [])
        with pytest.raises(InputError, match="mirrored needs at least 2 GPUs, TensorFlow found no GPU; use auto"):
            make_strategy("mirrored", all_reduce="auto", cluster=None)
        gpus["count"] = 1
        with pytest.raises(InputError, match="mirrored needs at least 2 GPUs, TensorFlow found 1 GPU; use auto"):
            make_strategy("mirrored", all_reduce="auto", cluster=None)

    def test_batch_size_must_split_evenly(self) -> None:
        check_batch_size(4, 2)
        with pytest.raises(
            ValueError, match=r"train\.batch_size: expected a multiple of the 4 replicas, found 6; try 4"
        ):
            check_batch_size(6, 4)


def test_batches_are_cut_into_consecutive_parts(four_cpus: list[str]) -> None:
    strategy = mirrored_strategy(four_cpus[:2])
    asked: list[tuple[int, int]] = []

    def make(shard: tuple[int, int]) -> tf.data.Dataset:
        asked.append(shard)
        return tf.data.Dataset.range(8).batch(4, drop_remainder=True)

    batches = list(distributed_batches(strategy, make))
    parts = [[part.numpy().tolist() for part in strategy.experimental_local_results(batch)] for batch in batches]
    assert parts == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert asked == [(0, 1)]


class TestLostWorker:
    def test_is_one_line(self) -> None:
        text = (
            "Graph execution error:\nDetected at node x\nCollective ops is aborted by: Connection reset by peer\nMore"
        )
        with (
            pytest.raises(InputError, match=r"another worker has stopped .*\(Connection reset by peer\).*--resume"),
            lost_worker_explained(alone=False),
        ):
            raise tf.errors.UnavailableError(None, None, text)

    def test_other_errors_and_those_of_one_process_stay(self) -> None:
        with pytest.raises(tf.errors.UnavailableError), lost_worker_explained(alone=True):
            raise tf.errors.UnavailableError(None, None, "no")
        with pytest.raises(tf.errors.ResourceExhaustedError), lost_worker_explained(alone=False):
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")


def test_sums_are_not_regrouped() -> None:
    compile_repeatably()
    assert tf.config.optimizer.get_experimental_options()["arithmetic_optimization"] is False
    assert np.isclose(tf.function(lambda x: x + x + x)(tf.constant(0.1)), 0.3)
