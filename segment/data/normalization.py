"""Intensities of one channel: which voxels belong to the subject, and a common scale for them.

`zscore` and `percentile` give the subject's voxels mean 0 and standard deviation 1. `tissue` looks at landmarks of the
histogram that lesions do not move: 0 is the main tissue peak, -3 the darkest tissue.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from segment.data.components import label_components

PERCENTILES = (0.5, 99.5)
HISTOGRAM_PERCENTILES = (0.1, 99.9)  # ends of the histogram: a few hot voxels must not make its bins coarse
BINS = 512
SMOOTHING = 0.02  # standard deviation of the kernel, as a share of the histogram's range
PEAK_SHARE = 0.5  # of the highest peak: lower ones are no main tissue
DARK_PERCENTILE = 2.0  # fluid on T1 and FLAIR
DARK_VALUE = -3.0  # a brain then has a standard deviation of about 1, as after a z-score
BLOCK_VOXELS = 1 << 21  # voxels that statistics are taken of at a time
LEAST_UNIT = 0.1  # of the z-score's: below it the peak is that of air, or of an image of few values


def inside_mask(channel: np.ndarray) -> np.ndarray:
    """bool [x, y, z]: all but the zeros that reach the border of the box, so zeros enclosed by tissue are inside."""
    zero = channel == 0
    if not zero.any():
        return ~zero
    components, count = label_components(zero, connectivity=6)
    faces = [
        components[side] for side in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1])
    ]
    kept = np.ones(count + 1, bool)
    for face in faces:
        kept[np.unique(face)] = False
    kept[0] = True  # component 0 is all that is not zero
    for part, numbers in zip(_blocks(zero), _blocks(components, like=zero), strict=True):
        part[...] = kept[numbers]  # indices become 8 bytes each: never for the whole volume at once
    return zero


def _blocks(volume: np.ndarray, *, like: np.ndarray | None = None) -> list[np.ndarray]:
    """Views of some planes each, together the whole volume, cut along the axis that is outermost in memory.

    `like` is another volume of the same shape, whose axis is taken: so both are cut in the same places.
    """
    steps = [abs(stride) for stride in (volume if like is None else like).strides]
    turned = volume if steps[0] >= steps[-1] else volume.T
    planes = max(1, BLOCK_VOXELS // max(1, turned[:1].size))
    return [turned[first : first + planes] for first in range(0, turned.shape[0], planes)]


def normalise(
    channel: np.ndarray,
    inside: np.ndarray,
    how: str,
    *,
    out: np.ndarray | None = None,
    window: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Brings one channel to the scale of the network.

    Beside the arguments and the result, `zscore` needs a few MiB, `percentile` 4 bytes and `tissue` 24 bytes a voxel.

    Args:
        channel: float32 [x, y, z].
        inside: bool [x, y, z], of the subject; nothing else is looked at.
        how: `zscore` (mean 0, standard deviation 1), `percentile` (the same after clipping at the 0.5th and 99.5th
            percentile) or `tissue` (see `tissue_scale`).
        out: float32 [x, y, z] that takes the result, or None for a new one.
        window: Low, high, centre and unit to take with `percentile` instead of the channel's own, for CT, whose units
            mean the same in every scan.

    Returns:
        float32 [x, y, z]; 0 outside, and everywhere for a channel that is constant inside, unless a window is given.
    """
    result = np.empty(channel.shape, np.float32) if out is None else out
    low, high = -np.inf, np.inf
    if window is None and how == "percentile" and inside.any():
        low, high = np.percentile(channel[inside], PERCENTILES, overwrite_input=True).astype(np.float64)
    if how == "tissue":
        values = channel[inside].astype(np.float64)
        flat = not values.size or values.min() == values.max()
        centre, unit = (0.0, 0.0) if flat else tissue_scale(values)
        del values
    elif window is not None:
        low, high, centre, unit = window
    else:
        centre, unit = _moments(channel, inside, low, high)
    for part, own, values in _subject(channel, inside, result):
        part[...] = 0.0
        if unit > 0.0:
            part[own] = (np.clip(values, low, high) - centre) / unit
    return result


def _subject(
    channel: np.ndarray, inside: np.ndarray, result: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Block by block: a part of the result, the subject in it, and the subject's values as float64 [n]."""
    blocks = (_blocks(volume, like=channel) for volume in (channel, inside, result))
    for values, own, part in zip(*blocks, strict=True):
        yield part, own, values[own].astype(np.float64)


def _moments(channel: np.ndarray, inside: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of the subject's clipped values; a deviation of 0 where all of them are the same."""
    lowest, highest, total, squares = np.inf, -np.inf, 0.0, 0.0
    count = max(1, int(np.count_nonzero(inside)))
    for _, _, values in _subject(channel, inside, inside):
        if values.size:
            lowest, highest = min(lowest, values.min()), max(highest, values.max())
            total += np.clip(values, low, high).sum()
    if lowest >= highest:
        return 0.0, 0.0
    for _, _, values in _subject(channel, inside, inside):
        squares += np.square(np.clip(values, low, high) - total / count).sum()
    return total / count, float(np.sqrt(squares / count))


def tissue_scale(values: np.ndarray) -> tuple[float, float]:
    """Where the main tissue lies, and the unit that puts the darkest tissue at -3.

    The main tissue is the brightest peak of the smoothed histogram that is at least half as high as the highest one:
    white matter on T1; white and grey matter, which overlap, on FLAIR. Its middle is the mean of the voxels between the
    points where the histogram falls to half the peak. The darkest tissue is the 2nd percentile: fluid. Lesions lie
    outside that stretch or are few in it, and they are not as dark. Of the same family as the peak-based scale of
    Shinohara et al. 2014 (NeuroImage: Clinical 6:9) and the landmarks of Nyul and Udupa 1999 (Magnetic Resonance in
    Medicine 42:1072), in the simplest form: one shift and one factor.

    Args:
        values: float64 [n], finite, not all the same, of a subject without air around it.

    Returns:
        The middle of the peak and a third of its distance from the 2nd percentile; mean and standard deviation of all
        values where there is no such peak above dark tissue.
    """
    mean, deviation = float(values.mean()), float(values.std())
    dark, low, high = np.percentile(values, [DARK_PERCENTILE, *HISTOGRAM_PERCENTILES])
    if low < high:
        counts, edges = np.histogram(values, BINS, (low, high))
        density = ndimage.gaussian_filter1d(counts.astype(np.float64), SMOOTHING * BINS, mode="constant")
        first, last = _half_maximum(density, _main_peak(density))
        core = values[(values >= edges[first]) & (values <= edges[last + 1])]
        middle = float(core.mean()) if core.size else float(dark)
        unit = (float(dark) - middle) / DARK_VALUE
        if unit > LEAST_UNIT * deviation:
            return middle, unit
    return mean, deviation


def _main_peak(density: np.ndarray) -> int:
    """Bin of the last local maximum that is high enough."""
    padded = np.pad(density, 1, constant_values=-1.0)
    rising, falling = padded[1:-1] > padded[:-2], padded[1:-1] >= padded[2:]
    return int(np.flatnonzero(rising & falling & (density >= PEAK_SHARE * density.max()))[-1])


def _half_maximum(density: np.ndarray, peak: int) -> tuple[int, int]:
    """First and last bin of the stretch around a peak that is at least half as high."""
    below = np.flatnonzero(density < density[peak] / 2)
    left, right = below[below < peak], below[below > peak]
    return (int(left[-1]) + 1 if left.size else 0), (int(right[0]) - 1 if right.size else len(density) - 1)
