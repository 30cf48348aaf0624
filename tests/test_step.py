"""The step on logical CPU devices: the same weights for any number of replicas, and exact skips."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from segment.config import LossScaleConfig, OptimizerConfig
from segment.config_loss import LossConfig
from segment.losses import build_hybrid, supervised_loss
from segment.training.distribution import check_batch_size, make_strategy, mirrored_strategy
from segment.training.optimizers import make_optimizer
from segment.training.precision import LossScale
from segment.training.step import TrainStep, unscale_and_clip, weights_of

BATCH, SIZE = 4, 8
SCALE = 1024.0


def make_step(
    strategy: tf.distribute.Strategy,
    *,
    loss: LossConfig | None = None,
    scaling: bool = False,
    clip_norm: float = 12.0,
    optimizer: OptimizerConfig | None = None,
) -> TrainStep:
    """A two-layer network with weights that are the same in each call."""
    with strategy.scope():
        initial = tf.keras.initializers.HeNormal
        image = tf.keras.Input((SIZE, SIZE, 1))
        hidden = tf.keras.layers.Conv2D(4, 3, padding="same", activation="relu", kernel_initializer=initial(seed=1))
        logits = tf.keras.layers.Conv2D(1, 1, kernel_initializer=initial(seed=2))
        model = tf.keras.Model(image, logits(hidden(image)))
        hybrid = build_hybrid(loss or LossConfig())
        config = optimizer or OptimizerConfig(name="sgd", momentum=0.9)
        return TrainStep(
            strategy=strategy,
            model=model,
            hybrid=hybrid,
            optimizer=make_optimizer(
                weights_of(model), list(hybrid.trainable_variables), strategy=strategy, config=config
            ),
            loss_scale=LossScale(LossScaleConfig(initial=SCALE), scaling=scaling),
            clip_norm=clip_norm,
            batch_size=BATCH,
        )


def batches(steps: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    image = rng.normal(size=(steps, BATCH, SIZE, SIZE, 1)).astype(np.float32)
    return {"image": image, "label": (image > 1.5).astype(np.uint8)}


def run(step: TrainStep, strategy: tf.distribute.Strategy, data: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """One step for each leading entry; returns the scalars of each."""
    dataset = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(data))
    rows = [step(batch, learning_rate=0.05, share_done=0.5) for batch in dataset]
    return [{name: float(value) for name, value in row.items()} for row in rows]


def copies(step: TrainStep, strategy: tf.distribute.Strategy) -> dict[str, list[np.ndarray]]:
    """Every variable of the state as each replica holds it."""
    return {
        name: [value.numpy() for value in strategy.experimental_local_results(variable)]
        for name, variable in step.state().items()
    }


def distance(a: dict[str, list[np.ndarray]], b: dict[str, list[np.ndarray]]) -> float:
    """Largest relative distance of the weights of two states, by variable, on the first replica."""
    names = [name for name in a if name.startswith(("model/", "loss/")) and a[name][0].size]
    return max(
        np.linalg.norm(a[name][0] - b[name][0]) / max(float(np.linalg.norm(a[name][0])), 1e-30) for name in names
    )


class TestReplicas:
    @pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
    def test_one_two_and_four_replicas_agree_with_one_device(self, weighting: str, four_cpus: list[str]) -> None:
        loss = LossConfig.model_validate({"weighting": {"name": weighting}})
        data = batches(20)
        states = []
        for count in (0, 1, 2, 4):
            strategy = mirrored_strategy(four_cpus[:count]) if count else tf.distribute.get_strategy()
            step = make_step(strategy, loss=loss)
            rows = run(step, strategy, data)
            assert all(row["good"] for row in rows)
            state = copies(step, strategy)
            for values in state.values():  # mirrored means the same bits everywhere
                for value in values[1:]:
                    np.testing.assert_array_equal(values[0], value)
            states.append(state)
        for other in states[1:]:
            assert distance(states[0], other) < 1e-5
        assert (
            distance(
                states[0], copies(make_step(tf.distribute.get_strategy(), loss=loss), tf.distribute.get_strategy())
            )
            > 0.01
        )

    def test_loss_scale_changes_nothing_in_float32(self) -> None:
        strategy = tf.distribute.get_strategy()
        results = []
        for scaling in (False, True):
            step = make_step(strategy, scaling=scaling)
            rows = run(step, strategy, batches(5))
            results.append((copies(step, strategy), rows[-1]["gradient_norm"]))
        # 1024 is a power of two: scaling up and down is exact.
        assert distance(results[0][0], results[1][0]) < 1e-6
        assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


class TestSkips:
    def test_a_bad_value_on_any_one_replica_skips_the_step_on_all(self, four_cpus: list[str]) -> None:
        strategy = mirrored_strategy(four_cpus)
        step = make_step(strategy, scaling=True, loss=LossConfig.model_validate({"weighting": {"name": "uncertainty"}}))
        run(step, strategy, batches(1))  # the optimizer has moments to lose
        for replica in range(4):
            before = copies(step, strategy)
            data = batches(1)
            data["image"][0, replica, 3, 3, 0] = np.inf
            (row,) = run(step, strategy, data)
            assert row["good"] == 0
            assert row["skipped"] == replica + 1
            assert row["skipped_in_row"] == replica + 1
            after = copies(step, strategy)
            for name in after:
                if not name.startswith("loss_scale/"):
                    for old, new in zip(before[name], after[name], strict=True):
                        np.testing.assert_array_equal(old, new, err_msg=f"{name}, replica {replica}")
            assert [float(v) for v in after["loss_scale/scale"]] == [SCALE / 2 ** (replica + 1)] * 4
        (row,) = run(step, strategy, batches(1))
        assert row["good"] == 1
        assert row["skipped_in_row"] == 0
        assert np.isfinite(row["loss"])

    def test_zero_gradients_move_nothing_and_divide_by_nothing(self) -> None:
        strategy = tf.distribute.get_strategy()
        model = tf.keras.Sequential([tf.keras.Input((SIZE, SIZE, 1)), tf.keras.layers.Conv2D(1, 1, use_bias=False)])
        hybrid = build_hybrid(LossConfig())
        optimizer = make_optimizer(
            weights_of(model), [], strategy=strategy, config=OptimizerConfig(name="adamw", weight_decay=0.0)
        )
        step = TrainStep(
            strategy=strategy,
            model=model,
            hybrid=hybrid,
            optimizer=optimizer,
            loss_scale=LossScale(LossScaleConfig(), scaling=False),
            clip_norm=1.0,
            batch_size=BATCH,
        )
        before = copies(step, strategy)
        data = {name: np.zeros_like(array) for name, array in batches(1).items()}
        (row,) = run(step, strategy, data)
        assert row["gradient_norm"] == 0
        assert row["good"] == 1
        np.testing.assert_array_equal(before["model/0000"][0], copies(step, strategy)["model/0000"][0])


class TestClipping:
    def test_update_is_the_average_gradient_clipped_by_numpy(self, four_cpus: list[str]) -> None:
        strategy = mirrored_strategy(four_cpus[:2])
        plain = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0)
        clip = 0.05
        step = make_step(strategy, clip_norm=clip, optimizer=plain, scaling=True)
        twin = make_step(tf.distribute.get_strategy())
        data = batches(1)
        halves = [gradient_of(twin, data, slice(0, 2)), gradient_of(twin, data, slice(2, 4))]
        average = [(first + second) / 2 for first, second in zip(*halves, strict=True)]
        norm = np.sqrt(sum(float((gradient**2).sum()) for gradient in average))
        assert norm > 2 * clip
        before = copies(step, strategy)
        (row,) = run(step, strategy, data)
        after = copies(step, strategy)
        assert row["gradient_norm"] == pytest.approx(norm, rel=1e-5)
        for index, gradient in enumerate(average):
            moved = (before[f"model/{index:04d}"][0] - after[f"model/{index:04d}"][0]) / 0.05
            np.testing.assert_allclose(moved, gradient * clip / norm, rtol=2e-3, atol=1e-6)

    def test_hand_made(self) -> None:
        # Norm of (3, 4) is 5; scaled by 8 and clipped to 1 it is (0.6, 0.8).
        gradients, norm = unscale_and_clip(
            [tf.constant([24.0]), tf.constant([32.0])], scale=tf.constant(8.0), clip_norm=1.0
        )
        assert float(norm) == 5.0
        np.testing.assert_allclose(np.concatenate(gradients), [0.6, 0.8], rtol=1e-6)

    def test_short_gradients_and_zero_as_off_change_nothing(self) -> None:
        for clip_norm in (10.0, 0.0):
            (gradient,), _ = unscale_and_clip([tf.constant([3.0, 4.0])], scale=tf.constant(1.0), clip_norm=clip_norm)
            np.testing.assert_array_equal(gradient, [3.0, 4.0])

    @pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3e38])
    def test_norm_tells_of_any_bad_value(self, bad: float) -> None:
        _, norm = unscale_and_clip([tf.constant([1.0, bad])], scale=tf.constant(1.0), clip_norm=1.0)
        assert not np.isfinite(norm)


def gradient_of(step: TrainStep, data: dict[str, np.ndarray], part: slice) -> list[np.ndarray]:
    """The gradient of the mean loss over part of the first batch, by a tape of its own, as float64."""
    parts: Any = step
    with tf.GradientTape() as tape:
        logits = parts._model(tf.constant(data["image"][0, part]))
        loss = tf.reduce_mean(supervised_loss(parts._hybrid, tf.constant(data["label"][0, part]), logits).total)
    return [np.asarray(gradient, np.float64) for gradient in tape.gradient(loss, weights_of(parts._model))]


class TestStrategies:
    def test_auto_and_single_are_the_default_without_gpus(self) -> None:
        for name in ("auto", "single"):
            assert make_strategy(name) is tf.distribute.get_strategy()

    def test_mirrored_takes_all_logical_cpus_without_gpus(self, four_cpus: list[str]) -> None:
        assert make_strategy("mirrored").num_replicas_in_sync == 4

    def test_batch_size_must_split_evenly(self) -> None:
        check_batch_size(4, 2)
        with pytest.raises(
            ValueError, match=r"train\.batch_size: expected a multiple of the 4 replicas, found 6; try 4"
        ):
            check_batch_size(6, 4)
