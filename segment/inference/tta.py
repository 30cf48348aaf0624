"""Test-time augmentation: the same network also judges every mirrored copy of a window."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from segment.data.planning import Plan
from segment.inference.tiles import Forward, predict_windows


def mirrors(plan: Plan) -> list[tuple[int, ...]]:
    """Every set of spatial axes (0, 1, 2) to mirror, the empty one first: 8 in 3D, 4 in 2D, where slices stay."""
    axes = [axis for axis in range(3) if axis != plan.slice_axis]
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def voters_of(forward: Forward, plan: Plan, *, flips: bool) -> list[Callable[[np.ndarray], np.ndarray]]:
    """A network's votes on a batch of windows, each float32 [batch, *patch, channels] -> [batch, *patch, classes].

    Args:
        forward: The network.
        plan: Its dimensions and classes.
        flips: Whether every mirrored copy is judged too; each result is mirrored back.
    """
    return [_voter(forward, plan, axes) for axes in (mirrors(plan) if flips else [()])]


def _voter(forward: Forward, plan: Plan, axes: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    mirrored = tuple(1 + axis for axis in axes)  # after the batch

    def vote(windows: np.ndarray) -> np.ndarray:
        if not mirrored:
            return predict_windows(forward, windows, plan)
        turned = np.ascontiguousarray(np.flip(windows, mirrored))
        return np.flip(predict_windows(forward, turned, plan), mirrored)

    return vote
