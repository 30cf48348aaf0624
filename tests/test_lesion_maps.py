"""Voronoi cells and distance maps against brute force, and at the edges of what a patch can be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from segment.data.components import label_components
from segment.data.lesion_maps import cell_map, distance_map
from segment.errors import InputError


def brute_force_distance(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance in mm of every voxel to the nearest non-zero one, over all pairs."""
    points = np.argwhere(mask) * spacing
    voxels = np.argwhere(np.ones(mask.shape, bool)) * spacing
    return np.sqrt(((voxels[:, None] - points[None]) ** 2).sum(-1)).min(1).reshape(mask.shape)


MASKS = {
    "2d": ((13, 9), (1.0, 2.5)),
    "3d": ((9, 8, 7), (1.0, 1.0, 3.0)),
    "slice": ((12, 10, 1), (0.7, 0.7, 5.0)),
}


@pytest.fixture(params=MASKS)
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, tuple[float, ...]]:
    shape, spacing = MASKS[request.param]
    return (np.random.default_rng(3).random(shape) < 0.06).astype(np.uint8), spacing


class TestCellMap:
    def test_every_voxel_belongs_to_a_nearest_lesion(self, case: tuple[np.ndarray, tuple[float, ...]]) -> None:
        mask, spacing = case
        cells = cell_map(mask, spacing_mm=spacing)
        numbers, count = ndimage.label(mask, np.ones([3] * mask.ndim))
        assert cells.dtype == np.int32
        assert count > 2
        assert set(np.unique(cells)) == set(range(1, count + 1))
        own = np.stack([brute_force_distance(mask * (cells == n), spacing) for n in range(1, count + 1)])
        chosen = np.take_along_axis(own, cells[None] - 1, axis=0)[0]
        np.testing.assert_allclose(chosen, own.min(0), rtol=1e-6)  # ties may go either way
        for number in range(1, count + 1):  # a lesion lies within one cell
            assert len(np.unique(cells[numbers == number])) == 1

    def test_spacing_decides_what_is_near(self) -> None:
        mask = np.zeros((5, 5), np.uint8)
        mask[0, 0] = mask[4, 4] = 1
        assert cell_map(mask, spacing_mm=(1, 1))[1, 4] == cell_map(mask, spacing_mm=(1, 1))[4, 4]
        assert cell_map(mask, spacing_mm=(4, 0.5))[1, 4] == cell_map(mask, spacing_mm=(4, 0.5))[0, 0]

    def test_lesions_that_touch_at_a_corner_are_one(self) -> None:
        mask = np.zeros((4, 4, 4), np.uint8)
        mask[1, 1, 1] = mask[2, 2, 2] = 1
        assert (cell_map(mask, spacing_mm=(1, 1, 1)) == 1).all()

    def test_without_lesion_0_and_with_nothing_else_1(self) -> None:
        assert (cell_map(np.zeros((3, 4)), spacing_mm=(1, 1)) == 0).all()
        assert (cell_map(np.ones((3, 4, 2)), spacing_mm=(1, 1, 1)) == 1).all()

    def test_memory_order_and_dtype_do_not_matter(self, case: tuple[np.ndarray, tuple[float, ...]]) -> None:
        mask, spacing = case
        wanted = cell_map(mask, spacing_mm=spacing)
        for other in (np.asfortranarray(mask), mask.astype(bool), mask.astype(np.float32)):
            np.testing.assert_array_equal(cell_map(other, spacing_mm=spacing) > 0, wanted > 0)
            assert cell_map(other, spacing_mm=spacing).max() == wanted.max()


class TestDistanceMap:
    def test_is_the_distance_to_the_other_side(self, case: tuple[np.ndarray, tuple[float, ...]]) -> None:
        mask, spacing = case
        wanted = brute_force_distance(mask, spacing) - brute_force_distance(1 - mask, spacing)
        found = distance_map(mask, spacing_mm=spacing, clip_mm=100.0)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        clipped = distance_map(mask, spacing_mm=spacing, clip_mm=1.5)
        np.testing.assert_allclose(clipped, np.clip(wanted, -1.5, 1.5), rtol=1e-5)

    def test_by_hand(self) -> None:
        mask = np.array([[0, 0, 1, 1, 1, 0]])
        found = distance_map(mask, spacing_mm=(9.0, 2.0), clip_mm=50.0)
        np.testing.assert_array_equal(found, [[4, 2, -2, -4, -2, 2]])

    def test_one_side_only_is_at_the_clip(self) -> None:
        assert (distance_map(np.zeros((3, 3)), spacing_mm=(1, 1), clip_mm=7.0) == 7).all()
        assert (distance_map(np.ones((3, 3)), spacing_mm=(1, 1), clip_mm=7.0) == -7).all()


class TestBadInput:
    @pytest.mark.parametrize("shape", [(4,), (2, 2, 2, 2), (0, 3)])
    def test_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="expected a mask with 2 or 3 axes and at least one voxel, found shape"):
            cell_map(np.zeros(shape), spacing_mm=(1,) * len(shape))

    @pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, float("nan"))])
    def test_spacing(self, spacing: tuple[float, ...]) -> None:
        with pytest.raises(InputError, match=r"expected 2 spacings above 0 for shape \(3, 3\), found"):
            distance_map(np.zeros((3, 3)), spacing_mm=spacing, clip_mm=1.0)

    def test_clip(self) -> None:
        with pytest.raises(InputError, match="expected clip_mm above 0, found 0"):
            distance_map(np.zeros((3, 3)), spacing_mm=(1, 1), clip_mm=0)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 3, 3), (1, 3, 1), (2, 5, 5)])
def test_the_densest_packing_of_single_voxels(shape: tuple[int, ...]) -> None:
    """Every second voxel along each axis: more components for the size of the mask cannot be."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(None, None, 2) for _ in shape)] = True
    if mask.ndim == 1:
        mask = mask[None]
    labels, count = label_components(mask, connectivity=26 if mask.ndim == 3 else 8)
    assert count == mask.sum()
    assert sorted(labels[mask]) == list(range(1, count + 1))
    assert not labels[~mask].any()
