"""The layers against float64 NumPy: values, gradients, batches, numbers formats."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from segment.model.layers import ChannelScale, InstanceNorm, LeakyReLU, instance_norm

EPSILON = 2e-3  # large enough for a norm that forgets it to fail


def norm_oracle(
    features: np.ndarray, scale: np.ndarray, offset: np.ndarray, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Value and gradients by features, scale and offset in float64, from the definition of each sample's statistics."""
    features, gradient = features.astype(np.float64), gradient.astype(np.float64)
    axes = tuple(range(1, features.ndim - 1))
    root = np.sqrt(features.var(axis=axes, keepdims=True) + EPSILON)
    unit = (features - features.mean(axis=axes, keepdims=True)) / root
    inner = gradient * scale
    by_features = inner - inner.mean(axis=axes, keepdims=True) - unit * (inner * unit).mean(axis=axes, keepdims=True)
    others = (0, *axes)
    return unit * scale + offset, by_features / root, (gradient * unit).sum(axis=others), gradient.sum(axis=others)


def draw(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(mean, deviation, shape).astype(np.float32)


def norm_and_gradients(features, scale, offset, gradient, *, batch: int | None, graph: bool):
    """What the op gives; `batch` None hides the batch size from the graph."""

    def compute(features, scale, offset, gradient):
        with tf.GradientTape() as tape:
            tape.watch((features, scale, offset))
            result = instance_norm(features, scale, offset, epsilon=EPSILON)
        return result, *tape.gradient(result, (features, scale, offset), gradient)

    arguments = [tf.convert_to_tensor(value) for value in (features, scale, offset, gradient)]
    if not graph:
        return compute(*arguments)
    shape = (batch, *features.shape[1:])
    signature = [tf.TensorSpec(shape, arguments[0].dtype), *(tf.TensorSpec(v.shape) for v in (scale, offset))]
    return tf.function(compute, input_signature=[*signature, tf.TensorSpec(shape, arguments[0].dtype)])(*arguments)


class TestInstanceNorm:
    @pytest.mark.parametrize("shape", [(1, 6, 5, 4, 3), (3, 6, 5, 4, 8), (2, 9, 7, 2), (4, 11, 1), (2, 16, 16, 8, 16)])
    @pytest.mark.parametrize("how", ["eager", "graph", "unknown batch"])
    def test_value_and_gradients_equal_the_oracle(self, shape: tuple[int, ...], how: str) -> None:
        features, gradient = draw(*shape, mean=3.0, deviation=2.0), draw(*shape)
        scale, offset = draw(shape[-1], mean=1.0), draw(shape[-1], deviation=0.5)
        expected = norm_oracle(features, scale, offset, gradient)
        batch = None if how == "unknown batch" else shape[0]
        found = norm_and_gradients(features, scale, offset, gradient, batch=batch, graph=how != "eager")
        for one, other in zip(found, expected, strict=True):
            assert np.allclose(one, other, rtol=1e-4, atol=1e-4)

    def test_keeps_precision_far_from_zero(self) -> None:
        # A variance as E[x^2] - E[x]^2 in float32 would be lost here: 1000^2 has 7 digits of its own.
        features = draw(2, 8, 8, 8, 4, mean=1000.0)
        expected = norm_oracle(features, np.ones(4), np.zeros(4), features)[0]
        found = instance_norm(tf.constant(features), tf.ones(4), tf.zeros(4), epsilon=EPSILON)
        assert np.allclose(found, expected, atol=1e-3)

    @pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
    @pytest.mark.parametrize("batch", [2, None])
    def test_half_precision_has_float32_statistics(self, dtype: tf.DType, batch: int | None) -> None:
        # 4,096 voxels of mean 30: a float16 sum would pass 65,504 and a bfloat16 one would stop growing near 256 x 30.
        shape = (2, 16, 16, 16, 4)
        features = tf.cast(draw(*shape, mean=30.0, deviation=4.0), dtype)
        gradient = tf.cast(draw(*shape), dtype)
        scale, offset = draw(4, mean=1.0), draw(4)
        rounded = [tf.cast(value, tf.float32).numpy() for value in (features, gradient)]
        expected = norm_oracle(rounded[0], scale, offset, rounded[1])
        found = norm_and_gradients(features, scale, offset, gradient, batch=batch, graph=True)
        assert [value.dtype for value in found] == [dtype, dtype, tf.float32, tf.float32]
        step = 2.0**-10 if dtype == tf.float16 else 2.0**-7
        for one, other in zip(found, expected, strict=True):
            assert np.abs(tf.cast(one, tf.float32) - other).max() <= 2 * step * np.abs(other).max()

    @pytest.mark.parametrize("batch", [2, None])
    @pytest.mark.parametrize("spatial", [(1, 1, 1), (4, 3, 2)])
    def test_constant_channel_gives_offset_and_finite_gradients(
        self, batch: int | None, spatial: tuple[int, ...]
    ) -> None:
        features = np.full((2, *spatial, 3), 7.0, np.float32)
        gradient, offset = draw(2, *spatial, 3), draw(3)
        result, by_features, by_scale, by_offset = norm_and_gradients(
            features, draw(3, mean=1.0), offset, gradient, batch=batch, graph=True
        )
        assert np.allclose(result, np.broadcast_to(offset, features.shape), atol=1e-6)
        assert np.isfinite(by_features).all()
        assert np.allclose(by_scale, 0.0, atol=1e-6)
        assert np.allclose(by_offset, gradient.sum(axis=(0, 1, 2, 3)), atol=1e-5)

    def test_layer_keeps_float32_parameters_under_mixed_precision(self) -> None:
        layer = InstanceNorm(epsilon=EPSILON, dtype=tf.keras.mixed_precision.Policy("mixed_bfloat16"))
        features = tf.cast(draw(2, 4, 4, 4, 2), tf.bfloat16)
        layer.build(features.shape)
        fine = np.array([1 + 2.0**-12, 1.0], np.float32)  # bfloat16 would round it to 1
        layer.set_weights([fine, np.zeros(2, np.float32)])
        with tf.GradientTape() as tape:
            result = layer(features)
            loss = tf.reduce_sum(tf.cast(result, tf.float32) ** 2)
        gradient = tape.gradient(loss, layer.trainable_variables)[0]
        assert result.dtype == tf.bfloat16
        assert gradient.dtype == tf.float32
        assert np.array_equal(layer.get_weights()[0], fine)

    def test_layer_restores_from_its_configuration(self) -> None:
        layer = InstanceNorm(epsilon=0.25, name="norm")
        again = InstanceNorm.from_config(layer.get_config())
        assert (again.epsilon, again.name) == (0.25, "norm")


class TestChannelScale:
    @pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
    def test_scales_and_shifts_every_channel_in_the_format_of_its_input(self, dtype: str) -> None:
        layer = ChannelScale(dtype=tf.keras.mixed_precision.Policy(dtype))
        features = draw(2, 4, 3, 5, 2)
        layer.build(features.shape)
        layer.set_weights([np.array([2.0, -0.5], np.float32), np.array([1.0, 3.0], np.float32)])
        given = tf.constant(features) if dtype == "float32" else tf.cast(features, tf.bfloat16)
        result = layer(given)
        assert result.dtype == given.dtype
        expected = tf.cast(given, tf.float32).numpy() * [2.0, -0.5] + [1.0, 3.0]
        assert np.allclose(tf.cast(result, tf.float32), expected, atol=1e-6 if dtype == "float32" else 0.05)
        assert {weight.dtype for weight in layer.get_weights()} == {np.dtype("float32")}


class TestLeakyReLU:
    def test_scales_the_negative_side(self) -> None:
        layer = LeakyReLU(slope=0.25)
        assert layer(tf.constant([-4.0, 0.0, 3.0])).numpy().tolist() == [-1.0, 0.0, 3.0]
        assert LeakyReLU.from_config(layer.get_config()).slope == 0.25
