"""Temperature scaling: one number that brings a network's probabilities nearer to shares (Guo et al. 2017, 1706.04599).

`p' = sigmoid(logit(p) / T)`. The map is monotone, so a threshold moves with it and every mask, and with it the FROC,
stays the same; it says what a probability is worth, and changes no decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

# Only voxels where the network sees anything count: the others are most of a scan, right whatever is done, and would
# make every figure look perfect. Chosen by the network's own probability, never by the label, which would be a bias.
LEAST_PROBABILITY = 0.01
BINS = 15  # of the expected calibration error, of equal width, as in the paper
TEMPERATURES = (0.1, 10.0)
_LOW, _HIGH, _WIDTH = float(logit(LEAST_PROBABILITY)), 14.0, 0.01  # of the logits that are counted; 14 is 1 - 1e-6


@dataclass(frozen=True)
class Calibration:
    """A temperature and what it does on the voxels that it was fitted on.

    Attributes:
        temperature: Above 1 where the network is surer than it is right; None where it cannot be fitted.
        ece_before, ece_after: Expected calibration error, 0 to 1; None without a voxel.
        n_voxels: With a probability of at least `LEAST_PROBABILITY`.
        reason: Why there is no temperature, or "".
    """

    temperature: float | None
    ece_before: float | None
    ece_after: float | None
    n_voxels: int
    reason: str


class Reliability:
    """Counts voxels by logit, in bins of 0.01, one case after the other: 30 kB for any number of scans."""

    def __init__(self) -> None:
        bins = math.ceil((_HIGH - _LOW) / _WIDTH)
        self._logits = _LOW + _WIDTH * (np.arange(bins) + 0.5)
        self._lesion = np.zeros(bins)
        self._all = np.zeros(bins)

    def add(self, label: np.ndarray, probability: np.ndarray) -> None:
        """Adds a case and class: bool and float [x, y, z], probabilities from 0 to 1; both may be empty."""
        seen = probability >= LEAST_PROBABILITY
        values = logit(np.clip(probability[seen].astype(np.float64), LEAST_PROBABILITY, expit(_HIGH)))
        place = np.minimum(((values - _LOW) / _WIDTH).astype(np.int64), len(self._all) - 1)
        self._all += np.bincount(place, minlength=len(self._all))
        self._lesion += np.bincount(place[label[seen]], minlength=len(self._all))

    def ece(self, temperature: float) -> float | None:
        """The expected calibration error after division of the logits by the temperature; None without a voxel."""
        if not self._all.any():
            return None
        probability = expit(self._logits / temperature)
        place = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
        surplus = np.bincount(place, self._all * probability - self._lesion, BINS)
        return float(np.abs(surplus).sum() / self._all.sum())

    def fit(self) -> Calibration:
        """The temperature of the least mean log loss, between 0.1 and 10."""
        count = int(self._all.sum())
        if not 0 < self._lesion.sum() < count:
            what = "lesion" if count and not self._lesion.any() else "background"
            reason = f"no {what} voxel among those of probability {LEAST_PROBABILITY} and more" if count else "no voxel"
            return Calibration(None, self.ece(1.0), None, count, reason)

        def loss(log_temperature: float) -> float:
            scaled = self._logits / math.exp(log_temperature)
            # -log(sigmoid(x)) for lesion voxels and -log(1 - sigmoid(x)) for the others, without overflow.
            return float(self._all @ np.logaddexp(0.0, scaled) - self._lesion @ scaled)

        bounds = (math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]))
        found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
        temperature = math.exp(float(found.x))
        return Calibration(temperature, self.ece(1.0), self.ece(temperature), count, "")
