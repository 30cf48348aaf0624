"""Labels and weights for the coarser outputs of deep supervision."""

from __future__ import annotations

import tensorflow as tf

from segment.errors import InputError
from segment.losses.categorical import class_numbers


def level_shares(levels: int) -> list[float]:
    """Weights 1, 1/2, 1/4 ... of the outputs, finest first, scaled to sum 1."""
    return [0.5**level / (2.0 - 2.0 * 0.5**levels) for level in range(levels)]


def coarse_labels(y_true: tf.Tensor, logits: tf.Tensor, weight: tf.Tensor | None, *, softmax: bool) -> tf.Tensor:
    """Labels of a coarser output: a coarse voxel has the label when any of its fine voxels has it.

    Args:
        y_true: labels in any form that the terms take, [batch, *spatial, ...].
        logits: the coarser output [batch, *coarse, channels].
        weight: voxel weight of the fine grid; labels of ignored voxels do not count.
        softmax: whether classes exclude each other. Then the highest class number wins, and the background never does.

    Returns:
        float32 [batch, *coarse, K], or class numbers [batch, *coarse, 1] for softmax.

    Raises:
        InputError: The coarse shape does not divide the fine one.
    """
    labels = _with_channel(y_true, logits)
    if weight is not None:
        weight = _with_channel(weight, logits)
        labels = tf.where(weight > 0, labels, tf.zeros_like(labels))
    if softmax:
        fine = tf.TensorShape([*labels.shape[:-1], logits.shape[-1]])
        labels = class_numbers(labels, fine, None)[..., tf.newaxis]
    return max_pool_to(labels, logits)


def max_pool_to(values: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Max-pools [batch, *spatial] or [batch, *spatial, channels] to the spatial shape of coarser logits, as float32.

    Raises:
        InputError: The coarse shape does not divide the fine one.
    """
    values = _with_channel(values, logits)
    fine, coarse = values.shape[1:-1].as_list(), logits.shape[1:-1].as_list()
    if None in fine + coarse or any(a % b for a, b in zip(fine, coarse, strict=True)):
        raise InputError(
            f"deep supervision: expected outputs whose fixed shape divides the labels' {fine}, found {coarse}"
        )
    factors = [a // b for a, b in zip(fine, coarse, strict=True)]
    return tf.nn.max_pool(tf.cast(values, tf.float32), ksize=factors, strides=factors, padding="VALID")


def _with_channel(values: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    return values[..., tf.newaxis] if values.shape.rank == logits.shape.rank - 1 else values
