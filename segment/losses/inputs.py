"""What every term does to its inputs first: check the shapes, cast, broadcast and apply the voxel weight."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import tensorflow as tf

from segment.errors import InputError

_PASS_THROUGH = ("Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "EnsureShape")
_PROBABILITIES = (
    "the loss got probabilities where it expects logits ({found}): pass the values before sigmoid or softmax"
)


@dataclass(frozen=True, eq=False)
class Voxels:
    """Inputs of the sigmoid terms, checked and ready for arithmetic.

    Attributes:
        labels: [batch, *spatial, K] in 0..1, same dtype as logits; 0 where the weight is 0.
        logits: [batch, *spatial, K], float32 or float64; 0 where the weight is 0, so that nothing there reaches the
            loss.
        weight: [batch, *spatial, 1 or K], or None when every voxel counts the same.
    """

    labels: tf.Tensor
    logits: tf.Tensor
    weight: tf.Tensor | None

    def sum(self, values: tf.Tensor) -> tf.Tensor:
        """Weighted sum over the voxels, [batch, *spatial, K] -> [batch, K]."""
        if self.weight is not None:
            values = values * self.weight
        return tf.reduce_sum(values, axis=list(range(1, values.shape.rank - 1)))

    def mean(self, values: tf.Tensor) -> tf.Tensor:
        """Weighted mean over voxels and channels, [batch, *spatial, K] -> [batch]; 0 where no voxel counts."""
        return weighted_mean(values, self.weight)


def weighted_mean(values: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
    """Mean of [batch, *spatial, K] over all but the batch axis -> [batch], 0 where an example's weights are all 0."""
    axes = list(range(1, values.shape.rank))
    if weight is None:
        return tf.reduce_mean(values, axis=axes)
    total = tf.reduce_sum(values * weight, axis=axes)
    # Adding zeros broadcasts a [.., 1] weight to the channels of the values.
    return tf.math.divide_no_nan(total, tf.reduce_sum(weight + tf.zeros_like(values), axis=axes))


def prepare(y_true: tf.Tensor, logits: tf.Tensor, weight: tf.Tensor | None) -> Voxels:
    """Checks and casts the inputs of a sigmoid term.

    Args:
        y_true: labels [batch, *spatial, K], any dtype, one channel per foreground class; [batch, *spatial] when K is 1.
        logits: [batch, *spatial, K], any float dtype. float16 and bfloat16 are computed in float32, float64 stays.
        weight: None, or [batch, *spatial], [batch, *spatial, 1] or [batch, *spatial, K], at least 0; 0 ignores a voxel.

    Raises:
        InputError: The shapes differ, the logits are not floating point, or (eagerly) a weight is negative or a label
            is outside 0..1.
        tf.errors.InvalidArgumentError: A label outside 0..1 in a graph (XLA leaves this check out).
    """
    logits = to_float(logits)
    labels = like(y_true, logits, name="labels")
    weight = broadcast_weight(weight, logits)
    if weight is not None:
        counts = weight > 0
        labels = tf.where(counts, labels, tf.zeros_like(labels))
        logits = tf.where(counts, logits, tf.zeros_like(logits))
    _check_labels(labels)
    if _looks_like_probabilities(logits, labels):
        warn_of_probabilities(logits)
    return Voxels(labels=labels, logits=logits, weight=weight)


def to_float(logits: tf.Tensor) -> tf.Tensor:
    """Casts half precision to float32 and leaves float64. Raises InputError for other dtypes and fewer than 3 axes."""
    logits = tf.convert_to_tensor(logits)
    if not logits.dtype.is_floating:
        raise InputError(f"logits: expected a floating point dtype, found {logits.dtype.name}")
    if logits.shape.rank is None or logits.shape.rank < 3:
        raise InputError(f"logits: expected [batch, *spatial, channels], found shape {logits.shape}")
    return logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)


def like(values: tf.Tensor, logits: tf.Tensor, *, name: str) -> tf.Tensor:
    """`values` in the dtype and shape of `logits`; a missing channel axis of length 1 is added.

    Raises:
        InputError: The shapes differ; names both.
    """
    values = tf.convert_to_tensor(values)
    if values.shape.rank is not None and values.shape.rank + 1 == logits.shape.rank and logits.shape[-1] == 1:
        values = values[..., tf.newaxis]
    if not values.shape.is_compatible_with(logits.shape):
        raise InputError(f"{name} {values.shape} and logits {logits.shape} differ: expected the same shape")
    return tf.cast(values, logits.dtype)


def broadcast_weight(weight: tf.Tensor | None, values: tf.Tensor) -> tf.Tensor | None:
    """The weight as [batch, *spatial, 1 or K] in the dtype of `values` [batch, *spatial, K]; None stays None.

    Raises:
        InputError: The shape does not fit, or (eagerly) a weight is negative or not a number.
    """
    if weight is None:
        return None
    weight = tf.convert_to_tensor(weight)
    shape = values.shape
    if weight.shape.rank == shape.rank - 1:
        weight = weight[..., tf.newaxis]
    fits = weight.shape.rank == shape.rank and weight.shape[:-1].is_compatible_with(shape[:-1])
    if not fits or weight.shape[-1] not in (1, shape[-1]):
        raise InputError(f"weight: expected {shape[:-1]}, with or without a channel axis, found {weight.shape}")
    weight = tf.cast(weight, values.dtype)
    if tf.executing_eagerly() and not bool(tf.reduce_all(weight >= 0)):
        raise InputError(f"weight: expected values of at least 0, found {float(tf.reduce_min(weight)):g}")
    return weight


def warn_of_probabilities(logits: tf.Tensor) -> None:
    """Warns (UserWarning) that the logits are probabilities, which would train badly without any error."""
    if tf.executing_eagerly():
        found = f"all values in {float(tf.reduce_min(logits)):.3g}..{float(tf.reduce_max(logits)):.3g}"
    else:
        found = "the output of a sigmoid or softmax"
    warnings.warn(_PROBABILITIES.format(found=found), UserWarning, stacklevel=4)


def made_by_activation(logits: tf.Tensor) -> bool:
    """Whether a graph tensor comes straight out of a sigmoid or softmax.

    In a graph the values are not known, and looking at them would cost time at each step: this looks once, while
    tracing.
    """
    operation = logits.op
    while operation.type in _PASS_THROUGH:
        operation = operation.inputs[0].op
    return operation.type in ("Sigmoid", "Softmax")


def _looks_like_probabilities(logits: tf.Tensor, labels: tf.Tensor) -> bool:
    if not tf.executing_eagerly():
        return made_by_activation(logits)
    # Logits that are all 0 are those of a network whose last layer starts at 0.
    in_range = tf.reduce_all((logits >= 0) & (logits <= 1)) & tf.reduce_any(logits > 0)
    return bool(in_range & tf.reduce_all((labels == 0) | (labels == 1)))


def _check_labels(labels: tf.Tensor) -> None:
    low, high = tf.reduce_min(labels), tf.reduce_max(labels)
    expected = "labels: expected values in 0..1, one channel per foreground class, found values in"
    if not tf.executing_eagerly():
        tf.debugging.Assert((low >= 0) & (high <= 1), [expected, low, high])
    elif not (float(low) >= 0 and float(high) <= 1):
        raise InputError(f"{expected} {float(low):g}..{float(high):g}")
