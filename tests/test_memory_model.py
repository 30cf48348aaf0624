"""The planner's memory model: by hand from the sizes of the layers, and beside the peak of a training."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from data_helpers import make_test_plan

from segment.data.memory_model import estimate_memory

ROOT = Path(__file__).parents[1]
PLAN = replace(make_test_plan(patch_size=(16, 16, 16), channels=2), filters=(8, 16))


class TestArithmetic:
    def test_on_a_gpu_by_hand(self) -> None:
        # Finest level: 4096 voxels x 8 filters. Kept: 12 tensors on the two ways, 2 for the join; 2 of gradients.
        # Coarsest: 512 voxels x 16 filters, 6 tensors. Image 2 channels; loss 20 tensors of 1 channel.
        sample = 4 * (16 * 4096 * 8 + 6 * 512 * 16 + 4096 * 2 + 20 * 4096)
        # Kernels: 27 x 8 x (2 + 8), then the way up: 8 x 16 x 8 and 27 x 8 x 24; 27 x 16 x (8 + 16). Six copies.
        weights = 4 * 6 * (27 * 8 * 10 + 8 * 16 * 8 + 27 * 8 * 24 + 27 * 16 * 24)
        assert estimate_memory(PLAN, 3, "float32", gpu=True) == 3 * sample + weights

    def test_what_makes_it_more(self) -> None:
        one = estimate_memory(PLAN, 1, "float32", gpu=True)
        assert estimate_memory(PLAN, 2, "float32", gpu=True) > 1.5 * one
        assert estimate_memory(PLAN, 1, "mixed_float16", gpu=True) < one
        assert estimate_memory(PLAN, 1, "float32", gpu=False) > one  # graph and pipeline are in its memory too
        for change in ({"residual": True}, {"softmax": True}, {"distance_head": True}):
            assert estimate_memory(replace(PLAN, **change), 1, "float32", gpu=True) > one
        three = replace(PLAN, filters=(8, 16, 16), strides=((2, 2, 2),) * 2, kernels=((3, 3, 3),) * 3)
        deep = replace(three, deep_supervision=True)
        # The second of the way up's two levels has an output too: 512 voxels.
        more = estimate_memory(deep, 1, "float32", gpu=True) - estimate_memory(three, 1, "float32", gpu=True)
        assert more == 4 * 20 * 512


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a peak is read from Linux' /proc")
@pytest.mark.parametrize("number", [1, 2])
def test_within_a_fifth_of_a_measured_training(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    sys.modules.pop("benchmarks", None)
    from benchmarks.plan_memory import SHAPES, TOLERANCE, measure

    row = measure(SHAPES[number], ROOT / "sample_data", tmp_path)
    assert abs(row["estimate_mib"] / row["measured_mib"] - 1) <= TOLERANCE == 0.2, row
