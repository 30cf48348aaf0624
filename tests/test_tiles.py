"""Sliding windows: coverage, weights, constants at every border, and masks from probabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_helpers import make_test_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from segment.data.planning import Plan
from segment.errors import InputError
from segment.inference.slabs import predict_volume
from segment.inference.tiles import axis_starts, axis_tiles, to_mask


def plan_with_window(window: tuple[int, int, int], *, classes: int = 1, channels: int = 1) -> Plan:
    values = {f"class{number}": number for number in range(1, classes + 1)}
    return replace(make_test_plan(patch_size=window, channels=channels), label_values=values)


def first_channel(windows: np.ndarray) -> np.ndarray:
    """A network whose logit at each voxel is the first channel there."""
    return windows[..., :1]


class Recorder:
    """A network of constant logits that keeps what it was shown."""

    def __init__(self, logit: float) -> None:
        self.logit = logit
        self.seen: list[np.ndarray] = []

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        self.seen.append(windows.copy())
        return np.full((*windows.shape[:-1], 1), self.logit, np.float32)


class TestAxis:
    @pytest.mark.parametrize(
        ("size", "window", "overlap", "starts"),
        [
            (10, 4, 0.5, [0, 2, 4, 6]),
            (5, 4, 0.5, [0, 1]),  # two windows end flush with both ends
            (11, 4, 0.0, [0, 4, 7]),  # 7 / 2 = 3.5 is rounded to even
            (4, 4, 0.5, [0]),
            (3, 8, 0.5, [-2]),  # 2 voxels of padding before and 3 behind
            (1, 8, 0.0, [-3]),
            (3, 1, 0.9, [0, 1, 2]),  # a window of one voxel cannot overlap
            (6, 4, 0.99, [0, 1, 2]),
        ],
    )
    def test_starts_by_hand(self, size: int, window: int, overlap: float, starts: list[int]) -> None:
        assert axis_starts(size, window, overlap) == starts

    @given(st.integers(1, 60), st.integers(1, 40), st.floats(0, 0.95))
    @settings(max_examples=200, deadline=None)
    def test_windows_cover_evenly_with_weights_that_sum_to_one(self, size: int, window: int, overlap: float) -> None:
        starts = axis_starts(size, window, overlap)
        gaps = np.diff(starts)
        if size > window:
            assert starts[0] == 0
            assert starts[-1] == size - window
            assert gaps.max() <= max(1, int(window * (1 - overlap)))
            assert gaps.max() - gaps.min() <= 1
        total = np.zeros(size)
        for tile in axis_tiles(size, window, overlap):
            assert tile.weight.min() > 0
            assert tile.weight.shape == (tile.target.stop - tile.target.start,)
            total[tile.target] += tile.weight
        assert np.allclose(total, 1.0, atol=3e-7)

    def test_weights_are_gaussian(self) -> None:
        # Two windows of 8 on 12 voxels: at voxel 5 they stand at +1.5 and -2.5 voxels from their middles, deviation 1.
        first, second = axis_tiles(12, 8, 0.5)
        a, b = np.exp(-0.5 * 1.5**2), np.exp(-0.5 * 2.5**2)
        assert first.weight[5] == pytest.approx(a / (a + b), rel=1e-6)
        assert second.weight[1] == pytest.approx(b / (a + b), rel=1e-6)
        assert first.weight[0] == 1.0  # alone there, whatever its weight


class TestPredictVolume:
    @given(
        st.tuples(*[st.integers(1, 20)] * 3),
        st.tuples(*[st.integers(1, 9)] * 3),
        st.floats(0, 0.9),
        st.integers(1, 5),
        st.floats(-8, 8),
    )
    @settings(max_examples=60, deadline=None)
    def test_constant_in_constant_out(self, shape, window, overlap, batch, logit) -> None:
        network = Recorder(logit)
        image = np.zeros((*shape, 1), np.float32)
        found = predict_volume(network, image, plan_with_window(window), overlap=overlap, window_batch=batch)
        assert found.shape == (*shape, 1)
        assert found.dtype == np.float32
        assert np.abs(found - expit(logit)).max() <= 1e-6
        assert {windows.shape for windows in network.seen} == {(batch, *window, 1)}

    @given(st.tuples(*[st.integers(1, 13)] * 3), st.tuples(*[st.integers(1, 8)] * 3), st.floats(0, 0.8))
    @settings(max_examples=40, deadline=None)
    def test_every_voxel_meets_itself(self, shape, window, overlap) -> None:
        image = np.random.default_rng(0).normal(size=(*shape, 2)).astype(np.float32)
        plan = plan_with_window(window, channels=2)
        found = predict_volume(first_channel, image, plan, overlap=overlap, window_batch=3)
        assert np.allclose(found[..., 0], expit(image[..., 0]), atol=1e-6)

    def test_equals_whole_volume_of_gaussian_weights(self) -> None:
        # The textbook way in float64: weighted sum over windows, divided by the sum of weights. Windows differ.
        window, shape = (4, 6, 5), (9, 11, 5)
        image = np.random.default_rng(1).normal(size=(*shape, 1)).astype(np.float32)

        def network(windows: np.ndarray) -> np.ndarray:
            return windows + windows.mean(axis=(1, 2, 3), keepdims=True)

        bells = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in window]
        bell = np.einsum("i,j,k->ijk", *bells)
        total, weight = np.zeros(shape), np.zeros(shape)
        for start in np.ndindex(*(len(axis_starts(n, w, 0.5)) for n, w in zip(shape, window, strict=True))):
            corner = [axis_starts(n, w, 0.5)[i] for n, w, i in zip(shape, window, start, strict=True)]
            place = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
            total[place] += bell * expit(network(image[place][None]))[0, ..., 0]
            weight[place] += bell
        found = predict_volume(network, image, plan_with_window(window), overlap=0.5, window_batch=1)
        assert np.allclose(found[..., 0], total / weight, atol=1e-6)

    def test_batched_equals_single(self) -> None:
        image = np.random.default_rng(2).normal(size=(9, 10, 7, 1)).astype(np.float32)
        plan = plan_with_window((4, 4, 4))
        one, five = (predict_volume(first_channel, image, plan, overlap=0.5, window_batch=n) for n in (1, 5))
        assert np.array_equal(one, five)

    def test_last_batch_is_filled_with_repeats(self) -> None:
        network = Recorder(0.0)
        image = np.arange(12, dtype=np.float32).reshape(12, 1, 1, 1)  # 3 windows of 4 in batches of 2
        predict_volume(network, image, plan_with_window((4, 1, 1)), overlap=0.0, window_batch=2)
        assert [windows[:, 0, 0, 0, 0].tolist() for windows in network.seen] == [[0, 4], [8, 8]]

    def test_small_volume_is_padded_with_zeros_around(self) -> None:
        network = Recorder(0.0)
        predict_volume(
            network, np.ones((2, 8, 9, 1), np.float32), plan_with_window((5, 8, 8)), overlap=0.0, window_batch=1
        )
        assert network.seen[0][0, :, 0, 0, 0].tolist() == [0, 1, 1, 0, 0]

    @pytest.mark.parametrize("slice_axis", [0, 1, 2])
    def test_two_dimensional_plan_sees_every_slice(self, slice_axis: int) -> None:
        spacing, window = [1.0, 1.0, 1.0], [4, 4, 4]
        spacing[slice_axis], window[slice_axis] = 5.0, 1
        plan = make_test_plan(dimensions=2, spacing_mm=tuple(spacing), patch_size=tuple(window))
        image = np.random.default_rng(3).normal(size=(5, 6, 7, 1)).astype(np.float32)
        seen = set()

        def network(windows: np.ndarray) -> np.ndarray:
            seen.add(windows.shape)
            return windows

        found = predict_volume(network, image, plan, overlap=0.5, window_batch=3)
        assert seen == {(3, 4, 4, 1)}
        assert np.allclose(found, expit(image), atol=1e-6)

    def test_classes_stay_apart(self) -> None:
        image = np.random.default_rng(4).normal(size=(5, 5, 5, 2)).astype(np.float32)
        plan = plan_with_window((4, 4, 4), classes=2, channels=2)
        found = predict_volume(lambda windows: windows, image, plan, overlap=0.5, window_batch=2)
        assert np.allclose(found, expit(image), atol=1e-6)

    def test_reads_a_memory_map(self, tmp_path: Path) -> None:
        np.save(tmp_path / "image.npy", np.zeros((5, 5, 5, 1), np.float32))
        image = np.load(tmp_path / "image.npy", mmap_mode="r")
        found = predict_volume(first_channel, image, plan_with_window((4, 4, 4)), overlap=0.5, window_batch=1)
        assert np.allclose(found, 0.5, atol=1e-6)

    def test_stays_within_zero_and_one(self) -> None:
        network = Recorder(100.0)
        found = predict_volume(
            network, np.zeros((30, 17, 9, 1), np.float32), plan_with_window((7, 5, 3)), overlap=0.7, window_batch=4
        )
        assert found.max() <= 1.0

    def test_nan_from_the_network_is_an_error(self) -> None:
        with pytest.raises(InputError, match="the network gave NaN"):
            predict_volume(
                Recorder(float("nan")), np.zeros((4, 4, 4, 1)), plan_with_window((4, 4, 4)), overlap=0, window_batch=1
            )


class TestToMask:
    def test_threshold_is_reached_from_below(self) -> None:
        probabilities = np.array([0.49, 0.5, 0.51], np.float32).reshape(3, 1, 1, 1)
        mask = to_mask(probabilities, make_test_plan(), threshold=0.5, min_lesion_mm3=0, voxel_mm3=1)
        assert mask.ravel().tolist() == [0, 1, 1]
        assert mask.dtype == np.uint8

    def test_highest_class_that_reaches_the_threshold(self) -> None:
        plan = make_test_plan(label_values={"lesion": 3, "core": 7})
        pairs = [(0.9, 0.8), (0.6, 0.8), (0.4, 0.8), (0.4, 0.3), (0.7, 0.7)]
        probabilities = np.array(pairs, np.float32).reshape(5, 1, 1, 2)
        mask = to_mask(probabilities, plan, threshold=0.5, min_lesion_mm3=0, voxel_mm3=1)
        assert mask.ravel().tolist() == [3, 7, 7, 0, 3]  # the first of equals

    def test_small_components_go_and_diagonal_neighbours_are_one(self) -> None:
        probabilities = np.zeros((6, 6, 6, 1), np.float32)
        probabilities[0, 0, 0] = probabilities[1, 1, 1] = 1  # 2 voxels that touch by a corner
        probabilities[4, 4, 4] = 1
        for min_lesion_mm3, voxels in ((0.0, 3), (0.5, 3), (0.6, 2), (1.0, 2), (1.1, 0)):
            mask = to_mask(probabilities, make_test_plan(), threshold=0.5, min_lesion_mm3=min_lesion_mm3, voxel_mm3=0.5)
            assert mask.sum() == voxels, min_lesion_mm3

    def test_smallest_volume_is_counted_for_each_class(self) -> None:
        plan = make_test_plan(label_values={"lesion": 1, "core": 2})
        probabilities = np.zeros((1, 1, 5, 2), np.float32)
        probabilities[0, 0, :3, 0] = 1
        probabilities[0, 0, 3:, 1] = 1
        mask = to_mask(probabilities, plan, threshold=0.5, min_lesion_mm3=3, voxel_mm3=1)
        assert mask.ravel().tolist() == [1, 1, 1, 0, 0]

    def test_empty_array_gives_empty_mask(self) -> None:
        mask = to_mask(
            np.zeros((0, 2, 2, 1), np.float32), make_test_plan(), threshold=0.5, min_lesion_mm3=0, voxel_mm3=1
        )
        assert mask.shape == (0, 2, 2)
