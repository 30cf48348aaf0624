"""The 2D and 3D U-Net of a plan (Ronneberger et al. 2015, arXiv 1505.04597; widths and norms as in nnU-Net)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from segment.model.layers import ChannelScale, InstanceNorm, LeakyReLU
from segment.model.upsampling import UpsampleJoin

if TYPE_CHECKING:
    from segment.data.planning import Plan

EPSILON = 1.001e-5  # the least that TensorFlow's fused norm takes
NEGATIVE_SLOPE = 0.01
# A rarer foreground would start every logit so low that its first gradients vanish; a more frequent one needs no help.
FOREGROUND_RANGE = (1e-3, 0.5)
LARGEST_UNROLLED_BATCH = 8  # each sample adds its own copy of every operation to the graph
LOGIT_KERNEL_DEVIATION = 0.1  # small, so that the first probabilities are the foreground's rate almost everywhere


def build_unet(plan: Plan, *, seed: int) -> tf.keras.Model:
    """Makes the untrained network of a plan, under the Keras precision policy in force.

    Each level has two convolutions, each followed by instance norm (or a learnt scale and offset where the plan has no
    norm) and leaky ReLU, with a shortcut around both if the plan says residual. The first convolution of a level after
    the first has the level's stride. The way up is a 1x1 convolution with pixel shuffle, joined with the features of
    the same level on the way down (`UpsampleJoin`).

    Args:
        plan: Filters, strides and kernels per level; 2 or 3 dimensions; the patch size fixes the spatial input size.
        seed: The same seed gives the same weights.

    Returns:
        A model from `[batch, *patch, channels]` to float32 logits `[batch, *patch, outputs]`; with deep supervision and
        more than two levels, to a list of logits, one for each level of the way up, finest first. With a distance head
        the last of the list is its output, float32 `[batch, *patch, classes]` in mm.
    """
    return _Builder(plan, seed).build()


class _Builder:
    """Carries the plan and the seeds while the layers are strung together."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self._plan = plan
        self._random = np.random.default_rng(seed)
        self._layers = tf.keras.layers

    def build(self) -> tf.keras.Model:
        plan = self._plan
        patch = [size for axis, size in enumerate(plan.patch_size) if plan.dimensions == 3 or axis != plan.slice_axis]
        inputs = self._layers.Input((*patch, plan.network_channels), name="image")
        features, skips = inputs, list[tf.Tensor]()
        for level in range(len(plan.filters)):
            strides = plan.strides[level - 1] if level else (1,) * plan.dimensions
            features = self._level(features, level, strides, f"down{level}")
            skips.append(features)
        outputs: list[tf.Tensor] = []
        for level in reversed(range(len(plan.filters) - 1)):
            features = self._up_level(features, skips[level], level)
            if level == 0 or plan.deep_supervision:
                outputs.insert(0, self._logits(features, level))
        if plan.distance_head:
            outputs.append(self._head(features, plan.classes, 0.0, "distance"))
        return tf.keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name="unet")

    def _level(self, features: tf.Tensor, level: int, strides: Sequence[int], name: str) -> tf.Tensor:
        shortcut = self._shortcut(features, level, strides, name) if self._plan.residual else None
        features = self._conv(features, self._plan.filters[level], self._plan.kernels[level], strides, f"{name}_a")
        return self._rest_of_level(features, shortcut, level, name)

    def _up_level(self, coarse: tf.Tensor, skip: tf.Tensor, level: int) -> tf.Tensor:
        name, residual = f"up{level}", self._plan.residual
        features = UpsampleJoin(
            filters=self._plan.filters[level],
            strides=self._plan.strides[level],
            size=self._plan.kernels[level],
            seeds=[self._seed() for _ in range(3)],
            shortcut=residual,
            name=f"{name}_join",
        )([coarse, skip])
        features, shortcut = features if residual else (features, None)
        if shortcut is not None:
            shortcut = self._norm(f"{name}_shortcut")(shortcut)
        return self._rest_of_level(features, shortcut, level, name)

    def _rest_of_level(self, features: tf.Tensor, shortcut: tf.Tensor | None, level: int, name: str) -> tf.Tensor:
        """What follows a level's first convolution."""
        features = self._activation(self._norm(f"{name}_a")(features), f"{name}_a")
        ones = (1,) * self._plan.dimensions
        features = self._conv(features, self._plan.filters[level], self._plan.kernels[level], ones, f"{name}_b")
        features = self._norm(f"{name}_b")(features)
        if shortcut is not None:
            features = self._layers.Add(name=f"{name}_add")([features, shortcut])
        return self._activation(features, f"{name}_b")

    def _shortcut(self, features: tf.Tensor, level: int, strides: Sequence[int], name: str) -> tf.Tensor:
        """The block's input at its output's resolution and width. The kernel is the stride, so every voxel counts."""
        if math.prod(strides) == 1 and features.shape[-1] == self._plan.filters[level]:
            return features
        features = self._conv(features, self._plan.filters[level], strides, strides, f"{name}_shortcut")
        return self._norm(f"{name}_shortcut")(features)

    def _conv(
        self, features: tf.Tensor, filters: int, kernel: Sequence[int], strides: Sequence[int], name: str
    ) -> tf.Tensor:
        # No bias: the norm that follows takes it out again.
        return self._conv_class()(
            filters,
            tuple(kernel),
            strides=tuple(strides),
            padding="same",
            use_bias=False,
            kernel_initializer=tf.keras.initializers.HeNormal(seed=self._seed()),
            name=f"{name}_conv",
        )(features)

    def _norm(self, name: str) -> tf.keras.layers.Layer:
        if self._plan.norm == "none":
            return ChannelScale(name=f"{name}_scale")
        return InstanceNorm(epsilon=EPSILON, name=f"{name}_norm")

    def _activation(self, features: tf.Tensor, name: str) -> tf.Tensor:
        return LeakyReLU(slope=NEGATIVE_SLOPE, name=f"{name}_relu")(features)

    def _logits(self, features: tf.Tensor, level: int) -> tf.Tensor:
        low, high = FOREGROUND_RANGE
        rate, classes = min(max(self._plan.foreground_share, low), high), self._plan.classes
        bias: float | list[float] = math.log(rate / (1 - rate))
        if self._plan.softmax:  # the log-odds of the background against each class, all of them equally frequent
            bias = [math.log(classes * (1 - rate) / rate), *[0.0] * classes]
        return self._head(features, self._plan.outputs, bias, f"logits{level}")

    def _head(self, features: tf.Tensor, channels: int, bias: float | list[float], name: str) -> tf.Tensor:
        # A dense layer over the channels is a 1x1 convolution, computed in half the time.
        return self._layers.Dense(
            channels,
            kernel_initializer=tf.keras.initializers.RandomNormal(stddev=LOGIT_KERNEL_DEVIATION, seed=self._seed()),
            bias_initializer=tf.keras.initializers.Constant(bias),
            dtype="float32",
            name=name,
        )(features)

    def _seed(self) -> int:
        return int(self._random.integers(2**31))

    def _conv_class(self) -> type[tf.keras.layers.Layer]:
        return self._layers.Conv2D if self._plan.dimensions == 2 else self._layers.Conv3D


def run_network(model: tf.keras.Model, images: tf.Tensor, *, training: bool) -> list[tf.Tensor]:
    """Calls a network of `build_unet` on a batch, the fast way round for the device.

    A GPU takes the batch as it is. A CPU takes one sample after the other: the features of one fit into its cache, and
    instance norm need not cut the batch apart and join it again in every layer. The values are the same: no layer looks
    beyond one sample.

    Args:
        model: As `build_unet` made it or as it was loaded.
        images: `[batch, *patch, channels]`; on a CPU, fast when the graph knows the batch size.
        training: Handed to the model.

    Returns:
        The model's float32 outputs, in its order: logits `[batch, *spatial, outputs]`, finest first.
    """
    batch = images.shape[0]
    if batch is None or batch > LARGEST_UNROLLED_BATCH or tf.config.list_logical_devices("GPU"):
        return _as_list(model(images, training=training))
    samples = [_as_list(model(sample, training=training)) for sample in tf.split(images, batch)]
    return [tf.concat(outputs, axis=0) for outputs in zip(*samples, strict=True)]


def _as_list(outputs: Any) -> list[tf.Tensor]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
