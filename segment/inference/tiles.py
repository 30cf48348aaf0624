"""Sliding windows over a volume on the network's grid, blended into probabilities, and from probabilities to a mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from segment.data.planning import Plan
from segment.errors import InputError
from segment.evaluation.lesions import below, find_components, look_up

# From float32 [batch, *patch, channels] to float32 logits [batch, *patch, classes]; *patch has 2 or 3 axes as the plan.
Forward = Callable[[np.ndarray], np.ndarray]

# Standard deviation of the weights as a share of the window (as in nnU-Net): 0.0003 of the middle's weight at an edge.
DEVIATION = 1 / 8


@dataclass(frozen=True, eq=False)
class AxisTile:
    """One window's part along one axis.

    Attributes:
        target: Voxels of the volume that the window covers.
        source: The same voxels, counted in the window; less than all of it where the window reaches outside.
        weight: float32, one for each of these voxels. At every voxel those of all windows of the axis sum to 1.
    """

    target: slice
    source: slice
    weight: np.ndarray


def axis_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of windows that cover an axis evenly, from its first voxel to its last.

    Args:
        size: Voxels of the axis.
        window: Voxels of the window.
        overlap: Neighbours share at least this part of a window, in [0, 1).

    Returns:
        Rising starts; one, 0 or below, that centres the volume in the window where the window is as large or larger.
    """
    if size <= window:
        return [-((window - size) // 2)]
    step = max(1, math.floor(window * (1 - overlap)))
    count = math.ceil((size - window) / step) + 1
    return [round(index * (size - window) / (count - 1)) for index in range(count)]


def axis_tiles(size: int, window: int, overlap: float) -> list[AxisTile]:
    """The windows along one axis with Gaussian weights, largest in the middle, that sum to 1 at every voxel.

    The weight of a window in the volume is the product of its weights along the axes, so those sum to 1 as well:
    blending needs no volume of weights, and a constant stays what it was at borders and corners too.
    """
    starts = axis_starts(size, window, overlap)
    offset = (np.arange(window) - (window - 1) / 2) / (window * DEVIATION)
    bell = np.exp(-0.5 * offset**2)
    ends = [(max(start, 0), min(start + window, size)) for start in starts]
    total = np.zeros(size)
    for start, (first, last) in zip(starts, ends, strict=True):
        total[first:last] += bell[first - start : last - start]
    tiles = []
    for start, (first, last) in zip(starts, ends, strict=True):
        source = slice(first - start, last - start)
        tiles.append(AxisTile(slice(first, last), source, (bell[source] / total[first:last]).astype(np.float32)))
    return tiles


def predict_volume(forward: Forward, image: np.ndarray, plan: Plan, *, overlap: float, window_batch: int) -> np.ndarray:
    """Predicts a volume of any size window by window; windows of a 2D plan are slices across its slice axis.

    Where the volume is smaller than the window, or the window reaches outside, the network sees zeros.

    Args:
        forward: The network. Always called with `window_batch` windows; the last batch is filled up with repeats.
        image: float32 [x, y, z, channels] on the network's grid, also memory-mapped.
        plan: Patch size and classes.
        overlap: Part of a window that neighbours share at least, in [0, 1).
        window_batch: Windows at a time.

    Returns:
        float32 [x, y, z, classes] in [0, 1]: the sigmoids of the logits, averaged with Gaussian weights. Holds no more
        than this array and one batch beside the image.

    Raises:
        InputError: The network gave NaN.
    """
    sizes = zip(image.shape[:3], plan.patch_size, strict=True)
    tiles = list(itertools.product(*(axis_tiles(size, window, overlap) for size, window in sizes)))
    result = np.zeros((*image.shape[:3], plan.classes), np.float32)
    for first in range(0, len(tiles), window_batch):
        group = tiles[first : first + window_batch]
        probabilities = _predict_windows(forward, _cut(image, group, plan, window_batch), plan)
        for tile, probability in zip(group, probabilities, strict=False):
            _blend(result, tile, probability)
    return np.clip(result, 0.0, 1.0, out=result)  # weights sum to 1 up to rounding


def _cut(image: np.ndarray, group: Sequence[tuple[AxisTile, ...]], plan: Plan, window_batch: int) -> np.ndarray:
    windows = np.zeros((window_batch, *plan.patch_size, image.shape[-1]), np.float32)
    for window, tile in zip(windows, group, strict=False):
        window[tuple(axis.source for axis in tile)] = image[tuple(axis.target for axis in tile)]
    windows[len(group) :] = windows[len(group) - 1]
    return windows


def _predict_windows(forward: Forward, windows: np.ndarray, plan: Plan) -> np.ndarray:
    """float32 [batch, x, y, z, classes]: probabilities; the slice axis of a 2D plan is left out for the network."""
    if plan.slice_axis is None:
        logits = forward(windows)
    else:
        logits = np.expand_dims(forward(windows.squeeze(1 + plan.slice_axis)), 1 + plan.slice_axis)
    probabilities = expit(np.asarray(logits, np.float32))
    if np.isnan(probabilities).any():
        raise InputError(
            "the network gave NaN; expected finite logits: choose a model from before training diverged "
            "(metrics.csv shows when), or train with train.precision=float32"
        )
    return probabilities


def _blend(result: np.ndarray, tile: tuple[AxisTile, ...], probability: np.ndarray) -> None:
    part = probability[tuple(axis.source for axis in tile)]
    x, y, z = (axis.weight for axis in tile)
    weight = x[:, None, None, None] * y[:, None, None] * z[:, None]
    result[tuple(axis.target for axis in tile)] += part * weight


def to_mask(
    probabilities: np.ndarray, plan: Plan, *, threshold: float, min_lesion_mm3: float, voxel_mm3: float
) -> np.ndarray:
    """Turns probabilities into label values.

    Args:
        probabilities: float32 [x, y, z, classes] in [0, 1]; an empty array gives an empty mask.
        plan: The classes' label values.
        threshold: A voxel takes the class of highest probability among those that reach it; the first of equals.
        min_lesion_mm3: Connected components (26 neighbours) of a class below this volume are removed; 0 removes none.
        voxel_mm3: Volume of a voxel.

    Returns:
        uint8 [x, y, z] of the values in `plan.label_values`, 0 elsewhere.
    """
    mask = np.zeros(probabilities.shape[:-1], np.uint8)
    highest = np.full(mask.shape, -np.inf, np.float32)
    for index, value in enumerate(plan.label_values.values()):
        probability = probabilities[..., index]
        mask[(probability >= threshold) & (probability > highest)] = value
        np.maximum(highest, probability, out=highest)
    if min_lesion_mm3 > 0:
        for value in plan.label_values.values():
            components = find_components(mask == value)
            small = below(components.n_voxels * voxel_mm3, min_lesion_mm3)
            mask[look_up(np.append(False, small), components.labels)] = 0
    return mask
