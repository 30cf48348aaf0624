"""Random changes of intensities of 3D patches.

Patches are z-scores: negative values, lesions far above 1, and 0 outside the subject, which `change_intensities` keeps.
Filters run through OpenCV on one thread, several times faster than scipy's; each function here but `mix_channels` says
what it does to one channel, a C-ordered float32 [x, y, z] that it may write to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from segment.config import AugmentationConfig

MIXING = 0.3  # largest share of another channel that is added or taken away
BRIGHTNESS = 0.2  # largest shift, in standard deviations of the scan
CONTRAST = 0.25  # largest relative change of the scale
GAMMA = 1.5  # largest exponent; the smallest is its inverse
NOISE = (0.02, 0.2)  # standard deviation, in standard deviations of the scan
BLUR = (0.4, 0.9)  # standard deviation in units of the finest spacing: beyond it, lesions of a few voxels are gone
SMALLEST_SIGMA = 0.2  # voxels; a narrower Gaussian leaves the neighbours less than 1e-5
BIAS = 0.1  # standard deviation of each coefficient of the bias field's logarithm
THICK_SLICES = 3.0  # largest slice thickness that is simulated, in units of the finest spacing
COARSE_VOXELS = 1.75  # largest edge of voxels that are coarser along all axes, in the same unit

Spacing = tuple[float, float, float]


def change_intensities(
    channels: np.ndarray, config: AugmentationConfig, spacing_mm: Spacing, rng: np.random.Generator
) -> None:
    """Applies each change to its share of the patches, every channel with numbers of its own, in place.

    Args:
        channels: float32 [channels, x, y, z], C-ordered. Voxels that are 0 stay 0; where nothing is drawn, all values
            stay bit for bit.
        config: The shares.
        spacing_mm: Per axis.
        rng: All randomness comes from it; its draws do not depend on the values.
    """
    # In the order in which a scanner makes them: field and contrast, then the grid, then noise.
    changes: tuple[tuple[float, Callable[[np.ndarray, np.random.Generator], np.ndarray]], ...] = (
        (config.bias_field_share, bias_field),
        (config.gamma_share, gamma),
        (config.brightness_contrast_share, brightness_contrast),
        (config.blur_share, lambda channel, own: blur(channel, own, spacing_mm)),
        (config.low_resolution_share, lambda channel, own: low_resolution(channel, own, spacing_mm)),
        (config.noise_share, noise),
    )
    mixes, *numbers = rng.random(1 + len(changes))
    drawn = [change for (share, change), number in zip(changes, numbers, strict=True) if number < share]
    mixed = mix_channels(channels, rng) if mixes < config.channel_mixing_share else channels
    if mixed is channels and not drawn:
        return
    for channel, changed in zip(channels, mixed, strict=True):
        subject = channel != 0
        for change in drawn:
            changed = change(changed, rng)
        np.multiply(changed, subject, out=channel)


def mix_channels(channels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds to every channel a share of each other one, up to 0.3 either way; one channel alone stays as it is.

    Echo, repetition and inversion times decide how much of each property of the tissue a sequence shows, so another
    protocol, or another patient's tissue, looks much like a mixture of the channels: cortex that is hardly brighter
    than white matter in one FLAIR stands out in the next, and is no lesion there.

    Args:
        channels: float32 [channels, x, y, z].

    Returns:
        A new array of that shape.
    """
    weights = rng.uniform(-MIXING, MIXING, (len(channels), len(channels))).astype(np.float32)
    np.fill_diagonal(weights, 1.0)
    return (weights @ channels.reshape(len(channels), -1)).reshape(channels.shape)


def bias_field(channel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multiplies by a smooth field, about the darkest value, which stands for no signal.

    The field's logarithm is a polynomial of order 2 in each coordinate, without mixed terms (after Sudre et al.,
    Medical Image Analysis 2017, who use all terms of a polynomial).
    """
    low = channel.min()
    channel -= low
    for axis, count in enumerate(channel.shape):
        place = np.linspace(-1.0, 1.0, count) if count > 1 else np.zeros(1)
        slope, bend = rng.normal(0.0, BIAS, 2)
        field = np.exp(slope * place + bend * (place**2 - 1 / 3)).astype(np.float32)
        channel *= field.reshape([-1 if other == axis else 1 for other in range(3)])
    channel += low
    return channel


def brightness_contrast(channel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scales about the scan's mean, which is 0 in z-scores, and shifts."""
    channel *= np.float32(1 + rng.uniform(-CONTRAST, CONTRAST))
    channel += np.float32(rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    return channel


def gamma(channel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A power of the intensities between the patch's extremes, which stay; the exponent is log-uniform."""
    exponent = np.float32(GAMMA ** rng.uniform(-1, 1))
    low, high = channel.min(), channel.max()
    if low == high:
        return channel
    channel -= low
    channel *= 1 / (high - low)
    np.power(channel, exponent, out=channel)
    channel *= high - low
    channel += low
    return channel


def noise(channel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise."""
    sigma = float(rng.uniform(*NOISE))
    added = np.empty((len(channel), channel[0].size), np.float32)
    cv2.setRNGSeed(int(rng.integers(2**31)))  # the generator is the thread's own, four times as fast as NumPy's
    cv2.randn(added, 0.0, sigma)
    channel += added.reshape(channel.shape)
    return channel


def blur(channel: np.ndarray, rng: np.random.Generator, spacing_mm: Spacing) -> np.ndarray:
    """A Gaussian of the same width in mm along every axis."""
    sigma_mm = rng.uniform(*BLUR) * min(spacing_mm)
    return _filter(channel, [_gaussian(sigma_mm / spacing) for spacing in spacing_mm])


def _gaussian(sigma: float) -> np.ndarray:
    if sigma < SMALLEST_SIGMA:
        return np.ones(1, np.float32)
    radius = int(3.0 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def _filter(channel: np.ndarray, kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Correlates [x, y, z] with one kernel an axis; the edge values go on outside."""
    edge = cv2.BORDER_REPLICATE
    if max(kernels[1].size, kernels[2].size) > 1:
        result = np.empty_like(channel)
        for source, target in zip(channel, result, strict=True):
            cv2.sepFilter2D(source, -1, kernels[2], kernels[1], dst=target, borderType=edge)
        channel = result
    if kernels[0].size > 1:
        flat = channel.reshape(len(channel), -1)
        channel = cv2.sepFilter2D(flat, -1, np.ones(1, np.float32), kernels[0], borderType=edge).reshape(channel.shape)
    return channel


def low_resolution(channel: np.ndarray, rng: np.random.Generator, spacing_mm: Spacing) -> np.ndarray:
    """Averages to coarser voxels and interpolates back: thick slices along one axis, or larger voxels along all.

    Which of the two is drawn evenly, the thickness uniformly.
    """
    thick, axis, share = bool(rng.random() < 0.5), int(rng.integers(3)), rng.random()
    wanted_mm = min(spacing_mm) * (1 + share * ((THICK_SLICES if thick else COARSE_VOXELS) - 1))
    return _coarser(
        channel,
        [
            max(min(2, count), round(count * spacing / wanted_mm))
            if wanted_mm > spacing and (own == axis or not thick)
            else count
            for own, (count, spacing) in enumerate(zip(channel.shape, spacing_mm, strict=True))
        ],
    )


def _coarser(channel: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Averages [x, y, z] to so many voxels an axis, not more than there are, and interpolates back linearly."""
    slabs, rows, columns = channel.shape
    if (rows, columns) != tuple(counts[1:]):
        result = np.empty_like(channel)
        # One picture a slab, or one of all slabs where only their columns change.
        pictures = (1, slabs * rows, columns) if rows == counts[1] else channel.shape
        for source, target in zip(channel.reshape(pictures), result.reshape(pictures), strict=True):
            height, width = source.shape
            fewer = height if rows == counts[1] else counts[1]
            small = cv2.resize(source, (counts[2], fewer), interpolation=cv2.INTER_AREA)
            cv2.resize(small, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
        channel = result
    if slabs != counts[0]:
        flat = channel.reshape(slabs, -1)
        small = cv2.resize(flat, (flat.shape[1], counts[0]), interpolation=cv2.INTER_AREA)
        channel = cv2.resize(small, (flat.shape[1], slabs), interpolation=cv2.INTER_LINEAR).reshape(channel.shape)
    return channel
