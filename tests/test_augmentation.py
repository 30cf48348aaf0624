"""Augmentation: exact on labels, bit-exact where nothing is drawn, rebuilt from its seed, and silent on the network."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage

from segment.config import AugmentationConfig
from segment.data.augmentation import Augmenter, Blur, BrightnessContrast, Flip, Gamma, Noise

OFF = {
    "flip": False,
    "brightness_contrast_share": 0,
    "gamma_share": 0,
    "noise_share": 0,
    "blur_share": 0,
}
SHARES = [name for name in OFF if name != "flip"]
SHAPE = (10, 12, 8)


def augmenter(**changes: object) -> Augmenter:
    return Augmenter(AugmentationConfig.model_validate({**OFF, **changes}), (1.0, 1.0, 1.0))


def patch(channels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """z-scores with a background of zeros, a lesion far above 1, and its label."""
    image = np.random.default_rng(0).normal(0, 1, (*SHAPE, channels)).astype(np.float32)
    image[:3] = 0
    image[5:7, 2:5, 1:4] = 6
    label = np.zeros(SHAPE, np.uint8)
    label[5:7, 2:5, 1:4] = 3
    return image, label


def seed(index: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([5, index])


class TestIdentity:
    def test_nothing_configured_gives_the_input_bit_for_bit(self) -> None:
        image, label = patch()
        image[4, 4, 4] = -0.0
        found, moved = augmenter()(image, label, seed(0))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.view(np.uint32), image.view(np.uint32))
        np.testing.assert_array_equal(moved, label)

    def test_nothing_drawn_gives_the_input_bit_for_bit(self) -> None:
        image, label = patch()
        change = augmenter(**dict.fromkeys(SHARES, 0.1))
        results = [change(image, label, seed(index))[0] for index in range(60)]
        same = sum(np.array_equal(found.view(np.uint32), image.view(np.uint32)) for found in results)
        assert 25 <= same <= 53  # 0.9^4 = 66% of 60 is 39

    @pytest.mark.parametrize("channels", [1, 2])
    def test_input_is_not_written_to(self, channels: int) -> None:
        image, label = patch(channels)
        kept = image.copy(), label.copy()
        augmenter(flip=True, **dict.fromkeys(SHARES, 1))(image, label, seed(3))
        np.testing.assert_array_equal(image, kept[0])
        np.testing.assert_array_equal(label, kept[1])


class TestFlips:
    def test_all_8_come_equally_often_and_exactly(self) -> None:
        image, label = patch()
        image[..., 0] = np.arange(image[..., 0].size).reshape(SHAPE)
        found = [0] * 8
        axes = [tuple(axis for axis in range(3) if code >> axis & 1) for code in range(8)]
        change = augmenter(flip=True)
        for index in range(400):
            result, moved = change(image, label, seed(index))
            code = next(c for c in range(8) if np.array_equal(result, np.flip(image, axes[c])))
            np.testing.assert_array_equal(moved, np.flip(label, axes[code]))
            found[code] += 1
        assert min(found) > 25  # 50 expected, standard deviation 6.6

    def test_label_values_and_lesion_stay_together(self) -> None:
        image, label = patch()
        change = augmenter(flip=True, **dict.fromkeys(SHARES, 1))
        for index in range(20):
            result, moved = change(image, label, seed(index))
            assert moved.dtype == np.uint8
            assert np.unique(moved, return_counts=True)[1].tolist() == [960 - 18, 18]
            assert result[moved == 3].mean() > 2  # the lesion is as bright as before, about


class TestIntensity:
    @pytest.mark.parametrize("share", SHARES)
    @pytest.mark.parametrize("channels", [1, 2, 5])
    def test_background_stays_0_and_labels_stay(self, share: str, channels: int) -> None:
        image, label = patch(channels)
        found, moved = augmenter(**{share: 1})(image, label, seed(1))
        assert found.shape == image.shape
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        assert (found[:3] == 0).all()
        assert (found[3:] != image[3:]).mean() > 0.9
        np.testing.assert_array_equal(moved, label)

    @pytest.mark.parametrize("share", SHARES)
    def test_share_is_kept(self, share: str) -> None:
        image, label = patch(1)
        change = augmenter(**{share: 0.3})
        changed = sum(not np.array_equal(change(image, label, seed(index))[0], image) for index in range(200))
        assert 38 <= changed <= 84  # 60 expected, standard deviation 6.5

    def test_lesions_are_not_clipped(self) -> None:
        image, label = patch()
        for share in ("brightness_contrast_share", "gamma_share"):
            found = augmenter(**{share: 1})(image, label, seed(2))[0]
            assert found.max() > 4
            assert found.min() < -2

    def test_transforms_do_not_draw_the_same_numbers(self) -> None:
        # One seed for all transforms, albumentations' way, would apply all of equal share together or none.
        image, label = patch(1)
        both = augmenter(noise_share=0.5, brightness_contrast_share=0.5)
        kinds = set()
        for index in range(40):
            found = both(image, label, seed(index))[0][3:].ravel().astype(float)
            line = np.polyfit(image[3:].ravel(), found, 1)
            noisy = np.abs(np.polyval(line, image[3:].ravel()) - found).max() > 1e-4
            shifted = np.abs(line - [1, 0]).max() > 0.02
            kinds.add((bool(noisy), bool(shifted)))
        assert kinds == {(False, False), (True, False), (False, True), (True, True)}

    def test_channels_change_on_their_own(self) -> None:
        image, label = patch(1)
        image = np.repeat(image, 2, axis=-1)
        for share in ("brightness_contrast_share", "gamma_share", "noise_share", "blur_share"):
            found = augmenter(**{share: 1})(image, label, seed(4))[0]
            assert not np.array_equal(found[..., 0], found[..., 1])


class TestTransforms:
    rng = np.random.default_rng(8)

    def test_brightness_and_contrast_are_linear(self) -> None:
        channel = self.rng.normal(size=SHAPE).astype(np.float32)
        found = BrightnessContrast(p=1).change(channel.copy(), np.random.default_rng(0))
        scale, shift = np.polyfit(channel.ravel().astype(float), found.ravel().astype(float), 1)
        np.testing.assert_allclose(found, channel * scale + shift, atol=1e-5)
        assert 0.75 <= scale <= 1.25
        assert -0.2 <= shift <= 0.2

    def test_gamma_keeps_extremes_and_order(self) -> None:
        channel = self.rng.normal(size=SHAPE).astype(np.float32)
        found = Gamma(p=1).change(channel.copy(), np.random.default_rng(0))
        assert found.min() == pytest.approx(channel.min(), abs=1e-5)
        assert found.max() == pytest.approx(channel.max(), abs=1e-5)
        assert (np.diff(found.ravel()[np.argsort(channel, None)]) >= -1e-6).all()
        flat = np.full(SHAPE, 2.5, np.float32)
        np.testing.assert_array_equal(Gamma(p=1).change(flat.copy(), np.random.default_rng(0)), flat)

    def test_noise_has_mean_0_and_the_drawn_width(self) -> None:
        found = Noise(p=1).change(np.zeros((40, 40, 40), np.float32), np.random.default_rng(0))
        sigma = np.random.default_rng(0).uniform(0.02, 0.2)
        assert found.mean() == pytest.approx(0, abs=4 * sigma / 40**1.5)
        assert found.std() == pytest.approx(sigma, rel=0.02)

    def test_blur_has_one_width_in_mm(self) -> None:
        channel = np.zeros((15, 15, 15), np.float32)
        channel[7, 7, 7] = 1
        sigma = np.random.default_rng(0).uniform(0.4, 0.9) * 0.5
        found = Blur(spacing_mm=(0.5, 1.0, 6.0), p=1).change(channel.copy(), np.random.default_rng(0))
        expected = ndimage.gaussian_filter(channel.astype(float), (sigma / 0.5, sigma, 0), truncate=3.0)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert found[7, 7, 6] == 0  # slices of 6 mm are too far apart to mix


class TestRebuilding:
    change = augmenter(flip=True, **dict.fromkeys(SHARES, 0.5))

    def test_pure_function_of_the_seed(self) -> None:
        image, label = patch()
        first = [self.change(image, label, seed(index)) for index in range(12)]
        again = augmenter(flip=True, **dict.fromkeys(SHARES, 0.5))
        for index in reversed(range(12)):  # another order, another object
            same_seed = seed(index)
            again(image, label, same_seed)
            found, moved = again(image, label, same_seed)
            np.testing.assert_array_equal(found, first[index][0])
            np.testing.assert_array_equal(moved, first[index][1])
        assert len({found.tobytes() for found, _ in first}) > 8

    def test_threads_do_not_disturb_each_other(self) -> None:
        image, label = patch()
        alone = [self.change(image, label, seed(index))[0].tobytes() for index in range(64)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda index: self.change(image, label, seed(index))[0].tobytes(), range(64)))
        assert together == alone

    def test_flip_axes_come_from_the_transforms_own_state(self) -> None:
        flip = Flip(p=1)
        flip.set_random_state(np.random.default_rng(1), flip.py_random)
        expected = tuple(np.flatnonzero(np.random.default_rng(1).random(3) < 0.5))
        assert flip.get_params()["axes"] == expected


class TestNothingPhonesHome:
    CODE = """
import socket

def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
import segment.data.augmentation
import sys
assert "albumentations" in sys.modules
assert "tensorflow" not in sys.modules
"""

    @pytest.mark.parametrize("setting", [None, "0"])
    def test_import_opens_no_connection(self, setting: str | None) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
        if setting is not None:
            environment["NO_ALBUMENTATIONS_UPDATE"] = setting
        done = subprocess.run(
            [sys.executable, "-c", self.CODE], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
