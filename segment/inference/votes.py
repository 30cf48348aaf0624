"""What the networks say of each window of a volume, batch by batch, with the next batch computed in the meantime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from segment.data.planning import Plan
from segment.inference.tiles import Tile, cut_window, window_shape, window_tiles
from segment.inference.uncertainty import tally

# From float32 [batch, *patch, channels] to float32 probabilities [batch, *patch, classes]; the patch has three axes.
Voter = Callable[[np.ndarray], np.ndarray]
# Places, and where in the batch their windows are: None for a window of nothing but zeros.
Group = list[tuple[Tile, int | None]]


def window_votes(
    voters: Sequence[Voter],
    image: np.ndarray,
    plan: Plan,
    overlap: float,
    window_batch: int,
    axis: int,
    spread: bool,
) -> Iterator[tuple[Tile, list[np.ndarray]]]:
    """Each window's place with the mean of the votes and, with `spread`, their variance; both [*patch, classes].

    A thread computes the next batch while the windows of the last one are blended and those of the one after are cut.
    """
    of_zeros: list[np.ndarray] = []
    waiting: tuple[Group, Future[list[np.ndarray]]] | None = None
    with ThreadPoolExecutor(1) as beside:
        for group, windows in _batches(image, plan, overlap, window_batch, axis):
            if not of_zeros and any(index is None for _, index in group):
                zeros = beside.submit(tally, voters, np.zeros_like(windows), spread).result()
                of_zeros = [votes[0].copy() for votes in zeros]
            empty = all(index is None for _, index in group)
            coming = beside.submit(list) if empty else beside.submit(tally, voters, windows, spread)
            if waiting is not None:
                yield from _placed(*waiting, of_zeros)
            waiting = group, coming
        if waiting is not None:
            yield from _placed(*waiting, of_zeros)


def _batches(
    image: np.ndarray, plan: Plan, overlap: float, window_batch: int, axis: int
) -> Iterator[tuple[Group, np.ndarray]]:
    """Batches of windows and their places; a batch is overwritten when the one after the next is asked for."""
    buffers = [np.zeros((window_batch, *window_shape(plan), image.shape[-1]), np.float32) for _ in range(2)]
    group: Group = []
    filled = 0
    tiles = window_tiles(image.shape[:3], plan, overlap=overlap, axis=axis)
    for number, tile in enumerate(tiles, start=1):
        windows = buffers[0]
        cut_window(image, tile, plan, windows[filled])
        if windows[filled].any():
            group.append((tile, filled))
            filled += 1
        else:
            group.append((tile, None))
        if filled == window_batch or number == len(tiles):
            if filled:
                windows[filled:] = windows[filled - 1]
            yield group, windows
            group, filled = [], 0
            buffers.reverse()


def _placed(
    group: Group, coming: Future[list[np.ndarray]], of_zeros: Sequence[np.ndarray]
) -> Iterator[tuple[Tile, list[np.ndarray]]]:
    found = coming.result()
    for place, index in group:
        yield place, list(of_zeros) if index is None else [votes[index] for votes in found]
