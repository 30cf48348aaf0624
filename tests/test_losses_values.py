"""Values of the terms: by hand, against the oracle, and where two formulas must agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from loss_oracle import OPTIONS, SIGMOID_TERMS, SOFTMAX_TERMS, TERMS, expected, loss_of, make_example

from segment import losses

# Four voxels: labels 1, 1, 0, 0 with probabilities 3/4, 1/2, 1/4, 1/2. tp = 1.25, fp = 0.75, fn = 0.75.
LABELS = np.array([1, 1, 0, 0], np.uint8).reshape(1, 2, 2, 1)
LOGITS = np.log(np.array([3.0, 1.0, 1 / 3, 1.0], np.float32)).reshape(1, 2, 2, 1)


class TestByHand:
    @pytest.mark.parametrize(
        ("term", "options", "value"),
        [
            ("dice", {"smooth": 1.0}, 1 - 3.5 / 5),
            ("dice", {"smooth": 0.0}, 1.5 / 4),
            ("tversky", {"fp_weight": 0.3, "fn_weight": 0.7, "smooth": 1.0}, 1 - 2.25 / 3),
            ("focal_tversky", {"fp_weight": 0.3, "fn_weight": 0.7, "smooth": 1.0, "gamma": 0.5}, 0.5),
            ("binary_crossentropy", {}, (math.log(4 / 3) + math.log(2)) / 2),
            ("binary_crossentropy", {"positive_weight": 3.0}, (math.log(4 / 3) + math.log(2))),
            (
                "focal",
                {"gamma": 2.0, "positive_weight": 0.75},
                (0.75 + 0.25) * (math.log(4 / 3) / 16 + math.log(2) / 4) / 4,
            ),
        ],
    )
    def test_four_voxels(self, term: str, options: dict[str, float], value: float) -> None:
        assert getattr(losses, term)(LABELS, LOGITS, **options).numpy() == pytest.approx([value], rel=1e-6)

    def test_missing_a_whole_3_voxel_lesion_costs_three_quarters_at_smooth_1(self) -> None:
        labels = np.zeros((1, 4, 4, 4, 1), np.uint8)
        labels[0, 1, 1, :3] = 1
        missed = np.full(labels.shape, -100.0, np.float32)
        assert losses.dice(labels, missed, smooth=1.0).numpy() == pytest.approx([0.75], rel=1e-6)

    def test_an_empty_patch_costs_almost_1_for_a_stray_probability_near_smooth_0(self) -> None:
        labels = np.zeros((1, 4, 4, 4, 1), np.uint8)
        stray = np.full(labels.shape, -100.0, np.float32)
        stray[0, 2, 2, 2] = math.log(0.01 / 0.99)  # one voxel at 1%
        assert losses.dice(labels, stray, smooth=1e-5).numpy() == pytest.approx([0.01 / 0.01001], rel=1e-5)
        assert losses.dice(labels, stray, smooth=1.0).numpy() == pytest.approx([0.01 / 1.01], rel=1e-5)

    def test_boundary_is_the_mean_of_probability_times_distance(self) -> None:
        distance = np.array([-1.0, -1.0, 1.0, 2.0], np.float32).reshape(1, 2, 2, 1)
        value = losses.boundary(LABELS, LOGITS, distance=distance).numpy()
        assert value == pytest.approx([(-0.75 - 0.5 + 0.25 + 1.0) / 4], rel=1e-6, abs=1e-7)

    def test_class_weights_multiply_the_voxels_of_their_class(self) -> None:
        logits = np.zeros((1, 1, 2, 3), np.float32)  # each class has 1/3
        classes = np.array([[[0, 2]]])
        value = losses.categorical_crossentropy(classes, logits, class_weights=(1.0, 5.0, 3.0)).numpy()
        assert value == pytest.approx([(1 + 3) / 2 * math.log(3)], rel=1e-6)

    @pytest.mark.parametrize(
        ("error", "value"),
        [("mean_squared_error", (9 + 0.25) / 2), ("mean_absolute_error", 3.5 / 2), ("huber", (2.5 + 0.125) / 2)],
    )
    def test_distance_regression_is_the_error_of_keras(self, error: str, value: float) -> None:
        distance, predicted = np.zeros((1, 1, 2, 1)), np.array([3.0, -0.5], np.float32).reshape(1, 1, 2, 1)
        assert losses.distance_regression(distance, predicted, error=error).numpy() == pytest.approx([value], rel=1e-6)
        only_second = np.array([0.0, 1.0]).reshape(1, 1, 2)
        masked = losses.distance_regression(distance, predicted, error="mean_absolute_error", weight=only_second)
        assert masked.numpy() == pytest.approx([0.5], rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3], ids=["binary", "3-classes"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", [(7, 6), (5, 4, 6)], ids=["2d", "3d"])
@pytest.mark.parametrize("term", TERMS)
class TestAgainstOracle:
    def test_defaults_and_options(self, term: str, shape: tuple[int, ...], batch: int, channels: int) -> None:
        example = make_example(shape, batch=batch, channels=channels)
        defaults = {"gamma": 0.75} if term == "focal_tversky" else {}
        for options in ({}, OPTIONS[term]):
            value = loss_of(term, example, **options)
            assert value.dtype == tf.float32
            np.testing.assert_allclose(value, expected(term, example, **(defaults | options)), rtol=1e-6)

    def test_voxel_weights(self, term: str, shape: tuple[int, ...], batch: int, channels: int) -> None:
        example = make_example(shape, batch=batch, channels=channels, seed=1)
        weight = np.random.default_rng(2).choice([0.0, 0.5, 1.0], (batch, *shape, 1)).astype(np.float32)
        value = expected(term, example, weight=weight, **OPTIONS[term])
        np.testing.assert_allclose(loss_of(term, example, weight=weight, **OPTIONS[term]), value, rtol=1e-6)
        np.testing.assert_allclose(loss_of(term, example, weight=weight[..., 0], **OPTIONS[term]), value, rtol=1e-6)


class TestAgreement:
    example = make_example((6, 6, 6), batch=2, channels=2)

    def test_focal_without_focus_is_half_of_the_cross_entropy(self) -> None:
        focal = loss_of("focal", self.example, gamma=0.0, positive_weight=0.5)
        np.testing.assert_allclose(2 * focal, loss_of("binary_crossentropy", self.example), rtol=1e-6)

    @pytest.mark.parametrize("smooth", [0.0, 0.5, 3.0])
    def test_tversky_of_halves_is_dice_with_twice_the_smooth(self, smooth: float) -> None:
        tversky = loss_of("tversky", self.example, fp_weight=0.5, fn_weight=0.5, smooth=smooth)
        np.testing.assert_allclose(tversky, loss_of("dice", self.example, smooth=2 * smooth), rtol=1e-6)

    def test_focal_tversky_of_gamma_1_is_tversky(self) -> None:
        options = {"fp_weight": 0.2, "fn_weight": 0.8, "smooth": 1.0}
        focal_tversky = loss_of("focal_tversky", self.example, gamma=1.0, **options)
        np.testing.assert_allclose(focal_tversky, loss_of("tversky", self.example, **options), rtol=1e-6)

    def test_cross_entropy_is_that_of_keras(self) -> None:
        for smoothing in (0.0, 0.2):
            keras = tf.keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing, reduction="none")
            theirs = tf.reduce_mean(keras(self.example.labels.astype(np.float32), self.example.logits), axis=[1, 2, 3])
            ours = loss_of("binary_crossentropy", self.example, label_smoothing=smoothing)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    def test_focal_is_that_of_keras(self) -> None:
        keras = tf.keras.losses.BinaryFocalCrossentropy(
            from_logits=True, apply_class_balancing=True, alpha=0.75, gamma=2.0, reduction="none"
        )
        theirs = tf.reduce_mean(keras(self.example.labels.astype(np.float32), self.example.logits), axis=[1, 2, 3])
        np.testing.assert_allclose(loss_of("focal", self.example), theirs, rtol=1e-5)

    def test_categorical_cross_entropy_is_that_of_keras(self) -> None:
        keras = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
        theirs = tf.reduce_mean(keras(self.example.classes, self.example.class_logits), axis=[1, 2, 3])
        np.testing.assert_allclose(loss_of("categorical_crossentropy", self.example), theirs, rtol=1e-6)

    def test_softmax_over_two_classes_is_the_sigmoid_of_the_difference(self) -> None:
        example = make_example((6, 6, 6), batch=2, channels=1)
        difference = example.class_logits[..., 1:] - example.class_logits[..., :1]
        pairs = [("categorical_crossentropy", "binary_crossentropy", {}, {}), ("categorical_dice", "dice", {}, {})]
        pairs.append(("categorical_focal", "focal", {"gamma": 2.0, "class_weights": (0.25, 0.75)}, {}))
        for softmax, sigmoid, softmax_options, options in pairs:
            ours = loss_of(softmax, example, **softmax_options)
            theirs = loss_of(sigmoid, example, labels=example.classes, logits=difference, **options)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)

    @pytest.mark.parametrize("term", SOFTMAX_TERMS)
    def test_all_forms_of_class_labels_mean_the_same(self, term: str) -> None:
        one_hot = np.eye(3)[self.example.classes[..., 0]]
        value = loss_of(term, self.example)
        for labels in (self.example.classes[..., 0], one_hot, one_hot[..., 1:].astype(np.uint8)):
            np.testing.assert_allclose(loss_of(term, self.example, labels=labels), value, rtol=1e-7)

    @pytest.mark.parametrize("term", SIGMOID_TERMS)
    def test_a_binary_label_may_lack_its_channel_axis(self, term: str) -> None:
        example = make_example((5, 5), batch=2, channels=1)
        value = loss_of(term, example, labels=example.labels[..., 0])
        np.testing.assert_array_equal(value, loss_of(term, example))

    @pytest.mark.parametrize("term", TERMS)
    def test_an_ignored_voxel_may_hold_anything(self, term: str) -> None:
        weight = np.ones((2, 6, 6, 6, 1), np.float32)
        weight[:, 2:4, 1:3] = 0
        softmax = term in SOFTMAX_TERMS
        labels = (self.example.classes if softmax else self.example.labels).copy()
        logits = (self.example.class_logits if softmax else self.example.logits).copy()
        value = loss_of(term, self.example, weight=weight)
        labels[:, 2:4, 1:3] = 255
        logits[:, 2:4, 1:3] = np.nan
        np.testing.assert_array_equal(loss_of(term, self.example, labels=labels, logits=logits, weight=weight), value)
