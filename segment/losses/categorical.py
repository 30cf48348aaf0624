"""Softmax terms: cross-entropy, focal and Dice over classes that exclude each other.

A voxel of class c is a two-class problem with the logit m = x_c - log(sum over j != c of exp(x_j)): the probability
of its class is sigmoid(m). Cross-entropy is softplus(-m) and log(1 - p_c) is -softplus(m), both exact for any logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from segment.errors import InputError
from segment.losses.inputs import broadcast_weight, made_by_activation, to_float, warn_of_probabilities, weighted_mean
from segment.losses.options import checked, default
from segment.losses.overlap import ratio

_CROSSENTROPY, _FOCAL, _DICE = "categorical_crossentropy", "categorical_focal", "categorical_dice"


@dataclass(frozen=True, eq=False)
class ClassVoxels:
    """Inputs of the softmax terms, checked and ready for arithmetic.

    Attributes:
        one_hot: [batch, *spatial, C], same dtype as logits; class 0 is the background.
        logits: [batch, *spatial, C], float32 or float64; 0 where the weight is 0.
        weight: [batch, *spatial, 1], or None when every voxel counts the same.
    """

    one_hot: tf.Tensor
    logits: tf.Tensor
    weight: tf.Tensor | None

    def margin(self, temperature: float = 1.0) -> tf.Tensor:
        """Log-odds of the true class against all others, [batch, *spatial]."""
        logits = self.logits if temperature == 1.0 else self.logits / temperature
        others = tf.where(self.one_hot > 0, tf.constant(-float("inf"), logits.dtype), logits)
        return tf.reduce_sum(self.one_hot * logits, axis=-1) - tf.reduce_logsumexp(others, axis=-1)

    def mean(self, values: tf.Tensor, class_weights: Sequence[float] | None) -> tf.Tensor:
        """Weighted mean over voxels of values times the weight of their class, [batch, *spatial] -> [batch]."""
        if class_weights is not None:
            classes = self.logits.shape[-1]
            if len(class_weights) != classes:
                raise InputError(f"class_weights: expected {classes} values, one per class, found {len(class_weights)}")
            values = values * tf.linalg.matvec(self.one_hot, tf.constant(class_weights, values.dtype))
        return weighted_mean(values[..., tf.newaxis], self.weight)


def categorical_crossentropy(
    y_true: tf.Tensor,
    logits: tf.Tensor,
    *,
    temperature: float = default(_CROSSENTROPY, "temperature"),
    class_weights: Sequence[float] | None = default(_CROSSENTROPY, "class_weights"),
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mean over voxels of -class_weights[c] log(softmax(logits / temperature)[c]), c the voxel's class.

    Args:
        y_true: class numbers [batch, *spatial] or [batch, *spatial, 1]; or one-hot [batch, *spatial, C]; or only the
            foreground channels [batch, *spatial, C - 1]. Any dtype. Class 0 is the background.
        logits: [batch, *spatial, C], C at least 2, any float dtype.
        temperature: above 0.
        class_weights: C values of at least 0, or None for 1 each. The mean is over voxels, not over their weights.
        weight: voxel weight [batch, *spatial] or [batch, *spatial, 1]; the mean is weighted, and 0 when all weights
            are 0.

    Returns:
        [batch], at least 0, float32 (float64 for float64 logits).

    Raises:
        InputError: The shapes do not fit, or (eagerly) a label is not one of the classes.
        tf.errors.InvalidArgumentError: The same for labels in a graph. XLA has no assertions: there such a voxel
            makes NaN.
    """
    options = checked(_CROSSENTROPY, temperature=temperature, class_weights=class_weights)
    return categorical_crossentropy_of(prepare_classes(y_true, logits, weight), **options)


def categorical_focal(
    y_true: tf.Tensor,
    logits: tf.Tensor,
    *,
    gamma: float = default(_FOCAL, "gamma"),
    class_weights: Sequence[float] | None = default(_FOCAL, "class_weights"),
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mean over voxels of class_weights[c] (1 - p_c)^gamma (-log p_c), c the voxel's class (Lin 2017).

    Arguments, result and errors as for `categorical_crossentropy`; gamma is at least 0.
    """
    options = checked(_FOCAL, gamma=gamma, class_weights=class_weights)
    return categorical_focal_of(prepare_classes(y_true, logits, weight), **options)


def categorical_dice(
    y_true: tf.Tensor,
    logits: tf.Tensor,
    *,
    smooth: float = default(_DICE, "smooth"),
    background: bool = default(_DICE, "background"),
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Dice of each class from softmax probabilities, as in `dice`; mean over the classes, with or without class 0.

    Arguments, result (in 0..1) and errors as for `categorical_crossentropy`; smooth is at least 0.
    """
    options = checked(_DICE, smooth=smooth, background=background)
    return categorical_dice_of(prepare_classes(y_true, logits, weight), **options)


def categorical_crossentropy_of(
    voxels: ClassVoxels, *, temperature: float, class_weights: Sequence[float] | None
) -> tf.Tensor:
    """`categorical_crossentropy` of prepared inputs."""
    return voxels.mean(tf.nn.softplus(-voxels.margin(temperature)), class_weights)


def categorical_focal_of(voxels: ClassVoxels, *, gamma: float, class_weights: Sequence[float] | None) -> tf.Tensor:
    """`categorical_focal` of prepared inputs."""
    margin = voxels.margin()
    return voxels.mean(tf.exp(-gamma * tf.nn.softplus(margin)) * tf.nn.softplus(-margin), class_weights)


def categorical_dice_of(voxels: ClassVoxels, *, smooth: float, background: bool) -> tf.Tensor:
    """`categorical_dice` of prepared inputs."""
    axes = list(range(1, voxels.logits.shape.rank - 1))
    weight = 1.0 if voxels.weight is None else voxels.weight
    probability = tf.nn.softmax(voxels.logits) * weight
    missed = tf.sigmoid(-voxels.margin())[..., tf.newaxis] * weight  # probability of all classes but the true one
    tp = tf.reduce_sum(probability * voxels.one_hot, axis=axes)
    fp = tf.reduce_sum(probability * (1.0 - voxels.one_hot), axis=axes)
    fn = tf.reduce_sum(missed * voxels.one_hot, axis=axes)
    loss = ratio(fp + fn, 2.0 * tp + fp + fn + smooth)
    return tf.reduce_mean(loss if background else loss[:, 1:], axis=-1)


def prepare_classes(y_true: tf.Tensor, logits: tf.Tensor, weight: tf.Tensor | None) -> ClassVoxels:
    """Checks and casts the inputs of a softmax term; arguments and errors as for `categorical_crossentropy`."""
    logits = to_float(logits)
    if logits.shape[-1] is None or logits.shape[-1] < 2:
        raise InputError(
            f"softmax terms: expected logits with at least 2 channels, background included, found {logits.shape}"
        )
    weight = broadcast_weight(weight, logits)
    if weight is not None:
        if weight.shape[-1] != 1:
            raise InputError(f"weight: softmax terms expect one value per voxel, found {weight.shape}")
        logits = tf.where(weight > 0, logits, tf.zeros_like(logits))
    one_hot = tf.one_hot(class_numbers(y_true, logits.shape, weight), logits.shape[-1], dtype=logits.dtype)
    if weight is None:
        # A label that got past the assertion, as all do under XLA, has no class at all. It must not pass as a good
        # voxel.
        has_class = tf.reduce_any(one_hot > 0, axis=-1, keepdims=True)
    else:
        has_class = tf.reduce_any(one_hot > 0, axis=-1, keepdims=True) | (weight <= 0)
    one_hot = tf.where(has_class, one_hot, tf.constant(float("nan"), logits.dtype))
    if _looks_like_probabilities(logits):
        warn_of_probabilities(logits)
    return ClassVoxels(one_hot=one_hot, logits=logits, weight=weight)


def class_numbers(y_true: tf.Tensor, shape: tf.TensorShape, weight: tf.Tensor | None) -> tf.Tensor:
    """Class numbers int32 [batch, *spatial] from any form of label that `categorical_crossentropy` takes.

    Args:
        y_true: the labels.
        shape: of the logits, [batch, *spatial, C].
        weight: [batch, *spatial, 1] or None; labels are not checked where it is 0.

    Raises:
        InputError: The shapes do not fit, or (eagerly) a label is not one of the classes.
    """
    labels, classes = tf.convert_to_tensor(y_true), shape[-1]
    if labels.shape.rank == shape.rank - 1:
        labels = labels[..., tf.newaxis]
    fits = labels.shape.rank == shape.rank and labels.shape[:-1].is_compatible_with(shape[:-1])
    if not fits or labels.shape[-1] not in (1, classes - 1, classes):
        raise InputError(
            f"labels {y_true.shape} and logits {shape} differ: expected {shape[:-1]} class numbers, or {shape}"
        )
    counts = tf.ones_like(labels, tf.bool) if weight is None else (weight > 0) | tf.zeros_like(labels, tf.bool)
    if labels.shape[-1] == 1:
        numbers = tf.cast(labels, tf.int32)[..., 0]
        _require_range(labels, counts, classes)
        return numbers
    channels = tf.where(counts, tf.cast(labels, tf.float32), 0.0)
    total = tf.reduce_sum(channels, axis=-1)
    if tf.executing_eagerly():
        _check_one_hot(channels, total, tf.reduce_any(counts, axis=-1), whole=labels.shape[-1] == classes)
    number = tf.argmax(channels, axis=-1, output_type=tf.int32)
    return number if labels.shape[-1] == classes else tf.where(total > 0, number + 1, 0)


def _require_range(labels: tf.Tensor, counts: tf.Tensor, classes: int) -> None:
    values = tf.where(counts, tf.cast(labels, tf.float32), 0.0)
    low, high = tf.reduce_min(values), tf.reduce_max(values)
    expected = f"labels: expected class numbers 0..{classes - 1}"
    if tf.executing_eagerly():
        if float(low) < 0 or float(high) > classes - 1 or not bool(tf.reduce_all(values == tf.round(values))):
            raise InputError(f"{expected}, found values in {float(low):g}..{float(high):g}")
        return
    tf.debugging.Assert((low >= 0) & (high <= classes - 1), [expected + ", found values in", low, high])


def _check_one_hot(channels: tf.Tensor, total: tf.Tensor, counts: tf.Tensor, *, whole: bool) -> None:
    binary = tf.reduce_all((channels == 0) | (channels == 1))
    sums = tf.reduce_all(~counts | (total == 1) | ((total == 0) & (not whole)))
    if not bool(binary & sums):
        low, high = float(tf.reduce_min(total)), float(tf.reduce_max(total))
        raise InputError(
            f"labels: expected one channel of each voxel to be 1 and the others 0, found sums of {low:g}..{high:g}"
        )


def _looks_like_probabilities(logits: tf.Tensor) -> bool:
    if not tf.executing_eagerly():
        return made_by_activation(logits)
    sums = tf.reduce_sum(logits, axis=-1)
    return bool(tf.reduce_all((logits >= 0) & (logits <= 1)) & tf.reduce_all(tf.abs(sums - 1.0) < 1e-2))
