"""Volumes slab by slab: along one axis, planes leave as soon as no further window touches them.

What is held of a prediction is one window's depth of planes. Those that are finished go back to the scan's own grid
and are forgotten there as well, unless the probabilities themselves are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segment.data.geometry import Placement, axis_matrix, resample
from segment.data.planning import Plan
from segment.inference.tiles import Forward, Tile, blend, cut_window, window_shape, window_tiles
from segment.inference.tta import voters_of
from segment.inference.uncertainty import tally

# From float32 [batch, *patch, channels] to float32 probabilities [batch, *patch, classes]; the patch has three axes.
Voter = Callable[[np.ndarray], np.ndarray]

RESTORED_VALUES = 2**23  # numbers brought to the scan's grid at a time, 32 MiB


@dataclass(frozen=True, eq=False)
class Slab:
    """Planes along one axis of a volume.

    Attributes:
        axis: 0, 1 or 2.
        first: The first plane's index in the volume.
        mean: float32 [x, y, z, classes], probabilities.
        variance: float32 of the same shape, of the votes around their mean; None where nobody asked.
    """

    axis: int
    first: int
    mean: np.ndarray
    variance: np.ndarray | None

    @property
    def stop(self) -> int:
        """One past the last plane's index in the volume."""
        return self.first + self.mean.shape[self.axis]

    @property
    def arrays(self) -> list[np.ndarray]:
        """The mean and, where there is one, the variance."""
        return [self.mean] if self.variance is None else [self.mean, self.variance]

    def of(self, first: int, arrays: Sequence[np.ndarray]) -> Slab:
        """Other planes along the same axis."""
        return Slab(self.axis, first, arrays[0], arrays[1] if len(arrays) > 1 else None)

    def planes(self, first: int, stop: int) -> Slab:
        """A view of some of the planes, numbered as in the volume."""
        inside = _along(self.axis, first - self.first, stop - self.first)
        return self.of(first, [array[inside] for array in self.arrays])


def _along(axis: int, first: int, stop: int | None) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(first, stop),)


def slab_axis(shape: Sequence[int], window: Sequence[int]) -> int:
    """The axis along which a slab as deep as the window holds the fewest voxels; the first of equals."""
    return min(range(3), key=lambda axis: min(window[axis], shape[axis]) / shape[axis])


def predict_slabs(
    voters: Sequence[Voter],
    image: np.ndarray,
    plan: Plan,
    *,
    overlap: float,
    window_batch: int,
    axis: int,
    spread: bool,
) -> Iterator[Slab]:
    """Predicts a volume of any size window by window; windows of a 2D plan are slices across its slice axis.

    Where the volume is smaller than the window, or the window reaches outside, the network sees zeros. What it says of
    a window of nothing but zeros, as everything around the subject is after normalisation, is computed once.

    Args:
        voters: Networks and mirrored views; their mean counts. Always called with `window_batch` windows, the last
            batch filled up with repeats.
        image: float32 [x, y, z, channels] on the network's grid, also memory-mapped.
        plan: Patch size and classes.
        overlap: Part of a window that neighbours share at least, in [0, 1).
        window_batch: Windows at a time.
        axis: Along which slabs are finished.
        spread: Whether the variance of the votes is kept too: of those on one window, blended as the mean is.

    Yields:
        Slabs in order, of probabilities averaged with Gaussian weights; together the whole volume.

    Raises:
        InputError: A network gave NaN.
    """
    shape = list(image.shape[:3])
    shape[axis] = min(shape[axis], plan.patch_size[axis])
    held = [np.zeros((*shape, plan.classes), np.float32) for _ in range(2 if spread else 1)]
    first = 0
    for tile, votes in _votes(voters, image, plan, overlap, window_batch, axis, spread):
        start = tile[axis].target.start
        if start > first:
            yield _clipped(axis, first, [array[_along(axis, 0, start - first)].copy() for array in held])
            for array in held:
                _advance(array, axis, start - first)
            first = start
        for total, values in zip(held, votes, strict=True):
            blend(total, first, axis, tile, values)
    yield _clipped(axis, first, held)


def _advance(array: np.ndarray, axis: int, planes: int) -> None:
    """Moves all planes towards the first, over as many that are done with, and clears those at the end; in place."""
    size = array.shape[axis]
    for start in range(0, size, planes):
        stop = min(start + planes, size - planes)
        if start < stop:  # source and target of one step do not overlap
            array[_along(axis, start, stop)] = array[_along(axis, start + planes, stop + planes)]
    array[_along(axis, max(0, size - planes), None)] = 0.0


def _clipped(axis: int, first: int, arrays: Sequence[np.ndarray]) -> Slab:
    np.clip(arrays[0], 0.0, 1.0, out=arrays[0])  # weights sum to 1 up to rounding
    return Slab(axis, first, arrays[0], arrays[1] if len(arrays) > 1 else None)


def _votes(
    voters: Sequence[Voter],
    image: np.ndarray,
    plan: Plan,
    overlap: float,
    window_batch: int,
    axis: int,
    spread: bool,
) -> Iterator[tuple[Tile, list[np.ndarray]]]:
    """Each window's place with the mean of the votes and, with `spread`, their variance; both [*patch, classes]."""
    windows = np.zeros((window_batch, *window_shape(plan), image.shape[-1]), np.float32)
    of_zeros: list[np.ndarray] | None = None
    group: list[tuple[Tile, int | None]] = []  # places, and where in the batch their windows are: None for only zeros
    filled = 0
    tiles = window_tiles(image.shape[:3], plan, overlap=overlap, axis=axis)
    for number, tile in enumerate(tiles, start=1):
        cut_window(image, tile, plan, windows[filled])
        if windows[filled].any():
            group.append((tile, filled))
            filled += 1
        else:
            group.append((tile, None))
            if of_zeros is None:
                of_zeros = [votes[0] for votes in tally(voters, np.zeros_like(windows), spread)]
        if filled == window_batch or number == len(tiles):
            found: list[np.ndarray] = []
            if filled:
                windows[filled:] = windows[filled - 1]
                found = tally(voters, windows, spread)
            for place, index in group:
                yield place, (of_zeros or []) if index is None else [votes[index] for votes in found]
            group, filled = [], 0


def predict_volume(
    forward: Forward, image: np.ndarray, plan: Plan, *, overlap: float, window_batch: int, flips: bool = False
) -> np.ndarray:
    """`predict_slabs` with one network, and with its mirrored views if asked for, as one volume.

    Returns:
        float32 [x, y, z, classes] in [0, 1].
    """
    result = np.empty((*image.shape[:3], plan.classes), np.float32)
    axis = slab_axis(image.shape[:3], plan.patch_size)
    for slab in predict_slabs(
        voters_of(forward, plan, flips=flips),
        image,
        plan,
        overlap=overlap,
        window_batch=window_batch,
        axis=axis,
        spread=False,
    ):
        result[_along(axis, slab.first, slab.stop)] = slab.mean
    return result


def restore_slabs(slabs: Iterator[Slab], placement: Placement) -> Iterator[Slab]:
    """Brings slabs from the network's grid to the scan's crop (canonical axes) by linear interpolation.

    Args:
        slabs: In order, together the whole network grid.
        placement: How that grid sits in the scan.

    Yields:
        Slabs in order, together the whole crop; the very same values where nothing has to be resampled.
    """
    if placement.shape == placement.crop_shape:
        yield from slabs
        return
    waiting: Slab | None = None
    done = 0
    for whole in slabs:
        for slab in _parts(whole, placement):
            axis, count = slab.axis, placement.crop_shape[slab.axis]
            matrix = axis_matrix(placement.shape[axis], count, 1)
            across = slab.of(slab.first, [_across(array, placement.crop_shape, axis) for array in slab.arrays])
            waiting = across if waiting is None else _joined(waiting, across)
            del across
            # A plane of the scan is ready when the last network plane that it is mixed from is there.
            ready = int(np.count_nonzero(matrix[:, waiting.stop :].any(axis=1) == 0))
            if ready > done:
                mixed = [_mixed(matrix[done:ready, waiting.first : waiting.stop], a, axis) for a in waiting.arrays]
                yield waiting.of(done, mixed)
                del mixed
                done = ready
                if done < count:
                    # Where the scan is much coarser, the next plane's first network plane may be yet to come.
                    first = min(int(np.flatnonzero(matrix[done])[0]), waiting.stop)
                    waiting = waiting.planes(first, waiting.stop)


def _parts(slab: Slab, placement: Placement) -> Iterator[Slab]:
    """The slab in pieces that are of bounded size on the scan's grid."""
    axis = slab.axis
    values = slab.mean.shape[-1] * np.prod(placement.crop_shape, dtype=float)
    step = max(1, int(RESTORED_VALUES / values * placement.shape[axis]))
    for first in range(slab.first, slab.stop, step):
        yield slab.planes(first, min(first + step, slab.stop))


def _across(values: np.ndarray, crop_shape: Sequence[int], axis: int) -> np.ndarray:
    shape = list(crop_shape)
    shape[axis] = values.shape[axis]
    return np.stack([resample(values[..., index], shape, (1, 1, 1)) for index in range(values.shape[-1])], axis=-1)


def _joined(first: Slab, second: Slab) -> Slab:
    pairs = zip(first.arrays, second.arrays, strict=True)
    return first.of(first.first, [np.concatenate(pair, axis=first.axis) for pair in pairs])


def _mixed(matrix: np.ndarray, values: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(np.tensordot(matrix, values, axes=([1], [axis])), 0, axis)


def merge_slabs(streams: Sequence[Iterator[Slab]], shares: Sequence[float]) -> Iterator[Slab]:
    """The weighted mean of predictions of one volume that are finished in slabs of different depth.

    Args:
        streams: Each in order, together the same volume, along the same axis.
        shares: Weight of each; they sum to 1.

    Yields:
        Slabs of the mean. The variance is that of the mixture: the mean of the variances, and that of the means.
    """
    if len(streams) == 1:
        yield from streams[0]
        return
    waiting = [next(stream) for stream in streams]
    while True:
        first, stop = waiting[0].first, min(slab.stop for slab in waiting)
        parts = [slab.planes(first, stop) for slab in waiting]
        weighted = list(zip((np.float32(share) for share in shares), parts, strict=True))
        arrays = [np.clip(_sum([share * part.mean for share, part in weighted]), 0.0, 1.0)]
        if all(part.variance is not None for part in parts):
            arrays.append(_sum([share * (part.variance + (part.mean - arrays[0]) ** 2) for share, part in weighted]))
        yield parts[0].of(first, arrays)
        for index, slab in enumerate(waiting):
            following = slab.planes(stop, slab.stop) if slab.stop > stop else next(streams[index], None)
            if following is None:
                return
            waiting[index] = following


def _sum(arrays: Sequence[np.ndarray]) -> np.ndarray:
    total = arrays[0]
    for array in arrays[1:]:
        total += array
    return total


def ahead(slabs: Iterator[Slab]) -> Iterator[Slab]:
    """The same slabs; a thread computes the next one while the present one is used."""
    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(next, slabs, None)
        while (slab := coming.result()) is not None:
            coming = beside.submit(next, slabs, None)
            yield slab
            del slab
