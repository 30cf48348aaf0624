"""Temperatures and calibration errors from voxels counted by hand or drawn from known shares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from segment.inference.calibration import Reliability


def drawn(temperature: float, voxels: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn with calibrated probabilities, and the probabilities of a network that is surer by `temperature`."""
    rng = np.random.default_rng(5)
    logits = rng.uniform(-3.0, 3.0, voxels)
    label = rng.random(voxels) < expit(logits)
    return label.reshape(-1, 100, 10), expit(logits * temperature).astype(np.float32).reshape(-1, 100, 10)


def fitted(label: np.ndarray, probability: np.ndarray) -> Reliability:
    counts = Reliability()
    counts.add(label, probability)
    return counts


class TestTemperature:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_is_found_again(self, temperature: float) -> None:
        # Logits of up to 6 in size at 2.0: those below log(0.01 / 0.99) = -4.6 are left out, which biases nothing.
        found = fitted(*drawn(temperature)).fit()
        assert found.temperature == pytest.approx(temperature, rel=0.03)
        assert found.ece_after is not None
        assert found.ece_before is not None
        assert found.ece_after < 0.006
        assert found.ece_after <= found.ece_before + 1e-3

    def test_cases_add_up(self) -> None:
        label, probability = drawn(2.0)
        counts = Reliability()
        for part in range(0, 200, 50):
            counts.add(label[part : part + 50], probability[part : part + 50])
        assert counts.fit() == fitted(label, probability).fit()

    def test_the_map_is_monotone_so_the_mask_stays(self) -> None:
        _, probability = drawn(1.0)
        scaled = expit(logit(probability.astype(np.float64)) / 1.7)
        threshold = float(np.float32(0.35))
        assert np.array_equal(probability >= threshold, scaled >= expit(logit(threshold) / 1.7) - 1e-12)


class TestError:
    def test_by_hand(self) -> None:
        # Four voxels of 0.8, one of them lesion: |4 * 0.8 - 1| / 4. Two of 0.3, both lesion: |2 * 0.3 - 2| / 2.
        probability = np.array([0.8] * 4 + [0.3] * 2).reshape(6, 1, 1)
        label = np.array([1, 0, 0, 0, 1, 1], bool).reshape(6, 1, 1)
        assert fitted(label, probability).ece(1.0) == pytest.approx((4 * 0.55 + 2 * 0.7) / 6, abs=0.002)

    def test_voxels_where_the_network_sees_nothing_do_not_count(self) -> None:
        label, probability = drawn(1.0)
        without = fitted(label, probability).fit()
        probability = np.concatenate([probability, np.full((500, 100, 10), 1e-4, np.float32)])
        assert fitted(np.concatenate([label, np.zeros((500, 100, 10), bool)]), probability).fit() == without


class TestNothingToFit:
    @pytest.mark.parametrize(
        ("label", "probability", "reason"),
        [
            ([0, 0], [0.5, 0.2], "no lesion voxel"),
            ([1, 1], [0.5, 0.2], "no background voxel"),
            ([1, 0], [0.001, 0.0], "no voxel"),
        ],
    )
    def test_is_said(self, label: list[int], probability: list[float], reason: str) -> None:
        found = fitted(np.array(label, bool).reshape(2, 1, 1), np.array(probability).reshape(2, 1, 1)).fit()
        assert found.temperature is None
        assert found.ece_after is None
        assert reason in found.reason

    def test_extreme_probabilities(self) -> None:
        found = fitted(np.array([1, 0], bool).reshape(2, 1, 1), np.array([1.0, 1.0]).reshape(2, 1, 1)).fit()
        assert found.temperature == pytest.approx(10.0, rel=1e-3)  # right half of the time, as sure as can be
