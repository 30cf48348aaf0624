"""The step on logical CPU devices: the same weights for any number of replicas, and exact skips."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from step_helpers import BATCH, SCALE, SIZE, batches, copies, make_step, require_same_bits, run, weights

from segment.config import OptimizerConfig
from segment.config_loss import LossConfig
from segment.losses import supervised_loss
from segment.training.distribution import mirrored_strategy
from segment.training.step import unscale_and_clip, weights_of


def tiny_model() -> tf.keras.Model:
    """One kernel of one weight."""
    return tf.keras.Sequential([tf.keras.Input((SIZE, SIZE, 1)), tf.keras.layers.Conv2D(1, 1, use_bias=False)])


class TestScale:
    def test_loss_scale_changes_nothing_in_float32(self) -> None:
        strategy = tf.distribute.get_strategy()
        results = []
        for scaling in (False, True):
            # L2 is not scaled with the loss, but as if it had been.
            optimizer = OptimizerConfig(name="sgd", momentum=0.9, decay="l2", weight_decay=0.1)
            step = make_step(strategy, scaling=scaling, optimizer=optimizer)
            rows = run(step, strategy, batches(5))
            results.append((weights(copies(step, strategy)), rows[-1]["gradient_norm"]))
        # 1024 is a power of two: scaling up and down is exact.
        np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6, atol=1e-8)
        assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)


class TestSkips:
    @pytest.mark.parametrize(("replicas", "accumulate_steps"), [(4, 1), (1, 4), (2, 2)])
    def test_one_bad_patch_anywhere_skips_the_step_everywhere(
        self, replicas: int, accumulate_steps: int, four_cpus: list[str]
    ) -> None:
        strategy = mirrored_strategy(four_cpus[:replicas])
        step = make_step(
            strategy,
            scaling=True,
            loss=LossConfig.model_validate({"weighting": {"name": "uncertainty"}}),
            optimizer=OptimizerConfig(name="adamw", weight_decay=0.1),
            batch_size=BATCH // accumulate_steps,
            accumulate_steps=accumulate_steps,
            ema_decay=0.9,
        )
        run(step, strategy, batches(1))  # the optimizer has moments to lose
        for patch in range(BATCH):
            before = copies(step, strategy)
            data = batches(1)
            data["image"][0, patch, 3, 3, 0] = np.inf
            (row,) = run(step, strategy, data)
            assert (row["good"], row["skipped"], row["skipped_in_row"]) == (0, patch + 1, patch + 1)
            after = copies(step, strategy)
            assert {name.split("/")[0] for name in after} == {"model", "loss", "optimizer", "loss_scale", "average"}
            require_same_bits(before, after, message=f"patch {patch}")
            assert [float(v) for v in after["loss_scale/scale"]] == [SCALE / 2 ** (patch + 1)] * replicas
        (row,) = run(step, strategy, batches(1))
        assert (row["good"], row["skipped_in_row"]) == (1, 0)
        assert np.isfinite(row["loss"])
        moved = copies(step, strategy)
        for name in ("model/0000", "average/0000", "optimizer/0/0000", "loss/0000"):
            assert (moved[name][0] != after[name][0]).any(), name

    @pytest.mark.parametrize("name", ["adamw", "sgd"])
    def test_zero_gradients_move_nothing_and_divide_by_nothing(self, name: str) -> None:
        strategy = tf.distribute.get_strategy()
        step = make_step(
            strategy, model=tiny_model, optimizer=OptimizerConfig(name=name, weight_decay=0.0), clip_norm=1.0
        )
        before = copies(step, strategy)
        data = {name: np.zeros_like(array) for name, array in batches(1).items()}
        (row,) = run(step, strategy, data)
        assert (row["gradient_norm"], row["good"]) == (0, 1)
        np.testing.assert_array_equal(before["model/0000"][0], copies(step, strategy)["model/0000"][0])


class TestL2:
    def test_is_part_of_loss_gradient_and_clipping_but_not_for_biases(self) -> None:
        strategy = tf.distribute.get_strategy()
        optimizer = OptimizerConfig(name="sgd", momentum=0.0, decay="l2", weight_decay=0.5)
        step = make_step(strategy, optimizer=optimizer, clip_norm=0.0)
        before = copies(step, strategy)
        average = gradient_of(step, batches(1), slice(0, 4))
        (row,) = run(step, strategy, batches(1))
        after = copies(step, strategy)
        kernels = [np.float64(before[f"model/{index:04d}"][0]) for index in (0, 2)]
        penalty = 0.25 * sum((kernel**2).sum() for kernel in kernels)
        names = ("binary_crossentropy", "dice", "focal")
        terms = sum(row[f"loss/{name}"] * row[f"weight/{name}"] for name in names)
        assert row["loss/l2"] == pytest.approx(penalty, rel=1e-5)
        assert row["loss"] == pytest.approx(terms + penalty, rel=1e-5)
        wanted = [average[0] + 0.5 * kernels[0], average[1], average[2] + 0.5 * kernels[1], average[3]]
        assert row["gradient_norm"] == pytest.approx(np.sqrt(sum((g**2).sum() for g in wanted)), rel=1e-5)
        for index, gradient in enumerate(wanted):
            moved = (before[f"model/{index:04d}"][0] - after[f"model/{index:04d}"][0]) / 0.05
            np.testing.assert_allclose(moved, gradient, rtol=2e-3, atol=2e-6)


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


def gradient_of(step: Any, data: dict[str, np.ndarray], part: slice) -> list[np.ndarray]:
    """The gradient of the mean loss over part of the first batch, by a tape of its own, as float64."""
    with tf.GradientTape() as tape:
        logits = step._model(tf.constant(data["image"][0, part]))
        loss = tf.reduce_mean(supervised_loss(step.hybrid, tf.constant(data["label"][0, part]), logits).total)
    return [np.asarray(gradient, np.float64) for gradient in tape.gradient(loss, weights_of(step._model))]
