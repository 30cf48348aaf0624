"""Terms from the signed distance to the lesion surface: the boundary loss, and regression by a second head."""

from __future__ import annotations

import tensorflow as tf

from segment.errors import InputError
from segment.losses.inputs import Voxels, broadcast_weight, like, prepare, to_float, weighted_mean
from segment.losses.options import checked, default

_REGRESSION = "distance_regression"


def boundary(
    y_true: tf.Tensor, logits: tf.Tensor, *, distance: tf.Tensor, weight: tf.Tensor | None = None
) -> tf.Tensor:
    """Mean over voxels and channels of sigmoid(logit) times the signed distance to the lesion surface (Kervadec 2019).

    Goes beside a term that looks at lesions: alone, a few lesion voxels' pull is lost among the background's.

    Args:
        y_true: labels [batch, *spatial, K]; only their shape is used, the distance says where the lesions are.
        logits: [batch, *spatial, K], any float dtype.
        distance: [batch, *spatial, K], negative within a lesion, usually in mm
            (`segment.data.lesion_maps.distance_map`).
        weight: voxel weight [batch, *spatial] or with a channel axis; the mean is weighted, and 0 when all weights
            are 0.

    Returns:
        [batch], float32 (float64 for float64 logits), in units of the distance. Its minimum, for a perfect
        prediction, is below 0.

    Raises:
        InputError: The shapes differ.
    """
    return boundary_of(prepare(y_true, logits, weight), distance=distance)


def boundary_of(voxels: Voxels, *, distance: tf.Tensor) -> tf.Tensor:
    """`boundary` of prepared inputs."""
    return voxels.mean(tf.sigmoid(voxels.logits) * like(distance, voxels.logits, name="distance"))


def distance_regression(
    distance: tf.Tensor,
    predicted_distance: tf.Tensor,
    *,
    error: str = default(_REGRESSION, "error"),
    delta_mm: float = default(_REGRESSION, "delta_mm"),
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mean over voxels and channels of Keras' error between two distance maps: the task of a second head.

    Args:
        distance: the true map [batch, *spatial, K], in mm.
        predicted_distance: the output of the head [batch, *spatial, K], any float dtype, in mm.
        error: "mean_squared_error", "mean_absolute_error" or "huber".
        delta_mm: above 0, where huber turns from square to linear.
        weight: voxel weight [batch, *spatial] or with a channel axis.

    Returns:
        [batch], at least 0, float32 (float64 for a float64 prediction).

    Raises:
        InputError: The shapes differ, or the error is unknown.
    """
    options = checked(_REGRESSION, error=error, delta_mm=delta_mm)
    prediction = to_float(predicted_distance)
    weight = broadcast_weight(weight, prediction)
    return distance_regression_of(distance, prediction, weight, **options)


def distance_regression_of(
    distance: tf.Tensor, prediction: tf.Tensor, weight: tf.Tensor | None, *, error: str, delta_mm: float
) -> tf.Tensor:
    """`distance_regression` of a float32 or float64 prediction and a broadcast weight."""
    distance = like(distance, prediction, name="distance")
    if weight is not None:
        distance = tf.where(weight > 0, distance, tf.zeros_like(distance))
        prediction = tf.where(weight > 0, prediction, tf.zeros_like(prediction))
    # Keras averages over the last axis: one more axis of length 1 keeps the voxels and channels apart for the
    # weighted mean.
    pair = distance[..., tf.newaxis], prediction[..., tf.newaxis]
    if error == "mean_squared_error":
        return weighted_mean(tf.keras.losses.mse(*pair), weight)
    if error == "mean_absolute_error":
        return weighted_mean(tf.keras.losses.mae(*pair), weight)
    if error == "huber":
        # Keras 2 computes huber in float32 whatever it is given.
        return weighted_mean(tf.cast(tf.keras.losses.huber(*pair, delta=delta_mm), prediction.dtype), weight)
    raise InputError(f"error: expected mean_squared_error, mean_absolute_error or huber, found {error!r}")
