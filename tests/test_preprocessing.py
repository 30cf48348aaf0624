"""Scans to the network's grid and results back."""

from __future__ import annotations

import numpy as np
import pytest
from builders import oblique
from data_helpers import axis_orders, make_scan, make_test_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.data.normalization import inside_mask, normalise
from segment.data.preprocessing import to_network, to_original
from segment.errors import InputError

RNG = np.random.default_rng(11)


class TestNormalise:
    def test_zscore_by_hand(self) -> None:
        channel = np.array([0, 2, 4, 6, 8], np.float32).reshape(5, 1, 1)
        # Mean 5, variance (9 + 1 + 1 + 9) / 4 = 5.
        expected = np.array([0, -3, -1, 1, 3]) / np.sqrt(5) * [0, 1, 1, 1, 1]
        np.testing.assert_allclose(normalise(channel, channel != 0, "zscore").ravel(), expected, rtol=1e-6)

    def test_percentile_clips_first(self) -> None:
        channel = np.concatenate([np.arange(1, 1000), [1e6]]).astype(np.float32).reshape(10, 10, 10)
        found = normalise(channel, np.ones_like(channel, bool), "percentile")
        values = np.clip(channel.astype(float), *np.percentile(channel.astype(float), (0.5, 99.5)))
        np.testing.assert_allclose(found, (values - values.mean()) / values.std(), rtol=1e-5, atol=1e-5)
        assert found.max() < 2  # the outlier would be at 31

    @pytest.mark.parametrize("how", ["zscore", "percentile"])
    @pytest.mark.parametrize("value", [0.0, 7.0, 1e30])
    def test_constant_channel_is_0(self, how: str, value: float) -> None:
        channel = np.full((3, 4, 5), value, np.float32)
        np.testing.assert_array_equal(normalise(channel, channel != 0, how), 0)

    def test_zeros_enclosed_by_tissue_are_inside(self) -> None:
        channel = np.zeros((7, 7, 7), np.float32)
        channel[1:6, 1:6, 1:6] = 1
        channel[3, 3, 3] = 0
        expected = np.zeros((7, 7, 7), bool)
        expected[1:6, 1:6, 1:6] = True
        np.testing.assert_array_equal(inside_mask(channel), expected)

    @pytest.mark.parametrize("value", [0.0, 5.0])
    def test_all_or_nothing_inside(self, value: float) -> None:
        assert (inside_mask(np.full((3, 3, 3), value, np.float32)) == bool(value)).all()


class TestToNetwork:
    def test_background_is_0_and_the_rest_standard(self) -> None:
        image = np.zeros((12, 10, 9, 2), np.float32)
        image[2:11, 1:9, 3:8] = RNG.normal(100, 20, (9, 8, 5, 2))
        image[2:4, :, :, 1] = 0  # the second channel has a smaller field of view
        found, label, placement = to_network(make_scan(image, np.eye(4)), make_test_plan(channels=2))
        assert label is None
        assert placement.crop == ((2, 11), (1, 9), (3, 8))
        assert found.dtype == np.float32
        assert found.shape == (9, 8, 5, 2)
        assert (found[:2, ..., 1] == 0).all()
        for values in (found[..., 0], found[2:, ..., 1]):
            assert values.mean() == pytest.approx(0, abs=1e-6)
            assert values.std() == pytest.approx(1, abs=1e-5)

    def test_background_stays_0_after_resampling(self) -> None:
        image = np.zeros((20, 20, 20), np.float32)
        image[4:16, 4:16, 4:16] = RNG.normal(100, 20, (12, 12, 12))
        image[0, 0, 0] = image[-1, -1, -1] = 50  # keeps the box whole
        found, _, _ = to_network(make_scan(image, np.eye(4)), make_test_plan(spacing_mm=(0.7, 0.7, 0.7)))
        assert found.shape == (29, 29, 29, 1)
        assert (found[2:5, 2:27, 2:27] == 0).all()
        assert (found[7:22, 7:22, 7:22] != 0).all()

    def test_label_goes_with_the_image_in_every_orientation(self) -> None:
        image = RNG.integers(1, 99, (5, 6, 7)).astype(np.float32)
        label = (image >= 60).astype(np.uint8)
        for order in axis_orders():
            found, moved, _ = to_network(make_scan(image, order, label), make_test_plan())
            assert moved is not None
            assert moved.dtype == np.uint8
            np.testing.assert_array_equal(moved, found[..., 0] > (59.5 - image.mean()) / image.std())

    def test_image_without_any_signal(self) -> None:
        label = np.ones((4, 5, 6), np.uint8)
        found, moved, placement = to_network(make_scan(np.zeros((4, 5, 6)), np.eye(4), label), make_test_plan())
        assert (found == 0).all()
        assert moved is not None
        assert moved.sum() == 120
        assert placement.shape == (4, 5, 6)

    def test_wrong_number_of_channels(self) -> None:
        with pytest.raises(InputError, match=r"case case0: expected 2 channels \['channel0', 'channel1'\], found 1"):
            to_network(make_scan(np.ones((4, 4, 4)), np.eye(4)), make_test_plan(channels=2))


class TestThereAndBack:
    def test_exact_in_every_orientation_without_resampling(self) -> None:
        image = np.zeros((6, 8, 9), np.float32)
        image[1:5, 2:7, 3:9] = 1
        image[2, 2, 2] = 2
        for order in axis_orders():
            _, _, placement = to_network(make_scan(image, order), make_test_plan())
            probabilities = RNG.random((*placement.shape, 2), np.float32)
            found = to_original(probabilities, placement)
            assert found.dtype == np.float32
            assert found.shape == (6, 8, 9, 2)
            # Oracle: each network voxel's world position is a voxel of the file; all others are 0.
            index = np.argwhere(np.ones(placement.shape))
            world = index @ placement.affine[:3, :3].T + placement.affine[:3, 3]
            own = np.rint(world @ np.linalg.inv(order[:3, :3]).T).astype(int)
            expected = np.zeros((6, 8, 9, 2), np.float32)
            expected[tuple(own.T)] = probabilities[tuple(index.T)]
            np.testing.assert_array_equal(found, expected)
            assert np.count_nonzero(found) == 2 * 4 * 5 * 7

    @settings(max_examples=25, deadline=None)
    @given(
        st.tuples(*[st.integers(3, 11)] * 3),
        st.floats(-40, 40),
        st.tuples(*[st.sampled_from([0.6, 1.0, 1.3, 2.5])] * 3),
        st.integers(0, 47),
    )
    def test_a_point_maps_within_half_a_voxel(self, shape: tuple, degrees: float, spacing: tuple, order: int) -> None:
        """The world position of each voxel, sent through both ways as an image, is found where it belongs."""
        affine = oblique(degrees, spacing, (5.0, -8.0, 3.0)) @ axis_orders()[order]
        scan = make_scan(np.ones(shape), affine)
        _, _, placement = to_network(scan, make_test_plan(spacing_mm=(1.1, 0.9, 1.4)))
        to_world = placement.affine
        world = np.moveaxis(np.indices(placement.shape), 0, -1) @ to_world[:3, :3].T + to_world[:3, 3]
        found = to_original(world.astype(np.float32), placement)
        expected = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        to_voxel = np.linalg.inv(to_world)
        error = np.abs((found - expected) @ to_voxel[:3, :3].T)  # in network voxels
        assert error.max() <= 0.5 + 1e-3
        # Coordinates are linear: between the network's outermost voxel centres the way back is exact.
        voxel = expected @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        between = ((voxel >= 0) & (voxel <= np.array(placement.shape) - 1)).all(axis=-1)
        assert error[between].max(initial=0.0) < 1e-3

    def test_linear_image_comes_back_inside(self) -> None:
        # 9 voxels of 1 mm -> 12 of 0.75 mm: a ramp is exact both ways away from the border.
        ramp = np.arange(1, 10, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
        _, _, placement = to_network(make_scan(ramp, np.eye(4)), make_test_plan(spacing_mm=(0.75, 1.0, 1.0)))
        assert placement.shape == (12, 4, 4)
        network = ((np.arange(12) + 0.5) * 0.75 + 0.5)[:, None, None, None] * np.ones((1, 4, 4, 1))
        found = to_original(network.astype(np.float32), placement)
        np.testing.assert_allclose(found[1:-1, ..., 0], ramp[1:-1], atol=1e-5)

    @pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.8, 1.0, 0.7)])
    def test_mask_on_a_finer_grid_survives_both_ways(self, spacing: tuple[float, float, float]) -> None:
        image = RNG.normal(100, 10, (13, 11, 9))
        label = np.zeros((13, 11, 9), np.uint8)
        label[3:7, 2:6, 4:8] = 1
        _, moved, placement = to_network(make_scan(image, np.eye(4), label), make_test_plan(spacing_mm=spacing))
        assert moved is not None
        back = to_original(moved[..., None].astype(np.float32), placement)[..., 0]
        np.testing.assert_array_equal(back >= 0.5, label == 1)

    def test_constant_stays_constant_inside_the_crop(self) -> None:
        image = np.zeros((10, 10, 10), np.float32)
        image[2:9, 3:8, 1:10] = 5
        _, _, placement = to_network(
            make_scan(image, np.diag([1, 2, 3, 1])), make_test_plan(spacing_mm=(1.3, 1.3, 1.3))
        )
        found = to_original(np.full((*placement.shape, 1), 0.3, np.float32), placement)
        np.testing.assert_array_equal(found[..., 0], np.where(image > 0, np.float32(0.3), 0))

    def test_other_shape_is_refused(self) -> None:
        _, _, placement = to_network(make_scan(np.ones((4, 5, 6)), np.eye(4)), make_test_plan())
        with pytest.raises(ValueError, match=r"expected probabilities of shape \(4, 5, 6\)"):
            to_original(np.zeros((4, 5, 5, 1), np.float32), placement)
