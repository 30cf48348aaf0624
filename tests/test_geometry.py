"""The network's grid and resampling, against affine arithmetic and SciPy in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from builders import oblique
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segment.data.geometry import (
    Placement,
    axis_matrix,
    network_shape,
    nonzero_box,
    resample,
    resample_nearest,
    spline_orders,
)
from segment.data.scan import Grid
from segment.errors import InputError

RNG = np.random.default_rng(3)


class TestNonzeroBox:
    def test_any_channel_counts(self) -> None:
        image = np.zeros((6, 7, 8, 2), np.float32)
        image[1, 2, 3, 0] = -1
        image[4, 2, 5, 1] = 1e-30
        assert nonzero_box(image) == ((1, 5), (2, 3), (3, 6))

    def test_empty_image_is_kept_whole(self) -> None:
        assert nonzero_box(np.zeros((2, 3, 4, 1))) == ((0, 2), (0, 3), (0, 4))


class TestShapesAndOrders:
    def test_extent_is_kept(self) -> None:
        assert network_shape((100, 90, 10), (1.0, 0.5, 3.0), (0.5, 1.0, 1.0)) == (200, 45, 30)

    def test_within_a_thousandth_nothing_changes(self) -> None:
        assert network_shape((1001, 1001, 1001), (1.0009, 0.9991, 1.0), (1.0, 1.0, 1.0)) == (1001, 1001, 1001)

    def test_at_least_one_voxel(self) -> None:
        assert network_shape((1, 1, 1), (0.1, 1.0, 1.0), (5.0, 1.0, 1.0)) == (1, 1, 1)

    @pytest.mark.parametrize(
        ("spacing", "target", "orders"),
        [
            ((1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (3, 3, 3)),
            ((1.0, 1.0, 3.0), (1.0, 1.0, 1.0), (3, 3, 3)),
            ((1.0, 1.0, 3.0001), (1.0, 1.0, 1.0), (3, 3, 3)),
            ((0.5, 6.0, 0.5), (1.0, 1.0, 1.0), (3, 1, 3)),
            ((1.0, 1.0, 1.0), (1.0, 1.0, 5.0), (3, 3, 1)),
        ],
    )
    def test_linear_across_a_coarse_axis(self, spacing: tuple, target: tuple, orders: tuple) -> None:
        assert spline_orders(spacing, target) == orders


class TestResample:
    def test_same_shape_is_the_same_array(self) -> None:
        volume = RNG.standard_normal((4, 5, 6)).astype(np.float32)
        assert resample(volume, (4, 5, 6), (3, 3, 3)) is volume
        assert resample_nearest(volume, (4, 5, 6)) is volume

    @pytest.mark.parametrize("shape", [(13, 9, 11), (5, 4, 6), (9, 4, 17)])
    def test_cubic_agrees_with_scipy_in_3d(self, shape: tuple[int, int, int]) -> None:
        volume = ndimage.gaussian_filter(RNG.standard_normal((9, 7, 8)), 1.0)
        position = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(volume.shape, shape, strict=True)]
        expected = ndimage.map_coordinates(volume, np.meshgrid(*position, indexing="ij"), order=3, mode="nearest")
        expected = np.clip(expected, volume.min(), volume.max())
        found = resample(volume.astype(np.float32), shape, (3, 3, 3))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)

    def test_linear_by_hand(self) -> None:
        # Two voxels of 0 and 4 become four: centres at -0.25, 0.25, 0.75 and 1.25 of the old grid.
        volume = np.zeros((2, 1, 1), np.float32)
        volume[1] = 4
        assert resample(volume, (4, 1, 1), (1, 1, 1)).ravel().tolist() == [0, 1, 3, 4]

    def test_no_overshoot_at_an_edge(self) -> None:
        volume = np.zeros((16, 16, 16), np.float32)
        volume[8:] = 1
        found = resample(volume, (23, 16, 16), (3, 3, 3))
        assert found.min() == 0
        assert found.max() == 1
        assert (axis_matrix(16, 23, 3) @ volume[:, 0, 0]).max() > 1.01  # it would overshoot

    @settings(max_examples=30, deadline=None)
    @given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 12)] * 3), st.sampled_from([1, 3]))
    def test_constant_in_constant_out(self, old: tuple, new: tuple, order: int) -> None:
        volume = np.full(old, 0.7, np.float32)
        np.testing.assert_array_equal(resample(volume, new, (order,) * 3), np.full(new, 0.7, np.float32))

    @settings(max_examples=30, deadline=None)
    @given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 20)] * 3))
    def test_nearest_takes_the_voxel_that_holds_the_centre(self, old: tuple, new: tuple) -> None:
        volume = np.arange(np.prod(old)).reshape(old)
        found = resample_nearest(volume, new)
        for corner in itertools.product(*[(0, count // 2, count - 1) for count in new]):
            # In whole numbers: centre (2 i + 1) / (2 m) of the extent.
            expected = tuple((2 * i + 1) * n // (2 * m) for i, n, m in zip(corner, old, new, strict=True))
            assert found[corner] == volume[expected]

    def test_nearest_there_and_back_keeps_every_voxel_of_a_finer_grid(self) -> None:
        label = (RNG.random((7, 5, 9)) < 0.3).astype(np.uint8)
        np.testing.assert_array_equal(resample_nearest(resample_nearest(label, (14, 15, 9)), label.shape), label)


class TestPlacement:
    affine = oblique(25.0, (0.9, 1.1, 3.3), (12.0, -40.0, 7.0))[:, [2, 0, 1, 3]] * [1, -1, 1, 1]
    grid = Grid((11, 13, 17), affine)

    def test_canonical_affine_agrees_with_nibabel(self) -> None:
        import nibabel as nib

        whole = Placement(self.grid, ((0, 13), (0, 17), (0, 11)), (13, 17, 11))
        expected = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(self.grid.shape, np.int16), self.affine))
        np.testing.assert_allclose(whole.affine, expected.affine, atol=1e-9)
        assert nib.aff2axcodes(whole.affine) == ("R", "A", "S")
        assert whole.voxel_mm3 == pytest.approx(0.9 * 1.1 * 3.3)

    def test_crop_and_network_cover_the_same_box_of_the_world(self) -> None:
        placement = Placement(self.grid, ((2, 9), (1, 16), (4, 10)), (10, 7, 13))
        canonical = placement.canonical_affine
        for side in (0, 1):  # the outer corners: half a voxel beyond the first and the last centre
            corner = [ends[side] - 0.5 for ends in placement.crop]
            network = [-0.5 if side == 0 else count - 0.5 for count in placement.shape]
            np.testing.assert_allclose(placement.affine @ [*network, 1], canonical @ [*corner, 1], atol=1e-9)

    def test_json_round_trip_and_error(self) -> None:
        placement = Placement(self.grid, ((2, 9), (1, 16), (4, 10)), (10, 7, 13))
        again = Placement.from_json(placement.to_json())
        assert (again.crop, again.shape, again.grid.shape) == (placement.crop, placement.shape, self.grid.shape)
        np.testing.assert_array_equal(again.grid.affine, self.affine)
        with pytest.raises(InputError, match="expected grid_shape, grid_affine, crop and shape"):
            Placement.from_json({"crop": []})
