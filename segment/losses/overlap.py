"""Overlap terms for sigmoid outputs: Dice, Tversky and focal Tversky, from soft counts.

With p = sigmoid(logit), y the label and w the voxel weight, for each example and channel over its voxels:
tp = sum(w y p), fp = sum(w (1 - y) p), fn = sum(w y (1 - p)).

`smooth` decides what small things cost. At 1.0, missing a whole 3-voxel lesion costs 3 / (3 + 1) = 0.75, not 1. Near
0, an empty patch costs almost 1 for any stray probability.
"""

from __future__ import annotations

import tensorflow as tf

from segment.losses.inputs import Voxels, prepare
from segment.losses.options import checked, default

# Below this many voxels' worth of probability and label there is nothing to compare: the ratio counts as 0. Its
# square is still a float32, which keeps the gradient of the ratio finite.
_NOTHING = 1e-18


def dice(
    y_true: tf.Tensor, logits: tf.Tensor, *, smooth: float = default("dice", "smooth"), weight: tf.Tensor | None = None
) -> tf.Tensor:
    """1 - (2 tp + smooth) / (2 tp + fp + fn + smooth), mean over channels (Milletari 2016, with p for p squared).

    Args:
        y_true: labels [batch, *spatial, K] in 0..1, any dtype, one channel per foreground class.
        logits: [batch, *spatial, K], any float dtype.
        smooth: at least 0, in voxels. With 0, an example without label and without probability costs 0.
        weight: voxel weight [batch, *spatial] or with a channel axis; 0 ignores a voxel.

    Returns:
        [batch] in 0..1, float32 (float64 for float64 logits).

    Raises:
        InputError: The shapes differ, or smooth is negative.
    """
    return dice_of(prepare(y_true, logits, weight), **checked("dice", smooth=smooth))


def tversky(
    y_true: tf.Tensor,
    logits: tf.Tensor,
    *,
    fp_weight: float = default("tversky", "fp_weight"),
    fn_weight: float = default("tversky", "fn_weight"),
    smooth: float = default("tversky", "smooth"),
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """1 - (tp + smooth) / (tp + fp_weight fp + fn_weight fn + smooth), mean over channels (Salehi 2017).

    Arguments, result and errors as for `dice`; fp_weight and fn_weight are at least 0. fn_weight above fp_weight
    favours recall.
    """
    options = checked("tversky", fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth)
    return tversky_of(prepare(y_true, logits, weight), **options)


def focal_tversky(
    y_true: tf.Tensor,
    logits: tf.Tensor,
    *,
    fp_weight: float = default("focal_tversky", "fp_weight"),
    fn_weight: float = default("focal_tversky", "fn_weight"),
    gamma: float = default("focal_tversky", "gamma"),
    smooth: float = default("focal_tversky", "smooth"),
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """tversky^gamma for each channel, then the mean over channels (Abraham and Khan 2019, whose exponent is 1/gamma).

    Arguments, result and errors as for `tversky`; gamma is above 0. Below 1 it stretches the differences near a loss
    of 0.
    """
    options = checked("focal_tversky", fp_weight=fp_weight, fn_weight=fn_weight, gamma=gamma, smooth=smooth)
    return focal_tversky_of(prepare(y_true, logits, weight), **options)


def dice_of(voxels: Voxels, *, smooth: float) -> tf.Tensor:
    """`dice` of prepared inputs."""
    tp, fp, fn = soft_counts(voxels)
    return tf.reduce_mean(ratio(fp + fn, 2.0 * tp + fp + fn + smooth), axis=-1)


def tversky_of(voxels: Voxels, *, fp_weight: float, fn_weight: float, smooth: float) -> tf.Tensor:
    """`tversky` of prepared inputs."""
    return tf.reduce_mean(_tversky_by_channel(voxels, fp_weight, fn_weight, smooth), axis=-1)


def focal_tversky_of(voxels: Voxels, *, fp_weight: float, fn_weight: float, gamma: float, smooth: float) -> tf.Tensor:
    """`focal_tversky` of prepared inputs."""
    loss = _tversky_by_channel(voxels, fp_weight, fn_weight, smooth)
    # The slope of x^gamma at 0 is infinite for gamma < 1, and infinity times 0 is NaN: a perfect example has gradient
    # 0 instead.
    wrong = loss > 1e-12
    power = tf.pow(tf.where(wrong, loss, tf.ones_like(loss)), gamma)
    return tf.reduce_mean(tf.where(wrong, power, tf.zeros_like(loss)), axis=-1)


def soft_counts(voxels: Voxels) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Soft true positives, false positives and false negatives of each example and channel, three of [batch, K]."""
    probability = tf.sigmoid(voxels.logits)
    tp = voxels.sum(voxels.labels * probability)
    fp = voxels.sum((1.0 - voxels.labels) * probability)
    # sigmoid(-x) rather than 1 - sigmoid(x), which has no digits left once the prediction is nearly right.
    fn = voxels.sum(voxels.labels * tf.sigmoid(-voxels.logits))
    return tp, fp, fn


def ratio(error: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """error / total; 0 with gradient 0 where the total is nothing. This form of 1 - overlap keeps its digits near 0."""
    something = total > _NOTHING
    return tf.where(something, error / tf.where(something, total, tf.ones_like(total)), tf.zeros_like(total))


def _tversky_by_channel(voxels: Voxels, fp_weight: float, fn_weight: float, smooth: float) -> tf.Tensor:
    tp, fp, fn = soft_counts(voxels)
    error = fp_weight * fp + fn_weight * fn
    return ratio(error, tp + error + smooth)
