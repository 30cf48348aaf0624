"""The way up of a U-Net in one layer: features spread to the finer grid, joined with those there, and convolved."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def pixel_shuffle(features: tf.Tensor, strides: Sequence[int]) -> tf.Tensor:
    """Spreads groups of channels over blocks of `strides` voxels (Shi et al. 2016, arXiv 1609.05158).

    Args:
        features: `[batch, *spatial, prod(strides) * channels]`, spatial sizes known; the last axis runs over the
            positions in a block in C order, and for each over its channels.
        strides: Block size for each spatial axis.

    Returns:
        `[batch, *(spatial * strides), channels]` in the same dtype.
    """
    dimensions = len(strides)
    spatial = features.shape[1:-1]
    channels = features.shape[-1] // math.prod(strides)
    blocks = tf.reshape(features, [-1, *spatial, *strides, channels])
    order = [0]
    for axis in range(dimensions):
        order += [1 + axis, 1 + dimensions + axis]
    blocks = tf.transpose(blocks, [*order, 1 + 2 * dimensions])
    return tf.reshape(blocks, [-1, *(size * stride for size, stride in zip(spatial, strides, strict=True)), channels])


def composite_kernel(expand: tf.Tensor, kernel: tf.Tensor, strides: Sequence[int]) -> tf.Tensor:
    """The transposed convolution that equals spreading by `expand` and then convolving with `kernel`.

    Both are linear with nothing between them. Along an axis with stride s, position q of a block and tap t of a kernel
    of odd size k meet at offset q - t + k - 1 of a kernel of size s + k - 1: a product of polynomials.

    Args:
        expand: float32 `[coarse, prod(strides) * fine]`, the last axis as of `pixel_shuffle`.
        kernel: float32 `[*size, fine, filters]`, odd sizes.
        strides: For each spatial axis.

    Returns:
        float32 `[*(strides + size - 1), filters, coarse]`, for `tf.nn.conv_transpose` with padding SAME.
    """
    *size, fine, filters = kernel.shape
    coarse = expand.shape[0]
    positions, taps = math.prod(strides), math.prod(size)
    blocks = tf.transpose(tf.reshape(expand, [coarse, positions, fine]), [1, 0, 2])  # [positions, coarse, fine]
    flat = tf.transpose(tf.reshape(kernel, [taps, fine, filters]), [1, 0, 2])  # [fine, taps, filters]
    products = tf.matmul(tf.reshape(blocks, [-1, fine]), tf.reshape(flat, [fine, -1]))
    products = tf.transpose(tf.reshape(products, [positions, coarse, taps, filters]), [0, 2, 3, 1])
    meetings = tf.constant(_meetings(tuple(strides), tuple(size)))
    summed = tf.matmul(meetings, tf.reshape(products, [positions * taps, filters * coarse]))
    return tf.reshape(summed, [*(s + k - 1 for s, k in zip(strides, size, strict=True)), filters, coarse])


@functools.cache
def _meetings(strides: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """float32 [offsets, positions * taps]: 1 where a position and a tap meet at an offset."""
    ranges = [(s + k - 1, s, k) for s, k in zip(strides, size, strict=True)]
    marks = np.ones((1, 1, 1), np.float32)  # [offsets, positions, taps], grown axis by axis
    for offsets, positions, taps in ranges:
        one = np.zeros((offsets, positions, taps), np.float32)
        for position in range(positions):
            for tap in range(taps):
                one[position - tap + taps - 1, position, tap] = 1.0
        marks = np.kron(marks, one)
    return marks.reshape(len(marks), -1)


def upsample_convolution(
    coarse: tf.Tensor, fine: tf.Tensor, expand: tf.Tensor, kernel: tf.Tensor, strides: Sequence[int]
) -> tf.Tensor:
    """Spreads coarse features to the fine grid, joins them with the features there, and convolves.

    On a CPU both linear maps of the coarse features are done as one transposed convolution where that takes fewer
    operations: the same function without the upsampled features ever being made. A GPU takes one after the other.

    Args:
        coarse: `[batch, *spatial, coarse]`, spatial sizes known.
        fine: `[batch, *(spatial * strides), own]`, dtype of `coarse`.
        expand: float32 `[coarse, prod(strides) * spread]`, the 1x1 convolution before the pixel shuffle.
        kernel: float32 `[*size, spread + own, filters]`, odd sizes.
        strides: From the coarse to the fine grid, per spatial axis.

    Returns:
        `[batch, *(spatial * strides), filters]`, dtype of `coarse`.
    """
    width = expand.shape[-1] // math.prod(strides)
    if tf.config.list_logical_devices("GPU") or not _composite_pays(coarse, width, kernel, strides):
        spread = pixel_shuffle(_convolve(coarse, tf.reshape(expand, [*(1 for _ in strides), *expand.shape])), strides)
        return _convolve(tf.concat([spread, fine], axis=-1), kernel)
    composite = tf.cast(composite_kernel(expand, kernel[..., :width, :], strides), coarse.dtype)
    shape = tf.concat([tf.shape(fine)[:-1], [kernel.shape[-1]]], axis=0)
    spread = tf.nn.conv_transpose(coarse, composite, shape, strides, padding="SAME")
    return tf.ensure_shape(spread, [*fine.shape[:-1], kernel.shape[-1]]) + _convolve(fine, kernel[..., width:, :])


def _composite_pays(coarse: tf.Tensor, width: int, kernel: tf.Tensor, strides: Sequence[int]) -> bool:
    """Whether the transposed convolution and the making of its kernel take fewer multiplications."""
    *size, _, filters = kernel.shape
    voxels, channels = math.prod(coarse.shape[1:-1]), coarse.shape[-1]
    positions, taps = math.prod(strides), math.prod(size)
    offsets = math.prod(s + k - 1 for s, k in zip(strides, size, strict=True))
    apart = voxels * positions * width * (channels + taps * filters)
    together = voxels * offsets * channels * filters
    making = positions * taps * channels * filters * (width + offsets)
    return together + making < apart


def _convolve(features: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    # The gradient of the 3D convolution asks for the format by name when it runs eagerly.
    data_format = "NDHWC" if len(features.shape) == 5 else "NHWC"
    return tf.nn.convolution(features, tf.cast(kernel, features.dtype), padding="SAME", data_format=data_format)


@tf.keras.utils.register_keras_serializable(package="segment")
class UpsampleJoin(tf.keras.layers.Layer):
    """`upsample_convolution` with learnt kernels and no biases, called with `[coarse features, fine features]`.

    Args:
        filters: Channels of the upsampled features and of the result.
        strides: From the coarse to the fine grid, per spatial axis.
        size: Of the convolution's kernel, odd, per spatial axis.
        seeds: Of the first values of expansion, kernel and shortcut (He et al. 2015, normal).
        shortcut: Also gives a 1x1 convolution of the same joined features; the result is then a pair.
    """

    def __init__(
        self,
        *,
        filters: int,
        strides: Sequence[int],
        size: Sequence[int],
        seeds: Sequence[int],
        shortcut: bool,
        **kwargs: Any,
    ) -> None:
        # A float32 policy that leaves the inputs alone: the kernels are multiplied in float32 before they are rounded.
        super().__init__(**{**kwargs, "dtype": "float32", "autocast": False})
        if any(edge % 2 == 0 for edge in size):
            raise ValueError(f"size: expected odd kernel sizes, found {tuple(size)}")
        self.filters = filters
        self.strides = tuple(int(stride) for stride in strides)
        self.size = tuple(int(edge) for edge in size)
        self.seeds = tuple(int(seed) for seed in seeds)
        self.shortcut = shortcut

    def build(self, input_shape: Sequence[Sequence[int | None]]) -> None:
        coarse, fine = (int(shape[-1] or 0) for shape in input_shape)
        joined = (self.filters + fine, self.filters)
        self.expand = self._weight("expand", 0, (coarse, math.prod(self.strides) * self.filters))
        self.kernel = self._weight("kernel", 1, (*self.size, *joined))
        if self.shortcut:
            self.shortcut_kernel = self._weight("shortcut_kernel", 2, (*(1 for _ in self.size), *joined))
        super().build(input_shape)

    def _weight(self, name: str, which: int, shape: tuple[int, ...]) -> Any:
        initializer = tf.keras.initializers.HeNormal(seed=self.seeds[which])
        return self.add_weight(name=name, shape=shape, dtype="float32", initializer=initializer)

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        coarse, fine = inputs
        expand, kernel = tf.convert_to_tensor(self.expand), tf.convert_to_tensor(self.kernel)
        main = upsample_convolution(coarse, fine, expand, kernel, self.strides)
        if not self.shortcut:
            return main
        shortcut = tf.convert_to_tensor(self.shortcut_kernel)
        return main, upsample_convolution(coarse, fine, expand, shortcut, self.strides)

    def compute_output_shape(self, input_shape: Sequence[Sequence[int | None]]) -> Any:
        shape = (*input_shape[1][:-1], self.filters)
        return (shape, shape) if self.shortcut else shape

    def get_config(self) -> dict[str, Any]:
        own = {"filters": self.filters, "strides": self.strides, "size": self.size, "seeds": self.seeds}
        return {**super().get_config(), **own, "shortcut": self.shortcut}
