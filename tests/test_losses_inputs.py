"""Bad input to the losses: each message shows both sides."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf
from loss_oracle import SIGMOID_TERMS, SOFTMAX_TERMS, TERMS, loss_of, make_example

from segment import losses
from segment.config_loss import LossConfig
from segment.errors import InputError

EXAMPLE = make_example((5, 4), batch=2, channels=2)
PROBABILITIES = "probabilities where it expects logits"


class TestShapes:
    @pytest.mark.parametrize("term", TERMS)
    def test_labels_of_another_shape(self, term: str) -> None:
        labels = np.zeros((2, 5, 3, 2), np.uint8)
        with pytest.raises(InputError, match=r"labels \(2, 5, 3, 2\) and logits \(2, 5, 4, [23]\) differ"):
            loss_of(term, EXAMPLE, labels=labels)

    def test_weight_of_another_shape(self) -> None:
        with pytest.raises(InputError, match=r"weight: expected \(2, 5, 4\).*found \(2, 5, 5, 1\)"):
            loss_of("dice", EXAMPLE, weight=np.ones((2, 5, 5)))

    def test_maps_of_another_shape(self) -> None:
        with pytest.raises(InputError, match=r"cells \(2, 5, 4, 1\) and logits \(2, 5, 4, 2\) differ"):
            losses.component_dice(EXAMPLE.labels, EXAMPLE.logits, cells=EXAMPLE.cells[..., :1])
        with pytest.raises(InputError, match=r"distance \(2, 5, 4, 1\) and logits \(2, 5, 4, 2\) differ"):
            losses.boundary(EXAMPLE.labels, EXAMPLE.logits, distance=EXAMPLE.distance[..., :1])

    def test_logits_without_spatial_axes_or_of_integers(self) -> None:
        with pytest.raises(InputError, match=r"expected \[batch, \*spatial, channels\], found shape \(3, 2\)"):
            losses.dice(np.zeros((3, 2)), np.zeros((3, 2), np.float32))
        with pytest.raises(InputError, match="expected a floating point dtype, found int32"):
            losses.dice(np.zeros((1, 3, 2)), np.zeros((1, 3, 2), np.int32))

    def test_softmax_needs_two_channels(self) -> None:
        with pytest.raises(InputError, match=r"at least 2 channels, background included, found \(1, 3, 3, 1\)"):
            losses.categorical_dice(np.zeros((1, 3, 3)), np.zeros((1, 3, 3, 1), np.float32))

    def test_class_weights_of_another_length(self) -> None:
        with pytest.raises(InputError, match="class_weights: expected 3 values, one per class, found 2"):
            loss_of("categorical_crossentropy", EXAMPLE, class_weights=(1.0, 2.0))


class TestValues:
    @pytest.mark.parametrize(
        ("term", "options", "text"),
        [
            ("focal", {"gamma": -1.0}, "focal: gamma: input should be greater than or equal to 0, found -1.0"),
            ("focal", {"positive_weight": 1.5}, "focal: positive_weight: input should be less than or equal to 1"),
            ("dice", {"smooth": -0.1}, "dice: smooth: .* found -0.1"),
            ("tversky", {"fn_weight": -1.0}, "tversky: fn_weight: .* found -1.0"),
            ("focal_tversky", {"gamma": 0.0}, "focal_tversky: gamma: input should be greater than 0"),
            ("binary_crossentropy", {"temperature": 0.0}, "temperature: input should be greater than 0"),
            ("binary_crossentropy", {"label_smoothing": 1.0}, "label_smoothing: input should be less than 1"),
            ("component_dice", {"max_components": 0}, "max_components: .* found 0"),
            ("categorical_crossentropy", {"class_weights": (1.0, -1.0, 1.0)}, "class_weights.1: .* found -1.0"),
        ],
    )
    def test_options_out_of_range(self, term: str, options: dict, text: str) -> None:
        with pytest.raises(InputError, match=text):
            loss_of(term, EXAMPLE, **options)

    def test_an_unknown_error_of_the_distance_head(self) -> None:
        with pytest.raises(InputError, match=r"error: input should be 'mean_squared_error', .* found 'mse'"):
            losses.distance_regression(EXAMPLE.distance, EXAMPLE.logits, error="mse")

    @pytest.mark.parametrize("term", TERMS)
    def test_negative_voxel_weight(self, term: str) -> None:
        with pytest.raises(InputError, match="weight: expected values of at least 0, found -1"):
            loss_of(term, EXAMPLE, weight=-np.ones((2, 5, 4)))

    @pytest.mark.parametrize("term", SOFTMAX_TERMS)
    @pytest.mark.parametrize("bad", [3, -1])
    def test_class_numbers_outside_the_classes(self, term: str, bad: int) -> None:
        labels = EXAMPLE.classes.copy()
        labels[1, 2, 2] = bad
        text = rf"expected class numbers 0..2, found values in {min(bad, 0)}..{max(bad, 2)}"
        with pytest.raises(InputError, match=text):
            loss_of(term, EXAMPLE, labels=labels)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected class numbers 0..2, found values in"):
            tf.function(lambda y: loss_of(term, EXAMPLE, labels=y))(tf.constant(labels))
        under_xla = tf.function(lambda y: loss_of("categorical_crossentropy", EXAMPLE, labels=y), jit_compile=True)
        assert np.isnan(under_xla(tf.constant(labels))[1])  # no assertions there: never a good-looking number

    @pytest.mark.parametrize("term", SIGMOID_TERMS)
    def test_class_numbers_given_to_a_sigmoid_term(self, term: str) -> None:
        labels = 2 * EXAMPLE.labels
        with pytest.raises(InputError, match=r"expected values in 0..1, one channel per .* found values in 0..2"):
            loss_of(term, EXAMPLE, labels=labels)
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected values in 0..1"):
            tf.function(lambda y: loss_of(term, EXAMPLE, labels=y))(tf.constant(labels))

    def test_one_hot_labels_that_are_none(self) -> None:
        with pytest.raises(InputError, match=r"one channel of each voxel to be 1 and the others 0, found sums of 2..2"):
            loss_of("categorical_dice", EXAMPLE, labels=np.full((2, 5, 4, 3), 2 / 3, np.float32))


class TestProbabilities:
    @pytest.mark.parametrize("term", TERMS)
    def test_warns_eagerly_of_values_in_0_to_1(self, term: str) -> None:
        softmax = term in SOFTMAX_TERMS
        logits = tf.nn.softmax(EXAMPLE.class_logits) if softmax else tf.sigmoid(EXAMPLE.logits)
        with pytest.warns(UserWarning, match=PROBABILITIES):
            loss_of(term, EXAMPLE, logits=logits)

    @pytest.mark.parametrize("term", TERMS)
    def test_warns_once_while_a_graph_is_traced(self, term: str) -> None:
        softmax = term in SOFTMAX_TERMS
        activation = tf.nn.softmax if softmax else tf.sigmoid
        graph = tf.function(lambda x: loss_of(term, EXAMPLE, logits=tf.cast(activation(x), tf.float32)))
        logits = tf.constant(EXAMPLE.class_logits if softmax else EXAMPLE.logits)
        with pytest.warns(UserWarning, match=PROBABILITIES):
            graph(logits)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            graph(logits + 1.0)

    @pytest.mark.parametrize("logits", [0.0, -1.0, 1.5])
    def test_is_silent_for_logits(self, logits: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss_of("dice", EXAMPLE, logits=np.full(EXAMPLE.labels.shape, logits, np.float32))

    def test_the_warning_points_at_the_caller(self) -> None:
        with pytest.warns(UserWarning, match=PROBABILITIES) as caught:
            losses.dice(EXAMPLE.labels, tf.sigmoid(EXAMPLE.logits))
        assert caught[0].filename == __file__


class TestHybrid:
    @pytest.mark.parametrize(
        ("term", "missing"),
        [("component_dice", "cells"), ("boundary", "distance"), ("distance_regression", "distance")],
    )
    def test_a_term_without_its_map(self, term: str, missing: str) -> None:
        hybrid = losses.build_hybrid(LossConfig.model_validate({"terms": [{"name": "dice"}, {"name": term}]}))
        assert missing in hybrid.maps
        # AutoGraph would replace any error of one's own by a StagingError, so a step of one's own goes without it.
        for call in (hybrid, tf.function(hybrid, autograph=False)):
            with pytest.raises(InputError, match=f"loss term {term}: expected the tensor '{missing}', found None"):
                call(tf.constant(EXAMPLE.labels), tf.constant(EXAMPLE.logits))
