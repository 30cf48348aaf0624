"""Random changes of training patches, composed and applied by albumentations.

albumentations' own pixel transforms clip float images to [0, 1] and mix channels, and its `volume` target works slice
by slice. Patches here are z-scores (negative values, lesions far above 1) of channels that vary on their own, so the
transforms below are albumentations transforms with arithmetic of their own. Background is exactly 0 before and after.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from typing import Any

# albumentations asks a server for its newest version while it is imported, unless this is set before.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A  # noqa: N812
import numpy as np
from scipy import ndimage

from segment.config import AugmentationConfig

BRIGHTNESS = 0.2  # largest shift, in standard deviations of the scan
CONTRAST = 0.25  # largest relative change of the scale
GAMMA = 1.5  # largest exponent; the smallest is its inverse
NOISE = (0.02, 0.2)  # standard deviation, in standard deviations of the scan
BLUR = (0.4, 0.9)  # standard deviation in units of the finest spacing: beyond it, lesions of a few voxels are gone
SMALLEST_SIGMA = 0.2  # voxels; a narrower Gaussian leaves the neighbours less than 1e-5


class Flip(A.Transform3D):
    """Mirrors image and label along each axis, half of the time each."""

    def get_params(self) -> dict[str, Any]:
        """Draws the axes."""
        return {"axes": tuple(int(axis) for axis in np.flatnonzero(self.random_generator.random(3) < 0.5))}

    def apply_to_volume(self, volume: np.ndarray, axes: tuple[int, ...], **params: Any) -> np.ndarray:
        """[x, y, z] or [x, y, z, channels] of any dtype, mirrored along `axes`."""
        return np.flip(volume, axes)


class IntensityTransform(A.ImageOnlyTransform):
    """Changes the values of a volume and nothing else: labels pass through, and voxels that are 0 stay 0."""

    def apply_to_volume(self, volume: np.ndarray, **params: Any) -> np.ndarray:
        """float32 [x, y, z, channels] -> the same shape and dtype, each channel changed on its own."""
        result = np.empty_like(volume)
        for channel in range(volume.shape[-1]):
            own = np.array(volume[..., channel], order="C")  # a copy, for `change` to write to
            result[..., channel] = self.change(own, self.random_generator)
        result *= volume != 0
        return result

    def change(self, channel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """float32 [x, y, z] -> float32 [x, y, z], may write to its argument; what it does to zeros is undone."""
        raise NotImplementedError


class BrightnessContrast(IntensityTransform):
    """Scales about the scan's mean, which is 0 in z-scores, and shifts."""

    def change(self, channel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `IntensityTransform.change`."""
        channel *= np.float32(1 + rng.uniform(-CONTRAST, CONTRAST))
        channel += np.float32(rng.uniform(-BRIGHTNESS, BRIGHTNESS))
        return channel


class Gamma(IntensityTransform):
    """A power of the intensities between the patch's extremes, which stay; the exponent is log-uniform."""

    def change(self, channel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `IntensityTransform.change`."""
        exponent = np.float32(GAMMA ** rng.uniform(-1, 1))
        low, high = channel.min(), channel.max()
        if low == high:
            return channel
        channel -= low
        channel /= high - low
        np.power(channel, exponent, out=channel)
        channel *= high - low
        channel += low
        return channel


class Noise(IntensityTransform):
    """Adds Gaussian noise."""

    def change(self, channel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `IntensityTransform.change`."""
        sigma = np.float32(rng.uniform(*NOISE))
        noise = rng.standard_normal(channel.shape, dtype=np.float32)
        noise *= sigma
        channel += noise
        return channel


class Blur(IntensityTransform):
    """A Gaussian of the same width in mm along every axis.

    Args:
        spacing_mm: Of the patch, per axis.
        p: Share of patches.
    """

    class InitSchema(A.ImageOnlyTransform.InitSchema):
        """What albumentations checks on construction."""

        spacing_mm: tuple[float, float, float]

    def __init__(self, spacing_mm: tuple[float, float, float], p: float) -> None:
        super().__init__(p=p)
        self.spacing_mm = spacing_mm

    def change(self, channel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `IntensityTransform.change`."""
        sigma_mm = rng.uniform(*BLUR) * min(self.spacing_mm)
        for axis, spacing in enumerate(self.spacing_mm):
            sigma = sigma_mm / spacing
            if sigma >= SMALLEST_SIGMA and channel.shape[axis] > 1:
                channel = ndimage.gaussian_filter1d(channel, sigma, axis=axis, mode="nearest", truncate=3.0)
        return channel


class Augmenter:
    """Applies the configured changes; safe to call from several threads at once.

    Args:
        config: Which changes, and to what share of the patches.
        spacing_mm: Of the network grid, per axis.
    """

    def __init__(self, config: AugmentationConfig, spacing_mm: Sequence[float]) -> None:
        x, y, z = spacing_mm
        self._config = config
        self._spacing_mm = (float(x), float(y), float(z))
        self._local = threading.local()  # transforms carry their random state, so each thread has its own

    def __call__(
        self, image: np.ndarray, label: np.ndarray, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray]:
        """Changes one patch; the result is a pure function of the arguments.

        Args:
            image: float32 [x, y, z, channels], 0 in the background.
            label: uint8 [x, y, z].
            seed: Source of all randomness.

        Returns:
            Image and label of the same shapes and dtypes; the label moves with the image and its values do not change.
            Where no change is drawn the values are the input's, bit for bit.
        """
        pipeline = self._pipeline()
        # Compose would hand the same seed to every transform, and all would draw the same numbers.
        for index, transform in enumerate(pipeline.transforms):
            # Not seed.spawn, which counts its calls: the same seed would give something else the second time.
            child = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, index))
            state = child.generate_state(4).tobytes()
            transform.set_random_state(np.random.default_rng(child), random.Random(state))
        changed = pipeline(volume=image, mask3d=label)
        return changed["volume"], changed["mask3d"]

    def _pipeline(self) -> A.Compose:
        if not hasattr(self._local, "pipeline"):
            config = self._config
            transforms: list[A.BasicTransform] = [
                Flip(p=float(config.flip)),
                Blur(spacing_mm=self._spacing_mm, p=config.blur_share),
                Noise(p=config.noise_share),
                Gamma(p=config.gamma_share),
                BrightnessContrast(p=config.brightness_contrast_share),
            ]
            self._local.pipeline = A.Compose([transform for transform in transforms if transform.p > 0])
        return self._local.pipeline
