"""2.5D: training, network and inference agree on which slices are which channels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from augmentation_helpers import at, augmenter, plan_of, seed, stored

from segment.config import config_from
from segment.data.planning import Plan, network_input
from segment.errors import InputError
from segment.inference.tiles import cut_window, window_shape, window_tiles


class TestPlan:
    plan = plan_of((8, 8, 1), channels=2, slices=3)

    def test_channels_of_the_network(self) -> None:
        assert (self.plan.channels, self.plan.slices, self.plan.network_channels) == (2, 3, 6)
        assert plan_of((8, 8, 8), channels=2).network_channels == 2

    def test_json_round_trip_and_plans_from_before(self) -> None:
        values = self.plan.to_json()
        assert Plan.from_json(values) == self.plan
        del values["slices"]
        assert Plan.from_json(values).slices == 1

    @pytest.mark.parametrize(("dimensions", "slices"), [(2, 2), (2, 0), (3, 3)])
    def test_even_numbers_and_3d_are_refused(self, dimensions: int, slices: int) -> None:
        plan = plan_of((8, 8, 1) if dimensions == 2 else (8, 8, 8))
        with pytest.raises(InputError, match=f"expected an odd number of slices, and 1 in 3D, found {slices}"):
            Plan.from_json(dataclasses.replace(plan, slices=slices).to_json())
        with pytest.raises(InputError, match="slices"):
            config_from({"model": {"dimensions": dimensions, "slices": slices}}, source="test")


class TestOrder:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_all_channels_of_the_first_slice_then_of_the_second(self, axis: int) -> None:
        spacing, patch = [1.0, 1.0, 1.0], [4, 4, 4]
        spacing[axis], patch[axis] = 5.0, 1
        plan = dataclasses.replace(
            plan_of((4, 4, 1), channels=2, slices=3),
            spacing_mm=(spacing[0], spacing[1], spacing[2]),
            patch_size=(patch[0], patch[1], patch[2]),
        )
        shape = [2, 4, 4, 4, 2]
        shape[1 + axis] = 3
        windows = np.arange(np.prod(shape)).reshape(shape)
        found = network_input(windows, plan)
        assert found.shape == (2, 4, 4, 6)
        for number in range(3):
            for channel in range(2):
                expected = np.take(windows[..., channel], number, axis=1 + axis)
                np.testing.assert_array_equal(found[..., 2 * number + channel], expected)

    def test_training_and_inference_cut_the_same(self, tmp_path: Path) -> None:
        image = np.random.default_rng(0).normal(size=(8, 8, 5, 2)).astype(np.float32)
        case = stored(tmp_path / "a", image, np.zeros((8, 8, 5)))
        plan = plan_of((8, 8, 1), channels=2, slices=3)
        change = augmenter((8, 8, 1), channels=2, slices=3)
        for tile in window_tiles((8, 8, 5), plan, overlap=0.5, axis=2):
            window = np.full((*window_shape(plan), 2), np.nan, np.float32)
            cut_window(image, tile, plan, window)
            trained, _ = change.cut(case, at(0, 0, tile[2].target.start), seed(0))
            np.testing.assert_array_equal(network_input(window, plan), trained)
