"""Slabs: finished planes leave early, nothing is lost on the way back to the scan, empty windows are judged once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import make_test_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from segment.data.geometry import Placement
from segment.data.preprocessing import to_original
from segment.data.scan import Grid
from segment.inference.model_file import compile_forward
from segment.inference.slabs import Slab, ahead, merge_slabs, predict_slabs, predict_volume, restore_slabs, slab_axis
from segment.inference.tiles import predict_windows
from segment.model import build_unet

PLAN = make_test_plan(patch_size=(4, 6, 5))


def brightness(windows: np.ndarray) -> np.ndarray:
    """A network whose logits depend on the whole window."""
    return windows[..., :1] + windows.mean(axis=(1, 2, 3, 4), keepdims=True)


def slabs_of(image: np.ndarray, *, axis: int, voters=None, spread: bool = False, batch: int = 3) -> list[Slab]:
    voters = voters or [lambda windows: predict_windows(brightness, windows, PLAN)]
    return list(
        predict_slabs(voters, image, PLAN, overlap=0.5, window_batch=batch, axis=axis, spread=spread),
    )


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cut(volume: np.ndarray, axis: int, sizes: list[int], variance: np.ndarray | None = None) -> Iterator[Slab]:
    """A volume as slabs of the given depths."""
    whole = Slab(axis, 0, volume, variance)
    for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
        yield whole.planes(int(stop) - size, int(stop))


class TestPredictSlabs:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("shape", [(11, 17, 13), (3, 20, 5), (4, 6, 5)])
    def test_slabs_follow_each_other_and_make_the_volume(self, axis: int, shape: tuple[int, int, int]) -> None:
        image = noise(*shape, 1)
        slabs = slabs_of(image, axis=axis)
        assert [slab.first for slab in slabs] == [0, *[slab.stop for slab in slabs[:-1]]]
        assert slabs[-1].stop == shape[axis]
        whole = predict_volume(brightness, image, PLAN, overlap=0.5, window_batch=1)
        assert np.allclose(np.concatenate([slab.mean for slab in slabs], axis=axis), whole, atol=1e-6)

    def test_planes_leave_before_the_next_windows_are_judged(self) -> None:
        # 4 windows of 4 with half overlap on 10 planes: after the first one, planes 0 and 1 are finished.
        judged = []

        def voter(windows: np.ndarray) -> np.ndarray:
            judged.append(len(judged))
            return expit(windows[..., :1])

        slabs = predict_slabs([voter], noise(10, 6, 5, 1), PLAN, overlap=0.5, window_batch=1, axis=0, spread=False)
        found = [(slab.first, slab.stop, len(judged)) for slab in slabs]
        assert found == [(0, 2, 2), (2, 4, 3), (4, 6, 4), (6, 10, 4)]

    def test_nothing_keeps_the_planes_that_have_left(self) -> None:
        voter = lambda windows: expit(windows[..., :1])  # noqa: E731
        left: list[weakref.ref] = []
        for slab in predict_slabs([voter], noise(40, 6, 5, 1), PLAN, overlap=0.5, window_batch=2, axis=0, spread=False):
            assert all(array() is None for array in left)
            assert slab.mean.base is None  # no view of more than what it shows
            left.append(weakref.ref(slab.mean))
            del slab

    def test_axis_with_the_smallest_slab(self) -> None:
        assert slab_axis((512, 512, 600), (64, 64, 64)) == 2
        assert slab_axis((512, 512, 30), (256, 256, 1)) == 2
        assert slab_axis((10, 10, 10), (64, 64, 64)) == 0

    @given(
        st.tuples(*[st.integers(1, 14)] * 3), st.tuples(*[st.integers(1, 7)] * 3), st.floats(0, 0.9), st.integers(0, 2)
    )
    @settings(max_examples=40, deadline=None)
    def test_constant_in_constant_out_along_any_axis(self, shape, window, overlap, axis) -> None:
        plan = make_test_plan(patch_size=window)
        voter = lambda windows: np.full((*windows.shape[:-1], 1), 0.3, np.float32)  # noqa: E731
        slabs = predict_slabs(
            [voter], np.ones((*shape, 1), np.float32), plan, overlap=overlap, window_batch=2, axis=axis, spread=True
        )
        for slab in slabs:
            assert np.abs(slab.mean - np.float32(0.3)).max() <= 1e-6
            assert not slab.variance.any()


class TestEmptyWindows:
    def image(self) -> np.ndarray:
        """Tissue in one corner; most windows hold nothing but the zeros around it."""
        image = np.zeros((20, 21, 22, 1), np.float32)
        image[:6, :7, :5] = noise(6, 7, 5, 1)
        return image

    @pytest.mark.parametrize("batch", [1, 3])
    def test_one_window_of_zeros_is_judged_and_all_get_its_result(self, batch: int) -> None:
        """The network need not say 0 of zeros, nor the same everywhere: its own answer is used, exactly."""
        ramp = np.linspace(-1, 1, 4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5, 1)
        seen: list[np.ndarray] = []

        def network(windows: np.ndarray) -> np.ndarray:
            seen.extend(windows.copy())  # the array is filled anew for the next batch
            return brightness(windows) + ramp

        image = self.image()
        skipped = predict_volume(network, image, PLAN, overlap=0.5, window_batch=batch)
        empty = sum(not window.any() for window in seen)
        assert empty == batch  # one batch of zeros
        n_windows = len(seen)
        image[image == 0] = 1e-30  # no window is empty any more, and nothing else changes
        full = predict_volume(network, image, PLAN, overlap=0.5, window_batch=batch)
        assert len(seen) - n_windows > 5 * n_windows
        assert np.array_equal(skipped, full)

    def test_a_real_network_gives_the_same_bits(self) -> None:
        plan = make_test_plan(patch_size=(8, 8, 8))
        forward = compile_forward(build_unet(plan, seed=3), plan, batch=1)
        image = np.zeros((20, 20, 20, 1), np.float32)
        image[:6, :6, :6] = noise(6, 6, 6, 1)
        found = predict_volume(forward, image, plan, overlap=0.5, window_batch=1)
        outside = forward(np.zeros((1, 8, 8, 8, 1), np.float32))[0]
        assert np.array_equal(
            found[12:, 12:, 12:][4:, 4:, 4:], expit(outside)[4:, 4:, 4:]
        )  # only the last window is there

    def test_a_scan_of_zeros_is_one_call(self) -> None:
        calls = []

        def network(windows: np.ndarray) -> np.ndarray:
            calls.append(1)
            return windows + 2

        found = predict_volume(network, np.zeros((30, 30, 30, 1), np.float32), PLAN, overlap=0.5, window_batch=1)
        assert len(calls) == 1
        assert np.allclose(found, expit(2.0), atol=1e-6)


class TestSliceNeighbours:
    def test_a_window_holds_its_neighbours_and_zeros_beyond_the_ends(self) -> None:
        plan = replace(make_test_plan(dimensions=2, spacing_mm=(1, 1, 5), patch_size=(4, 4, 1)), slices=3)
        image = np.broadcast_to(np.arange(1, 5, dtype=np.float32)[:, None], (4, 4, 4, 1)).copy()
        seen = []

        def network(windows: np.ndarray) -> np.ndarray:
            seen.append(windows[0, 0, 0].tolist())
            return windows[..., 1:2]  # its own slice

        found = predict_volume(network, image, plan, overlap=0.0, window_batch=1)
        assert seen == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0]]
        assert np.allclose(found, expit(image), atol=1e-6)


class TestRestore:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("shape", [(9, 7, 12), (5, 4, 6), (9, 4, 30), (7, 5, 9)])
    def test_equals_the_whole_volume_at_once(self, axis: int, shape: tuple[int, int, int]) -> None:
        network = np.clip(noise(*shape, 2) + 0.5, 0, 1)
        placement = Placement(Grid((7, 5, 9), np.eye(4)), ((0, 7), (0, 5), (0, 9)), shape)
        sizes = [1, 2, shape[axis] - 3]
        slabs = list(restore_slabs(cut(network, axis, sizes), placement))
        assert [slab.first for slab in slabs] == [0, *[slab.stop for slab in slabs[:-1]]]
        found = np.concatenate([slab.mean for slab in slabs], axis=axis)
        assert np.allclose(found, to_original(network, placement), atol=1e-6)

    def test_large_slabs_are_brought_back_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("segment.inference.slabs.RESTORED_VALUES", 100)
        network = np.clip(noise(9, 7, 12, 1) + 0.5, 0, 1)
        placement = Placement(Grid((7, 5, 9), np.eye(4)), ((0, 7), (0, 5), (0, 9)), (9, 7, 12))
        slabs = list(restore_slabs(cut(network, 2, [12]), placement))
        assert len(slabs) > 3
        assert np.allclose(np.concatenate([s.mean for s in slabs], axis=2), to_original(network, placement), atol=1e-6)


class TestMerge:
    def test_mean_and_variance_of_a_mixture_by_hand(self) -> None:
        # 2/3 of votes around 0.2 with variance 0.01, 1/3 around 0.8 with variance 0.04:
        # mean 0.4; variance 2/3 * (0.01 + 0.04) + 1/3 * (0.04 + 0.16) = 0.1.
        shape = (5, 2, 2, 1)
        streams = [
            cut(np.full(shape, 0.2, np.float32), 0, [2, 3], np.full(shape, 0.01, np.float32)),
            cut(np.full(shape, 0.8, np.float32), 0, [1, 2, 2], np.full(shape, 0.04, np.float32)),
        ]
        slabs = list(merge_slabs(streams, [2 / 3, 1 / 3]))
        assert [(slab.first, slab.stop) for slab in slabs] == [(0, 1), (1, 2), (2, 3), (3, 5)]
        for slab in slabs:
            assert np.allclose(slab.mean, 0.4, atol=1e-6)
            assert np.allclose(slab.variance, 0.1, atol=1e-6)


class TestAhead:
    def test_order_is_kept_and_an_error_comes_through(self) -> None:
        def broken() -> Iterator[Slab]:
            yield from cut(noise(3, 1, 1, 1), 0, [1, 1, 1])
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")

        slabs = ahead(broken())
        assert [next(slabs).first for _ in range(3)] == [0, 1, 2]
        with pytest.raises(tf.errors.ResourceExhaustedError):
            next(slabs)
