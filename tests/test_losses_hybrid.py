"""The hybrid loss of a network: deep supervision, terms with maps, softmax tasks, a second head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from loss_oracle import make_example

from segment import losses
from segment.config_loss import LossConfig
from segment.errors import InputError


def build(*terms: dict[str, Any] | str, weighting: str = "fixed") -> losses.Hybrid:
    sections = [{"name": term} if isinstance(term, str) else term for term in terms]
    return losses.build_hybrid(LossConfig.model_validate({"terms": sections, "weighting": {"name": weighting}}))


class TestDeepSupervision:
    labels = np.zeros((1, 8, 8, 4, 1), np.uint8)
    labels[0, 5, 2, 1] = 1
    outputs = tuple(
        np.random.default_rng(level).normal(size=(1, *shape, 1)).astype(np.float32)
        for level, shape in enumerate(((8, 8, 4), (4, 4, 4), (2, 2, 2)))
    )

    def coarse(self) -> list[np.ndarray]:
        """The labels of the three outputs: the single voxel survives in each."""
        labels = [self.labels, np.zeros((1, 4, 4, 4, 1), np.uint8), np.zeros((1, 2, 2, 2, 1), np.uint8)]
        labels[1][0, 2, 1, 1] = labels[2][0, 1, 0, 0] = 1
        return labels

    def test_levels_weigh_half_as_much_each(self) -> None:
        pairs = list(zip(self.coarse(), self.outputs, strict=True))
        levels = [float(losses.binary_crossentropy(y, x)[0]) for y, x in pairs]
        output = losses.supervised_loss(build("binary_crossentropy"), self.labels, list(self.outputs))
        assert float(output.total[0]) == pytest.approx((4 * levels[0] + 2 * levels[1] + levels[2]) / 7, rel=1e-6)
        assert float(output.statistics["loss/binary_crossentropy"]) == pytest.approx(float(output.total[0]))

    def test_an_ignored_lesion_does_not_reach_the_coarse_labels(self) -> None:
        weight = 1.0 - self.labels
        pairs = list(zip((np.zeros_like(y) for y in self.coarse()), self.outputs, strict=True))
        weights = [weight, np.ones((1, 4, 4, 4, 1)), np.ones((1, 2, 2, 2, 1))]
        levels = [float(losses.dice(y, x, weight=w)[0]) for (y, x), w in zip(pairs, weights, strict=True)]
        output = losses.supervised_loss(build("dice"), self.labels, list(self.outputs), weight=weight[..., 0])
        assert float(output.total[0]) == pytest.approx((4 * levels[0] + 2 * levels[1] + levels[2]) / 7, rel=1e-6)

    def test_terms_with_maps_look_at_the_finest_output_only(self) -> None:
        hybrid, cells = build("component_dice"), np.ones((1, 8, 8, 4, 1), np.int32)
        output = losses.supervised_loss(hybrid, self.labels, list(self.outputs), cells=cells)
        alone = losses.component_dice(self.labels, self.outputs[0], cells=cells)
        np.testing.assert_allclose(output.total, alone, rtol=1e-6)

    def test_softmax_labels_keep_the_lesion_too(self) -> None:
        logits = [np.concatenate([np.zeros_like(x), x], axis=-1) for x in self.outputs]
        softmax = losses.supervised_loss(build("categorical_crossentropy"), self.labels, logits)
        sigmoid = losses.supervised_loss(build("binary_crossentropy"), self.labels, list(self.outputs))
        np.testing.assert_allclose(softmax.total, sigmoid.total, rtol=1e-5)
        one_hot = np.concatenate([1 - self.labels, self.labels], axis=-1)
        again = losses.supervised_loss(build("categorical_crossentropy"), one_hot, logits)
        np.testing.assert_allclose(again.total, softmax.total, rtol=1e-6)

    def test_gradient_norms_are_those_of_the_finest_output(self) -> None:
        hybrid = build("binary_crossentropy", "dice", weighting="gradient_norm")
        deep = losses.supervised_loss(hybrid, self.labels, list(self.outputs)).statistics
        alone = hybrid(self.labels, self.outputs[0]).statistics
        for name in ("gradient_square/dice", "weight/dice"):
            assert float(deep[name]) == pytest.approx(float(alone[name]), rel=1e-6)

    def test_an_output_that_does_not_divide_the_labels(self) -> None:
        with pytest.raises(InputError, match=r"whose fixed shape divides the labels' \[8, 8, 4\], found \[3, 4, 4\]"):
            losses.supervised_loss(build("dice"), self.labels, [self.outputs[0], np.zeros((1, 3, 4, 4, 1), np.float32)])


class TestSecondHead:
    example = make_example((6, 5), batch=2, channels=1)

    @pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "gradient_norm"])
    def test_both_heads_learn(self, weighting: str) -> None:
        hybrid = build("dice", {"name": "distance_regression", "weight": 0.5}, weighting=weighting)
        logits, head = tf.constant(self.example.logits), tf.Variable(self.example.logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            output = hybrid(
                self.example.labels,
                logits,
                distance=self.example.distance,
                predicted_distance=tf.cast(head, tf.bfloat16),
            )
        slopes = tape.gradient(output.total, [logits, head])
        assert all(float(tf.norm(tf.cast(slope, tf.float32))) > 0 for slope in slopes)
        if weighting == "gradient_norm":
            weights = [float(output.statistics[f"weight/{name}"]) for name in ("dice", "distance_regression")]
            squares = [float(output.statistics[f"gradient_square/{n}"]) for n in ("dice", "distance_regression")]
            assert weights[0] ** 2 * squares[0] == pytest.approx(weights[1] ** 2 * squares[1], rel=1e-4)


def test_statistics_are_float32_scalars_without_gradient() -> None:
    example = make_example((6, 5), batch=2, channels=1)
    hybrid = build("binary_crossentropy", "dice", "focal", weighting="uncertainty")
    logits = tf.constant(example.logits, tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        output = hybrid(example.labels, logits)
    assert output.total.dtype == tf.float64
    assert {name.split("/")[0] for name in output.statistics} == {"loss", "weight", "sigma"}
    for value in output.statistics.values():
        assert (value.dtype, value.shape) == (tf.float32, ())
        assert tape.gradient(value, logits) is None
