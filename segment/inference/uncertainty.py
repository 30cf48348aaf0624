"""How far several votes on the same voxel agree: their mean and variance, and maps from them for a reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import entr

LN2 = float(np.log(2.0))


def tally(voters: Sequence[Callable[[np.ndarray], np.ndarray]], windows: np.ndarray, spread: bool) -> list[np.ndarray]:
    """Lets every voter judge the same windows.

    Running mean and sum of squares (Welford 1962, Technometrics 4:419): no vote is kept, and equal votes give their
    very value and a variance of exactly 0.

    Args:
        voters: At least one, each from float32 [batch, *patch, channels] to probabilities [batch, *patch, classes].
        windows: The windows.
        spread: Whether the variance is wanted too.

    Returns:
        The mean and, with `spread`, the variance over the voters; float32 [batch, *patch, classes] each.
    """
    mean = voters[0](windows)
    if len(voters) == 1:
        return [mean, np.zeros_like(mean)] if spread else [mean]
    mean = mean.copy()  # a voter may hand out a view of what it keeps
    squares = np.zeros_like(mean) if spread else None
    for count, voter in enumerate(voters[1:], start=2):
        vote = voter(windows)
        step = vote - mean
        mean += step / np.float32(count)
        if squares is not None:
            squares += step * (vote - mean)
    return [mean] if squares is None else [mean, squares / np.float32(len(voters))]


def deviation_map(variance: np.ndarray) -> np.ndarray:
    """Standard deviation of the votes: float32 of the same shape, in [0, 0.5] for probabilities."""
    return np.sqrt(np.clip(variance, 0.0, 0.25))


def entropy_map(mean: np.ndarray) -> np.ndarray:
    """Entropy in bits of "this class or not" at the mean probability: float32 of the same shape, 1 at 0.5, in [0, 1].

    Of the mean over votes, this is the predictive entropy; it is also high where all votes agree on 0.5.
    """
    return np.clip((entr(mean) + entr(1.0 - mean)) / LN2, 0.0, 1.0).astype(np.float32)
