"""Cross-entropy terms for sigmoid outputs, from logits by softplus: exact for any logit, never log(p + epsilon)."""

from __future__ import annotations

import tensorflow as tf

from segment.losses.inputs import Voxels, prepare
from segment.losses.options import checked, default

_NAME = "binary_crossentropy"


def binary_crossentropy(
    y_true: tf.Tensor,
    logits: tf.Tensor,
    *,
    positive_weight: float = default(_NAME, "positive_weight"),
    label_smoothing: float = default(_NAME, "label_smoothing"),
    temperature: float = default(_NAME, "temperature"),
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mean over voxels and channels of -positive_weight y log p - (1 - y) log(1 - p), p = sigmoid(logit / temperature).

    Args:
        y_true: labels [batch, *spatial, K] in 0..1, any dtype, one channel per foreground class.
        logits: [batch, *spatial, K], any float dtype.
        positive_weight: above 0, multiplies the loss of the positive voxels.
        label_smoothing: in 0..1 (excluded): y becomes y (1 - label_smoothing) + label_smoothing / 2.
        temperature: above 0, divides the logits.
        weight: voxel weight [batch, *spatial] or with a channel axis; the mean is weighted, and 0 when all weights
            are 0.

    Returns:
        [batch], at least 0, float32 (float64 for float64 logits).

    Raises:
        InputError: The shapes differ, or an option is out of range.
    """
    options = checked(_NAME, positive_weight=positive_weight, label_smoothing=label_smoothing, temperature=temperature)
    return binary_crossentropy_of(prepare(y_true, logits, weight), **options)


def focal(
    y_true: tf.Tensor,
    logits: tf.Tensor,
    *,
    gamma: float = default("focal", "gamma"),
    positive_weight: float = default("focal", "positive_weight"),
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mean over voxels and channels of w (1 - p_t)^gamma (-log p_t), p_t the probability of the true label (Lin 2017).

    w is positive_weight on positives and 1 - positive_weight on negatives. The power applies to each voxel, before
    the mean. A soft label counts as a mixture of both labels. With gamma 0 and positive_weight 0.5 this is half of
    `binary_crossentropy`.

    Arguments, result and errors as for `binary_crossentropy`; gamma is at least 0, positive_weight in 0..1.
    """
    options = checked("focal", gamma=gamma, positive_weight=positive_weight)
    return focal_of(prepare(y_true, logits, weight), **options)


def binary_crossentropy_of(
    voxels: Voxels, *, positive_weight: float, label_smoothing: float, temperature: float
) -> tf.Tensor:
    """`binary_crossentropy` of prepared inputs."""
    return voxels.mean(
        crossentropy_by_voxel(
            voxels, positive_weight=positive_weight, label_smoothing=label_smoothing, temperature=temperature
        )
    )


def crossentropy_by_voxel(
    voxels: Voxels, *, positive_weight: float, label_smoothing: float, temperature: float
) -> tf.Tensor:
    """The cross-entropy of each voxel, [batch, *spatial, K]."""
    labels, logits = voxels.labels, voxels.logits
    if label_smoothing:
        labels = labels * (1.0 - label_smoothing) + 0.5 * label_smoothing
    if temperature != 1.0:
        logits = logits / temperature
    # Two softplus instead of softplus(x) - x y, which cancels for confident voxels, and instead of |x|, whose slope
    # at 0 is wrong.
    return positive_weight * labels * tf.nn.softplus(-logits) + (1.0 - labels) * tf.nn.softplus(logits)


def focal_of(voxels: Voxels, *, gamma: float, positive_weight: float) -> tf.Tensor:
    """`focal` of prepared inputs."""
    positive = tf.nn.softplus(-voxels.logits)  # -log p
    negative = tf.nn.softplus(voxels.logits)  # -log(1 - p)
    # (1 - p_t)^gamma as exp(gamma log(1 - p_t)): a power of a probability that underflowed to 0 has no finite gradient.
    of_positives = positive_weight * voxels.labels * tf.exp(-gamma * negative) * positive
    of_negatives = (1.0 - positive_weight) * (1.0 - voxels.labels) * tf.exp(-gamma * positive) * negative
    return voxels.mean(of_positives + of_negatives)
