"""Gradients: against finite differences in float64, and finite with the right sign at the extremes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from loss_oracle import OPTIONS, SOFTMAX_TERMS, TERMS, Example, loss_of, make_example

from segment import losses
from segment.config_loss import LossConfig

WEIGHTINGS = {
    "fixed": {},
    "schedule": {"points": [{"share": 0.0, "weights": {"dice": 0.2}}, {"share": 1.0, "weights": {"dice": 2.0}}]},
    "uncertainty": {},
    "gradient_norm": {},
    "dynamic_average": {"period_steps": 1},
    "recall_feedback": {},
}


def gradient(function: Callable[[tf.Tensor], tf.Tensor], logits: np.ndarray | tf.Tensor) -> np.ndarray:
    variable = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        total = tf.reduce_sum(function(variable))
    return tf.cast(tape.gradient(total, variable), tf.float64).numpy()


def finite_differences(
    function: Callable[[np.ndarray], tf.Tensor], logits: np.ndarray, step: float = 1e-6
) -> np.ndarray:
    """Central differences of all logits of one example [1, ...]; each perturbed copy is an example of one batch."""
    size = logits.size
    steps = step * np.eye(size).reshape(size, *logits.shape[1:])
    values = function(np.concatenate([logits + steps, logits - steps])).numpy()
    return ((values[:size] - values[size:]) / (2 * step)).reshape(logits.shape)


def repeated(example: Example, times: int) -> Example:
    return Example(**{name: np.repeat(value, times, axis=0) for name, value in vars(example).items()})


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 3)], ids=["2d", "3d"])
@pytest.mark.parametrize("term", TERMS)
def test_gradient_is_that_of_finite_differences(term: str, shape: tuple[int, ...]) -> None:
    example = make_example(shape, batch=1, channels=2)
    logits = (example.class_logits if term in SOFTMAX_TERMS else example.logits).astype(np.float64)
    many = repeated(example, 2 * logits.size)
    weight = np.random.default_rng(0).choice([0.0, 0.5, 1.0], (1, *shape, 1))
    value = loss_of(term, example, logits=logits, weight=weight, **OPTIONS[term])
    assert value.dtype == tf.float64
    found = gradient(lambda x: loss_of(term, example, logits=x, weight=weight, **OPTIONS[term]), logits)
    weights = np.repeat(weight, 2 * logits.size, axis=0)
    numeric = finite_differences(lambda x: loss_of(term, many, logits=x, weight=weights, **OPTIONS[term]), logits)
    np.testing.assert_allclose(found, numeric, rtol=1e-5, atol=1e-9)
    assert np.abs(found).max() > 1e-4


def test_gradient_of_the_distance_head() -> None:
    example = make_example((4, 3), batch=1, channels=2)
    head = example.logits.astype(np.float64)
    off = head - example.distance
    for error, slope in {
        "mean_squared_error": 2 * off,
        "mean_absolute_error": np.sign(off),
        "huber": np.clip(off, -1.0, 1.0),  # delta_mm 1
    }.items():
        found = gradient(lambda x, error=error: losses.distance_regression(example.distance, x, error=error), head)
        np.testing.assert_allclose(found, slope / off.size, rtol=1e-6)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_gradient_through_each_weighting(name: str) -> None:
    terms = [{"name": "binary_crossentropy"}, {"name": "dice", "weight": 0.5}, {"name": "focal", "weight": 2.0}]
    config = LossConfig.model_validate({"terms": terms, "weighting": {"name": name, **WEIGHTINGS[name]}})
    hybrid = losses.build_hybrid(config)
    example = make_example((4, 3), batch=1, channels=2)
    logits = example.logits.astype(np.float64)
    for share in (0.2, 0.3, 0.4):  # after these all weights stand on state, and none depends on the logits
        hybrid.update(hybrid(example.labels, logits * (1 + share)).statistics, share)
    hybrid.on_validation({"micro": {"small_lesion_recall": 0.1, "fp_per_scan": 0.0}})
    many = np.repeat(example.labels, 2 * logits.size, axis=0)
    found = gradient(lambda x: hybrid(example.labels, x).total, logits)
    numeric = finite_differences(lambda x: hybrid(many, x).total, logits)
    np.testing.assert_allclose(found, numeric, rtol=1e-5, atol=1e-9)


def test_gradient_of_the_log_variances() -> None:
    config = LossConfig.model_validate({"weighting": {"name": "uncertainty"}})
    hybrid = losses.build_hybrid(config)
    example = make_example((4, 3), batch=1, channels=2)
    (variance,) = hybrid.trainable_variables
    start = np.array([0.3, -0.2, 0.7])
    variance.assign(start)
    with tf.GradientTape() as tape:
        output = hybrid(example.labels, example.logits.astype(np.float64))
    terms = [float(output.statistics[f"loss/{name}"]) for name in ("binary_crossentropy", "dice", "focal")]
    # d/ds of exp(-s) L + s / 2
    np.testing.assert_allclose(tape.gradient(output.total, variance), 0.5 - np.exp(-start) * terms, rtol=1e-5)


def extreme(term: str, scene: str) -> tuple[np.ndarray, np.ndarray, Example, np.ndarray | None]:
    """Labels, logits, the example they replace parts of, and a voxel weight."""
    example = make_example((5, 5), batch=2, channels=2)
    softmax = term in SOFTMAX_TERMS
    labels = (example.classes if softmax else example.labels).copy()
    logits = (example.class_logits if softmax else example.logits).copy()
    weight = None
    if scene in ("background", "foreground"):
        labels[:] = scene == "foreground"
        inside = -1 if scene == "foreground" else 1
        example = Example(**(vars(example) | {"distance": np.full_like(example.distance, 5 * inside)}))
        example = Example(**(vars(example) | {"cells": np.full_like(example.cells, scene == "foreground")}))
    elif scene == "empty-mask":
        weight = np.zeros((2, 5, 5, 1), np.float32)
    elif scene == "noise":
        labels = np.random.default_rng(5).integers(0, 2, labels.shape).astype(labels.dtype)
    elif scene.startswith("+-"):
        logits = np.where(np.random.default_rng(6).random(logits.shape) < 0.5, -1, 1) * np.float32(scene[2:])
    return labels, logits, example, weight


SCENES = ["background", "foreground", "empty-mask", "noise", "+-1e4", "+-65504"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("term", TERMS)
def test_loss_and_gradient_are_finite_with_the_right_sign_at_extremes(term: str, scene: str, dtype: str) -> None:
    labels, logits, example, weight = extreme(term, scene)
    cast = tf.cast(logits, dtype)
    assert np.isfinite(tf.cast(cast, tf.float64)).all()

    def function(x: tf.Tensor) -> tf.Tensor:
        return loss_of(term, example, logits=x, labels=labels, weight=weight)

    value, slope = function(cast), gradient(function, cast)
    assert value.dtype == tf.float32
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()
    if scene == "empty-mask":
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_array_equal(slope, 0)
        return
    assert (toward_truth(term, slope, labels, example) <= 0).all()


def toward_truth(term: str, slope: np.ndarray, labels: np.ndarray, example: Example) -> np.ndarray:
    """The slope along each logit's way to its label: of the true class for softmax terms, else of every channel."""
    if term in SOFTMAX_TERMS:
        return np.take_along_axis(slope, labels, axis=-1)
    inside = example.distance < 0 if term == "boundary" else labels == 1
    return np.where(inside, slope, -slope)


@pytest.mark.parametrize("term", TERMS)
def test_from_logits_of_0_every_voxel_moves_to_its_label(term: str) -> None:
    labels, logits, example, _ = extreme(term, "usual")
    slope = gradient(lambda x: loss_of(term, example, logits=x, labels=labels), np.zeros_like(logits))
    assert (toward_truth(term, slope, labels, example) < 0).all()


@pytest.mark.parametrize("term", ["binary_crossentropy", "focal", "component_dice", "categorical_crossentropy"])
def test_a_confident_mistake_still_has_a_slope(term: str) -> None:
    labels, logits, example, _ = extreme(term, "+-1e4")
    slope = gradient(lambda x: loss_of(term, example, logits=x, labels=labels), logits)
    if term in SOFTMAX_TERMS:
        true = np.eye(3, dtype=bool)[labels[..., 0]]
        wrong = true & (logits < logits.max(-1, keepdims=True))
    else:
        wrong = (labels == 1) & (logits < 0)
    assert wrong.any()
    assert (slope[wrong] < -1e-5).all()
