"""95% intervals by resampling cases with replacement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

LEVEL = 0.95
# With fewer scans resampling says too little: even differences that are all of one sign have a chance above 5% under a
# sign test (2 * 0.5^5 = 0.0625).
FEW_SCANS = 6
_BLOCK = 250  # draws at a time, which bounds the memory with thousands of cases
_DIGITS = 6


def resampled_sums(values: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """Column sums over `draws` samples of as many rows with replacement: float64 [draws, columns].

    Args:
        values: Float [cases, columns]; at least one case.
        draws: How many samples.
        seed: The same seed and number of cases give the same samples.
    """
    return np.concatenate([weights @ values for weights in _case_weights(len(values), draws, seed)])


def _case_weights(cases: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each case is drawn, in blocks of float64 [block, cases]."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, _BLOCK):
        count = min(_BLOCK, draws - start)
        drawn = rng.integers(0, cases, size=(count, cases)) + np.arange(count)[:, None] * cases
        yield np.bincount(drawn.ravel(), minlength=count * cases).reshape(count, cases).astype(np.float64)


def interval(samples: np.ndarray) -> list[float] | None:
    """The 95% percentile interval of samples (float [draws]), NaN left out; None when nothing is left.

    Rounded to 6 decimals, so that the last bits of a matrix product do not change a report's bytes.
    """
    defined = samples[~np.isnan(samples)]
    if len(defined) == 0:
        return None
    tail = 50 * (1 - LEVEL)
    return [round(float(bound), _DIGITS) + 0.0 for bound in np.percentile(defined, [tail, 100 - tail])]


def is_spread(bounds: Sequence[float] | None) -> bool:
    """Whether an interval says anything: equal bounds mean that all draws agree, which is no certainty."""
    return bounds is not None and bounds[0] < bounds[1]


def wilson_interval(hit: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share as if its `n` lesions were independent; n at least 1.

    It leaves out that lesions of one case resemble each other, so it is too narrow; but it has a width where resampling
    cases has none.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    z2 = 1.959964**2
    share = hit / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(middle - half, 0.0) if hit else 0.0, min(middle + half, 1.0) if hit < n else 1.0
