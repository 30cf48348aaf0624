"""Lesion removal: which lesions go, what takes their place, and what stays bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from augmentation_helpers import augmenter
from data_helpers import store_case

from segment.data.lesion_removal import remove_lesions
from segment.data.sampling import PatchLocation

TISSUE = np.array([1.0, -0.5], np.float32)
CUBES = (1.0, 1.0, 1.0)


class Always:
    """A generator whose every large lesion goes."""

    def __init__(self) -> None:
        self._normal = np.random.default_rng(0)

    def random(self, size: int | None = None) -> object:
        return 1.0 if size is None else np.zeros(size)

    def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        return self._normal.standard_normal(shape, dtype)


def patch() -> tuple[np.ndarray, np.ndarray]:
    """Two channels of tissue with air on one side, a lesion of 216 and one of 8 voxels, 3 above it in both."""
    rng = np.random.default_rng(5)
    channels = (TISSUE[:, None, None, None] + rng.normal(0, 0.1, (2, 28, 26, 24))).astype(np.float32)
    label = np.zeros(channels.shape[1:], np.uint8)
    label[8:14, 8:14, 8:14] = 1
    label[20:22, 20:22, 18:20] = 1
    channels[:, label > 0] += 3
    channels[:, :3] = 0
    return channels, label


def test_a_large_lesion_becomes_the_tissue_around_it() -> None:
    channels, label = patch()
    before = channels.copy()
    assert remove_lesions(channels, label, Always(), spacing_mm=CUBES) == 1
    assert label.sum() == 8  # the small one stays
    place = np.s_[:, 6:16, 6:16, 6:16]  # with its margin
    assert channels[place].mean(axis=(1, 2, 3)) == pytest.approx(TISSUE, abs=0.02)
    assert channels[place].std(axis=(1, 2, 3)) == pytest.approx([0.1, 0.1], rel=0.25)
    outside = np.ones(label.shape, bool)
    outside[place[1:]] = False
    np.testing.assert_array_equal(channels[:, outside], before[:, outside])


def test_air_and_other_lesions_are_left_alone() -> None:
    channels, label = patch()
    label[15:17, 8:12, 8:12] = 1  # 32 voxels within the margin of the large one, which is not connected to it
    channels[:, 15:17, 8:12, 8:12] = 7
    label[3:8, 8:14, 8:14] = 1  # now it reaches the air
    assert remove_lesions(channels, label, Always(), spacing_mm=CUBES) == 1
    assert (channels[:, 15:17, 8:12, 8:12] == 7).all()
    assert (label[15:17, 8:12, 8:12] == 1).all()
    assert (channels[:, :3] == 0).all()


def test_what_is_large_is_said_in_mm3() -> None:
    channels, label = patch()
    assert remove_lesions(channels, label, Always(), spacing_mm=(0.5, 0.5, 0.8)) == 0
    assert remove_lesions(channels, label, Always(), spacing_mm=(2, 2, 1.75)) == 2


def test_across_thick_slices_nothing_else_goes() -> None:
    channels, label = patch()
    label[8:14, 8:14, 8:14] = 0
    label[8:14, 8:14, 9] = 1
    before = channels.copy()
    assert remove_lesions(channels, label, Always(), spacing_mm=(0.5, 0.5, 8.0)) == 1
    changed = np.argwhere((channels != before).any(axis=0))
    assert changed.min(axis=0).tolist() == [6, 6, 9]
    assert changed.max(axis=0).tolist() == [15, 15, 9]


def test_without_tissue_around_it_a_lesion_stays() -> None:
    channels, label = np.ones((1, 8, 8, 8), np.float32), np.ones((8, 8, 8), np.uint8)
    assert remove_lesions(channels, label, Always(), spacing_mm=CUBES) == 0
    assert label.all()


def test_an_empty_patch_stays() -> None:
    channels, label = np.zeros((1, 6, 6, 6), np.float32), np.zeros((6, 6, 6), np.uint8)
    assert remove_lesions(channels, label, np.random.default_rng(0), spacing_mm=CUBES) == 0


def test_half_of_them_go_in_the_mean_and_the_same_numbers_give_the_same() -> None:
    gone = []
    for seed in range(200):
        channels, label = patch()
        gone.append(remove_lesions(channels, label, np.random.default_rng(seed), spacing_mm=CUBES))
        if seed < 5:
            again, its_label = patch()
            remove_lesions(again, its_label, np.random.default_rng(seed), spacing_mm=CUBES)
            np.testing.assert_array_equal(again, channels)
            np.testing.assert_array_equal(its_label, label)
    assert 75 <= sum(gone) <= 125  # 100 expected, standard deviation 7


def test_training_patches_have_their_share(tmp_path: Path) -> None:
    channels, label = patch()
    case = store_case(tmp_path / "case", np.moveaxis(channels, 0, -1), label)
    location = PatchLocation(0, (0, 0, 0), None)
    sizes = {}
    for share in (0.0, 0.5, 1.0):
        own = augmenter(label.shape, channels=2, lesion_removal_share=share)
        labels = [own.cut(case, location, np.random.SeedSequence([seed]))[1] for seed in range(60)]
        sizes[share] = [int(one.sum()) for one in labels]
    assert set(sizes[0.0]) == {224}
    assert set(sizes[1.0]) == {224, 8}
    assert 18 <= sizes[1.0].count(8) <= 42
    assert 0 < sizes[0.5].count(8) < sizes[1.0].count(8)
