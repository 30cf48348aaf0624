"""The way up: pixel shuffle, the composite kernel, and the layer that joins two levels."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from segment.model import upsampling
from segment.model.upsampling import UpsampleJoin, composite_kernel, pixel_shuffle, upsample_convolution


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


class TestPixelShuffle:
    def test_places_channels_by_hand(self) -> None:
        # One voxel of 2 x 3 block positions with 1 channel: block position (i, j) holds channel 3 i + j.
        features = tf.reshape(tf.range(6.0), [1, 1, 1, 6])
        assert pixel_shuffle(features, (2, 3))[0, :, :, 0].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]

    @pytest.mark.parametrize("strides", [(2, 2, 2), (1, 2, 2), (2, 1, 3)])
    def test_expand_and_shuffle_is_the_transposed_convolution(self, strides: tuple[int, int, int]) -> None:
        features = draw(2, 3, 4, 2, 5)
        kernel = draw(*strides, 7, 5)  # [*strides, output channels, input channels]
        fine = [size * stride for size, stride in zip((3, 4, 2), strides, strict=True)]
        expected = tf.nn.conv3d_transpose(features, kernel, [2, *fine, 7], strides, "SAME")
        expanded = features @ kernel.reshape(-1, 5).T
        assert np.allclose(pixel_shuffle(tf.constant(expanded), strides), expected, atol=1e-5)


class TestCompositeKernel:
    def test_is_the_product_of_polynomials_by_hand(self) -> None:
        # One axis of stride 2, position weights (5, 7), taps (1, 2, 3): position q and tap t meet at q - t + 2, so
        # offset 0 holds 5*3, 1 holds 5*2 + 7*3, 2 holds 5*1 + 7*2, 3 holds 7*1.
        expand = tf.constant([[5.0, 7.0]])
        kernel = tf.reshape(tf.constant([1.0, 2.0, 3.0]), [3, 1, 1])
        assert composite_kernel(expand, kernel, (2,))[:, 0, 0].numpy().tolist() == [15.0, 31.0, 19.0, 7.0]


SHAPES = pytest.mark.parametrize(
    ("strides", "size"),
    [((2, 2, 2), (3, 3, 3)), ((1, 2, 2), (1, 3, 3)), ((2, 1, 3), (3, 3, 5)), ((2, 2), (3, 3)), ((1, 1), (3, 1))],
)


class TestUpsampleConvolution:
    @SHAPES
    def test_composite_equals_one_after_the_other(
        self, strides: tuple[int, ...], size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spatial = (3, 4, 5)[: len(strides)]
        fine_size = [count * stride for count, stride in zip(spatial, strides, strict=True)]
        coarse, fine = tf.constant(draw(2, *spatial, 4)), tf.constant(draw(2, *fine_size, 2))
        expand, kernel = tf.constant(draw(4, int(np.prod(strides)) * 3)), tf.constant(draw(*size, 3 + 2, 6))
        found = []
        for pays in (True, False):
            monkeypatch.setattr(upsampling, "_composite_pays", lambda *_, pays=pays: pays)
            with tf.GradientTape() as tape:
                tape.watch([coarse, fine, expand, kernel])
                result = upsample_convolution(coarse, fine, expand, kernel, strides)
                total = tf.reduce_sum(result**2)
            found.append([result, *tape.gradient(total, [coarse, fine, expand, kernel])])
        for one, other in zip(*found, strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()

    def test_composite_is_taken_where_it_saves_operations(self) -> None:
        # 27 taps on each of 8 fine voxels against 64 offsets on one coarse voxel; at 2^3 voxels the kernel costs more.
        kernel = tf.zeros((3, 3, 3, 32, 16))
        assert upsampling._composite_pays(tf.zeros((1, 16, 16, 16, 32)), 16, kernel, (2, 2, 2))
        assert not upsampling._composite_pays(tf.zeros((1, 2, 2, 2, 32)), 16, kernel, (2, 2, 2))


class TestUpsampleJoin:
    @pytest.mark.parametrize("shortcut", [False, True])
    def test_restores_from_its_configuration_and_names_its_shape(self, shortcut: bool) -> None:
        layer = UpsampleJoin(filters=3, strides=(2, 1), size=(3, 3), seeds=(1, 2, 3), shortcut=shortcut)
        inputs = [tf.constant(draw(1, 2, 4, 5)), tf.constant(draw(1, 4, 4, 3))]
        first = layer(inputs)
        again = UpsampleJoin.from_config(layer.get_config())
        second = again(inputs)
        shapes = layer.compute_output_shape([(None, 2, 4, 5), (None, 4, 4, 3)])
        for one, other, shape in zip(*map(_listed, (first, second)), shapes if shortcut else [shapes], strict=True):
            assert np.array_equal(one, other)
            assert shape == (None, 4, 4, 3) == (None, *one.shape[1:])

    def test_refuses_even_kernels(self) -> None:
        with pytest.raises(ValueError, match=r"odd kernel sizes, found \(2, 3\)"):
            UpsampleJoin(filters=3, strides=(2, 2), size=(2, 3), seeds=(1, 2, 3), shortcut=False)


def _listed(value: object) -> list[tf.Tensor]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
