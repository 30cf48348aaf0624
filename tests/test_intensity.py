"""Each change of intensities against its definition; zeros, labels and shares kept."""

from __future__ import annotations

import numpy as np
import pytest
from augmentation_helpers import OFF, options
from scipy import ndimage

from segment.data import intensity
from segment.data.intensity import (
    bias_field,
    blur,
    brightness_contrast,
    change_intensities,
    gamma,
    low_resolution,
    mix_channels,
    noise,
)

SHAPE = (10, 12, 8)
ISOTROPIC = (1.0, 1.0, 1.0)
SHARES = (
    "bias_field_share",
    "gamma_share",
    "brightness_contrast_share",
    "blur_share",
    "low_resolution_share",
    "noise_share",
)


def patch(channels: int = 2) -> np.ndarray:
    """z-scores [channels, x, y, z] with a background of zeros and a lesion far above 1."""
    image = np.random.default_rng(0).normal(0, 1, (channels, *SHAPE)).astype(np.float32)
    image[:, :3] = 0
    image[:, 5:7, 2:5, 1:4] = 6
    return image


def changed(image: np.ndarray, index: int = 1, **shares: float) -> np.ndarray:
    result = image.copy()
    change_intensities(result, options(**shares), ISOTROPIC, np.random.default_rng(index))
    return result


class TestShares:
    def test_these_are_all_there_are(self) -> None:
        moving = {"affine_share", "elastic_share", "dropout_share", "copy_paste_share", "channel_mixing_share"}
        moving |= {"lesion_removal_share"}
        assert {name for name in OFF if name.endswith("_share")} == {*SHARES, *moving}

    @pytest.mark.parametrize("share", SHARES)
    @pytest.mark.parametrize("channels", [1, 2, 5])
    def test_background_stays_0_and_the_rest_changes(self, share: str, channels: int) -> None:
        image = patch(channels)
        found = changed(image, 4, **{share: 1})
        assert np.isfinite(found).all()
        assert (found[:, :3] == 0).all()
        assert (found[:, 3:] != image[:, 3:]).mean() > 0.7
        if channels > 1:
            assert not np.array_equal(found[0] - image[0], found[1] - image[1])

    @pytest.mark.parametrize("share", SHARES)
    def test_share_is_kept_and_the_rest_stays_bit_for_bit(self, share: str) -> None:
        image = patch(1)
        image[0, 4, 4, 4] = -0.0
        same = 0
        for index in range(200):
            found = changed(image, index, **{share: 0.3})
            same += np.array_equal(found.view(np.uint32), image.view(np.uint32))
        assert 116 <= same <= 162  # 140 expected, standard deviation 6.5

    def test_changes_are_drawn_apart(self) -> None:
        image = patch(1)
        kinds = set()
        for index in range(40):
            found = changed(image, index, noise_share=0.5, brightness_contrast_share=0.5)[0][3:].ravel().astype(float)
            line = np.polyfit(image[0, 3:].ravel(), found, 1)
            noisy = np.abs(np.polyval(line, image[0, 3:].ravel()) - found).max() > 1e-4
            kinds.add((bool(noisy), bool(np.abs(line - [1, 0]).max() > 0.02)))
        assert kinds == {(False, False), (True, False), (False, True), (True, True)}

    def test_lesions_are_not_clipped(self) -> None:
        for share in ("brightness_contrast_share", "gamma_share", "bias_field_share"):
            found = changed(patch(), 2, **{share: 1})
            assert found.max() > 4
            assert found.min() < -2


class TestMixing:
    def test_every_channel_takes_a_share_of_each_other_one(self) -> None:
        image = patch(3).astype(float)
        found = mix_channels(patch(3), np.random.default_rng(3))
        for own in range(3):
            others = [index for index in range(3) if index != own]
            columns = np.stack([image[index].ravel() for index in others], axis=1)
            shares, rest, *_ = np.linalg.lstsq(columns, (found[own] - image[own]).ravel(), rcond=None)
            assert rest[0] < 1e-8
            assert (np.abs(shares) <= 0.3).all()
            assert (np.abs(shares) > 1e-3).all()

    def test_a_channel_alone_stays_bit_for_bit(self) -> None:
        image = patch(1)
        np.testing.assert_array_equal(changed(image, channel_mixing_share=1), image)

    def test_what_is_outside_in_one_channel_stays_outside_there(self) -> None:
        image = patch(2)
        image[0, :, :4] = 0
        for index in range(5):
            found = changed(image, index, channel_mixing_share=1)
            np.testing.assert_array_equal(found == 0, image == 0)
            assert not np.array_equal(found, image)

    def test_its_share_is_drawn_apart_and_before_the_others(self) -> None:
        both, alone = (
            [changed(patch(2), index, channel_mixing_share=0.5, **more) for index in range(60)]
            for more in ({"noise_share": 1.0}, {})
        )
        mixed = [not np.array_equal(found, patch(2)) for found in alone]
        assert 18 <= sum(mixed) <= 42
        for noisy, found in zip(both, alone, strict=True):
            assert np.abs(noisy - found)[:, 3:].std() < 0.25
            assert np.abs(noisy - found)[:, 3:].max() > 0.01


class TestChanges:
    channel = np.random.default_rng(8).normal(size=SHAPE).astype(np.float32)

    def test_brightness_and_contrast_are_linear(self) -> None:
        found = brightness_contrast(self.channel.copy(), np.random.default_rng(0))
        scale, shift = np.polyfit(self.channel.ravel().astype(float), found.ravel().astype(float), 1)
        np.testing.assert_allclose(found, self.channel * scale + shift, atol=1e-5)
        assert 0.75 <= scale <= 1.25
        assert -0.2 <= shift <= 0.2

    def test_gamma_keeps_extremes_and_order(self) -> None:
        found = gamma(self.channel.copy(), np.random.default_rng(0))
        assert found.min() == pytest.approx(self.channel.min(), abs=1e-5)
        assert found.max() == pytest.approx(self.channel.max(), abs=1e-5)
        assert (np.diff(found.ravel()[np.argsort(self.channel, None)]) >= -1e-6).all()
        flat = np.full(SHAPE, 2.5, np.float32)
        np.testing.assert_array_equal(gamma(flat.copy(), np.random.default_rng(0)), flat)

    def test_noise_has_mean_0_the_drawn_width_and_no_pattern(self) -> None:
        found = noise(np.zeros((40, 40, 40), np.float32), np.random.default_rng(0))
        sigma = np.random.default_rng(0).uniform(0.02, 0.2)
        assert found.mean() == pytest.approx(0, abs=4 * sigma / 40**1.5)
        assert found.std() == pytest.approx(sigma, rel=0.02)
        assert abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < 0.02
        again = noise(np.zeros((40, 40, 40), np.float32), np.random.default_rng(0))
        np.testing.assert_array_equal(found, again)
        assert not np.array_equal(found, noise(np.zeros((40, 40, 40), np.float32), np.random.default_rng(1)))

    def test_blur_has_one_width_in_mm(self) -> None:
        spot = np.zeros((15, 15, 15), np.float32)
        spot[7, 7, 7] = 1
        sigma = np.random.default_rng(0).uniform(0.4, 0.9) * 0.5
        found = blur(spot.copy(), np.random.default_rng(0), (0.5, 1.0, 6.0))
        expected = ndimage.gaussian_filter(spot.astype(float), (sigma / 0.5, sigma, 0), truncate=3.0)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found[7, 7, 6] == 0  # slices of 6 mm are too far apart to mix

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_filter_goes_along_its_axis_and_on_at_the_edge(self, axis: int) -> None:
        kernels = [intensity._gaussian(0.8 if own == axis else 0.0) for own in range(3)]
        found = intensity._filter(self.channel, kernels)
        expected = ndimage.gaussian_filter1d(self.channel, 0.8, axis=axis, mode="nearest", truncate=3.0)
        np.testing.assert_allclose(found, expected, atol=1e-6)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_half_the_voxels_are_means_of_pairs_joined_by_lines(self, axis: int) -> None:
        counts = [count // 2 if own == axis else count for own, count in enumerate(SHAPE)]
        found = np.moveaxis(intensity._coarser(self.channel, counts), axis, 0)
        moved = np.moveaxis(self.channel.astype(float), axis, 0)
        pairs = (moved[::2] + moved[1::2]) / 2
        # Voxel 2 i + 1 lies a quarter of the way from pair i to pair i + 1.
        np.testing.assert_allclose(found[1:-1:2], 0.75 * pairs[:-1] + 0.25 * pairs[1:], atol=1e-6)
        np.testing.assert_allclose(found[0], pairs[0], atol=1e-6)

    def test_low_resolution_spares_axes_that_are_coarse_already(self) -> None:
        lines = np.broadcast_to(np.random.default_rng(1).normal(size=8), (16, 16, 8)).astype(np.float32)
        for index in range(20):
            found = low_resolution(lines.copy(), np.random.default_rng(index), (1.0, 1.0, 3.0))
            np.testing.assert_allclose(found, lines, atol=1e-6)

    def test_low_resolution_keeps_the_mean_of_a_lesion(self) -> None:
        spot = np.zeros((24, 24, 24), np.float32)
        spot[11:13, 11:13, 11:13] = 1
        for index in range(20):
            found = low_resolution(spot.copy(), np.random.default_rng(index), ISOTROPIC)
            assert found.sum() == pytest.approx(8, rel=0.25)
            assert found.max() < 1.01

    def test_bias_field_is_smooth_about_the_darkest_value(self) -> None:
        channel = np.full((32, 32, 32), 2.0, np.float32)
        channel[0, 0, 0] = -1.0  # the darkest: it stays
        field = (bias_field(channel.copy(), np.random.default_rng(3)) + 1) / 3
        assert field[0, 0, 0] == 0
        inside = np.log(field[1:, 1:, 1:])
        assert 0.02 < np.abs(inside).max() < 1.2
        for axis in range(3):
            np.testing.assert_allclose(np.diff(inside, 3, axis=axis), 0, atol=1e-4)  # a polynomial of order 2
