"""The lesion-wise term: every lesion has the same say, whatever its size."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from segment.errors import InputError
from segment.losses.crossentropy import crossentropy_by_voxel
from segment.losses.inputs import Voxels, prepare
from segment.losses.options import checked, default
from segment.losses.overlap import ratio

_NAME = "component_dice"


def component_dice(
    y_true: tf.Tensor,
    logits: tf.Tensor,
    *,
    cells: tf.Tensor,
    smooth: float = default(_NAME, "smooth"),
    max_components: int = default(_NAME, "max_components"),
    weight: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mean over lesions of Dice + cross-entropy within the lesion's Voronoi cell (CC-DiceCE, arXiv 2511.17146).

    The cell of a lesion is all voxels nearer to it than to any other lesion, so a false positive counts against its
    nearest lesion. A patch without lesion is one cell; only its cross-entropy counts, because Dice there is the
    constant 1.

    Args:
        y_true: labels [batch, *spatial, K] in 0..1, any dtype, one channel per foreground class.
        logits: [batch, *spatial, K], any float dtype.
        cells: integers [batch, *spatial, K], or [batch, *spatial] when K is 1: 1..n is the cell of a lesion, 0
            everywhere when the patch has none (`segment.data.lesion_maps.cell_map`).
        smooth: at least 0, in voxels, as in `dice`. Near 0, a lesion's size does not matter.
        max_components: lesions told apart per patch and channel; further ones share cells, so no voxel is lost.
        weight: voxel weight [batch, *spatial] or with a channel axis; cells without weight do not count.

    Returns:
        [batch], at least 0, float32 (float64 for float64 logits); the mean over the K channels.

    Raises:
        InputError: The shapes differ.
    """
    options = checked(_NAME, smooth=smooth, max_components=max_components)
    return component_dice_of(prepare(y_true, logits, weight), cells=cells, **options)


def component_dice_of(voxels: Voxels, *, cells: tf.Tensor, smooth: float, max_components: int) -> tf.Tensor:
    """`component_dice` of prepared inputs."""
    labels, probability = voxels.labels, tf.sigmoid(voxels.logits)
    cell_sum = _cell_sum(cells, voxels.logits.shape, max_components)
    weight = tf.ones_like(probability) if voxels.weight is None else voxels.weight + tf.zeros_like(probability)
    size = cell_sum(weight)
    tp = cell_sum(weight * labels * probability)
    fp = cell_sum(weight * (1.0 - labels) * probability)
    fn = cell_sum(weight * labels * tf.sigmoid(-voxels.logits))
    by_voxel = crossentropy_by_voxel(voxels, positive_weight=1.0, label_smoothing=0.0, temperature=1.0)
    crossentropy = tf.math.divide_no_nan(cell_sum(weight * by_voxel), size)
    overlap = tf.where(tp + fn > 0, ratio(fp + fn, 2.0 * tp + fp + fn + smooth), tf.zeros_like(fp))
    loss = overlap + crossentropy  # [batch, K, cells]
    present = tf.cast(size > 0, loss.dtype)
    by_channel = tf.math.divide_no_nan(tf.reduce_sum(loss * present, axis=-1), tf.reduce_sum(present, axis=-1))
    return tf.reduce_mean(by_channel, axis=-1)


def _cell_sum(cells: tf.Tensor, shape: tf.TensorShape, max_components: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function that sums [batch, *spatial, K] over the voxels of each cell -> [batch, K, max_components + 1]."""
    cells = tf.cast(tf.convert_to_tensor(cells), tf.int32)
    if cells.shape.rank == shape.rank - 1 and shape[-1] == 1:
        cells = cells[..., tf.newaxis]
    if not cells.shape.is_compatible_with(shape):
        raise InputError(f"cells {cells.shape} and logits {shape} differ: expected the same shape")
    cells = tf.where(cells > 0, (cells - 1) % max_components + 1, 0)
    # Each slab along the first spatial axis is summed on its own first: a float32 running sum over a whole patch would
    # lose digits, and on a GPU all voxels of a large cell would wait for one address. The number of segments does not
    # depend on the lesions: no retracing, and XLA can compile it.
    sizes = [tf.shape(cells)[axis] if shape[axis] is None else shape[axis] for axis in (0, 1)]
    batch, slabs, channels, count = *sizes, shape[-1], max_components + 1
    segments = batch * slabs * channels * count
    offsets = tf.reshape(tf.range(0, segments, count), [batch, slabs] + [1] * (shape.rank - 3) + [channels])
    ids = tf.reshape(cells + offsets, [-1])

    def cell_sum(values: tf.Tensor) -> tf.Tensor:
        sums = tf.math.unsorted_segment_sum(tf.reshape(values, [-1]), ids, segments)
        return tf.reduce_sum(tf.reshape(sums, [batch, slabs, channels, count]), axis=1)

    return cell_sum
