"""Windows over a volume on the network's grid: where they lie, what the network says, and from there to a mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from segment.data.planning import Plan, network_input
from segment.errors import InputError
from segment.evaluation.lesions import below, components_with, find_components, look_up

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


Tile = tuple[AxisTile, ...]  # one window in the volume: its part along each of the three axes


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


def window_tiles(shape: Sequence[int], plan: Plan, *, overlap: float, axis: int) -> list[Tile]:
    """The windows that cover a volume, those with the lowest first voxel along `axis` first.

    Args:
        shape: Voxels per axis of the volume.
        plan: The patch size.
        overlap: Part of a window that neighbours share at least, in [0, 1).
        axis: Along which the volume is finished slab by slab.
    """
    sides = (axis_tiles(size, window, overlap) for size, window in zip(shape, plan.patch_size, strict=True))
    return sorted(itertools.product(*sides), key=lambda tile: tile[axis].target.start)


def window_shape(plan: Plan) -> tuple[int, ...]:
    """Voxels of the volume per axis that the network sees of a window: the patch, and with it neighbouring slices."""
    return tuple(plan.slices if axis == plan.slice_axis else size for axis, size in enumerate(plan.patch_size))


def cut_window(image: np.ndarray, tile: Tile, plan: Plan, window: np.ndarray) -> None:
    """Fills a window with its part of the volume, and with zeros where it reaches outside.

    Args:
        image: float32 [x, y, z, channels] on the network's grid, also memory-mapped.
        tile: The window's place.
        plan: How many slices a 2D model sees.
        window: float32 [*window_shape, channels], overwritten.
    """
    source, target = [side.source for side in tile], [side.target for side in tile]
    if plan.slice_axis is not None and plan.slices > 1:
        axis, around = plan.slice_axis, plan.slices // 2
        middle = target[axis].start
        first, stop = max(0, middle - around), min(image.shape[axis], middle + around + 1)
        target[axis] = slice(first, stop)
        source[axis] = slice(first - middle + around, stop - middle + around)
    inside = window[tuple(source)]
    if inside.size < window.size:
        window.fill(0.0)
    inside[...] = image[tuple(target)]


def predict_windows(forward: Forward, windows: np.ndarray, plan: Plan) -> np.ndarray:
    """Probabilities of a batch of windows.

    Args:
        forward: The network.
        windows: float32 [batch, *window_shape, channels].

    Returns:
        float32 [batch, *patch, classes] in [0, 1].

    Raises:
        InputError: The network gave NaN.
    """
    logits = forward(network_input(windows, plan))
    if plan.slice_axis is not None:
        logits = np.expand_dims(logits, 1 + plan.slice_axis)
    return probabilities_of(np.asarray(logits, np.float32), plan)


def probabilities_of(logits: np.ndarray, plan: Plan) -> np.ndarray:
    """What the network's logits say of each class: the plan's activation, the only place where inference applies it.

    Args:
        logits: float32 [..., outputs].
        plan: The classes, and whether they exclude each other.

    Returns:
        float32 [..., classes] in [0, 1].

    Raises:
        InputError: A logit is NaN.
    """
    probabilities = softmax(logits, axis=-1)[..., 1:] if plan.softmax else _sigmoid(logits)
    if np.isnan(probabilities).any():
        raise InputError(
            "the network gave NaN; expected finite logits: choose a model from before training diverged "
            "(metrics.csv shows when), or train with train.precision=float32"
        )
    return probabilities


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """The logistic function in float32, where NumPy's exponential is vectorised and scipy's `expit` is not."""
    with np.errstate(over="ignore"):  # a probability of 0 then
        values = np.exp(-logits)
    values += 1
    return np.reciprocal(values, out=values)


def blend(total: np.ndarray, first: int, axis: int, tile: Tile, values: np.ndarray) -> None:
    """Adds a window's values with its weights to the planes `first` and after along `axis` that `total` holds.

    Args:
        total: float32 [x, y, z, classes], a part of the volume along `axis` that holds all of the window's voxels.
        first: Plane of the volume that is the first of `total`.
        axis: 0, 1 or 2.
        tile: The window's place in the volume.
        values: float32 [*patch, classes].
    """
    x, y, z = (side.weight for side in tile)
    weight = x[:, None, None, None] * (y[:, None] * z)[..., None]
    target = [side.target for side in tile]
    target[axis] = slice(target[axis].start - first, target[axis].stop - first)
    total[tuple(target)] += values[tuple(side.source for side in tile)] * weight


def label_voxels(probabilities: np.ndarray, plan: Plan, *, threshold: float) -> np.ndarray:
    """Turns probabilities into label values, voxel by voxel.

    Args:
        probabilities: float32 [x, y, z, classes] in [0, 1]; an empty array gives an empty mask.
        plan: The classes' label values.
        threshold: A voxel takes the class of highest probability among those that reach it; the first of equals.

    Returns:
        uint8 [x, y, z] of the values in `plan.label_values`, 0 elsewhere.
    """
    if plan.classes == 1:
        (value,) = plan.label_values.values()
        return (probabilities[..., 0] >= threshold) * np.uint8(value)
    mask = np.zeros(probabilities.shape[:-1], np.uint8)
    highest = np.full(mask.shape, -np.inf, np.float32)
    for index, value in enumerate(plan.label_values.values()):
        probability = probabilities[..., index]
        mask[(probability >= threshold) & (probability > highest)] = value
        np.maximum(highest, probability, out=highest)
    return mask


def peak_voxels(probabilities: np.ndarray, *, min_peak: float) -> np.ndarray:
    """Where the highest probability of any class reaches a peak.

    For a peak above the threshold that class is the one that `label_voxels` gives the voxel.

    Args:
        probabilities: float32 [x, y, z, classes] in [0, 1].
        min_peak: In (0, 1).

    Returns:
        bool [x, y, z].
    """
    reached = probabilities[..., 0] >= min_peak
    for index in range(1, probabilities.shape[-1]):
        reached |= probabilities[..., index] >= min_peak
    return reached


def remove_doubtful(
    mask: np.ndarray, plan: Plan, *, min_lesion_mm3: float, voxel_mm3: float, peaks: np.ndarray | None
) -> None:
    """Sets connected components (26 neighbours) of a class that are too small or too faint to 0, in place.

    Args:
        mask: uint8 [x, y, z] of label values.
        plan: The classes' label values.
        min_lesion_mm3: Components below it go; 0 removes none.
        voxel_mm3: Volume of a voxel.
        peaks: bool [x, y, z], as `peak_voxels` gives it; components without any of these voxels go. None removes none.
    """
    if min_lesion_mm3 <= 0 and peaks is None:
        return
    for value in plan.label_values.values():
        components = find_components(mask == value)
        gone = below(components.n_voxels * voxel_mm3, min_lesion_mm3)
        if peaks is not None:
            gone |= ~components_with(components, peaks)
        if gone.any():
            mask[look_up(np.append(False, gone), components.labels)] = 0


def to_mask(
    probabilities: np.ndarray,
    plan: Plan,
    *,
    threshold: float,
    min_lesion_mm3: float,
    voxel_mm3: float,
    min_peak: float = 0.0,
) -> np.ndarray:
    """`label_voxels`, then `remove_doubtful`: float32 [x, y, z, classes] to uint8 [x, y, z] of label values."""
    mask = label_voxels(probabilities, plan, threshold=threshold)
    peaks = peak_voxels(probabilities, min_peak=min_peak) if min_peak > threshold else None
    remove_doubtful(mask, plan, min_lesion_mm3=min_lesion_mm3, voxel_mm3=voxel_mm3, peaks=peaks)
    return mask
