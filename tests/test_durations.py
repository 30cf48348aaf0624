"""Lengths of a training by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from segment.config import TrainConfig, config_from
from segment.errors import InputError
from segment.training.durations import patches_per_epoch, training_steps


def cases(*shapes: tuple[int, int, int]) -> Any:
    return [SimpleNamespace(shape=shape) for shape in shapes]


def plan(*patch_size: int) -> Any:
    return SimpleNamespace(patch_size=patch_size)


class TestEpoch:
    def test_patches_hold_the_voxels_of_all_cases_rounded_up(self) -> None:
        # 32 x 32 x 16 and 16 x 16 x 17 voxels are 16384 + 4352 = 5.06 patches of 16 x 16 x 16.
        assert patches_per_epoch(cases((32, 32, 16), (16, 16, 17)), plan(16, 16, 16)) == 6

    def test_2d_counts_slices(self) -> None:
        assert patches_per_epoch(cases((32, 32, 20)), plan(32, 32, 1)) == 20

    def test_a_scan_smaller_than_the_patch_is_part_of_one(self) -> None:
        assert patches_per_epoch(cases((8, 8, 8)), plan(16, 16, 16)) == 1


class TestSteps:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, 1000),
            ({"steps": 7, "accumulate_steps": 5}, 7),
            ({"samples": 100, "batch_size": 2}, 50),
            ({"samples": 101, "batch_size": 2}, 51),
            ({"samples": 100, "batch_size": 2, "accumulate_steps": 5}, 10),
            ({"samples": 1, "batch_size": 4}, 1),
            ({"epochs": 3, "batch_size": 2}, 12),  # 8 patches an epoch
            ({"epochs": 0.5, "batch_size": 2, "accumulate_steps": 2}, 1),
            ({"epochs": 0.01, "batch_size": 2}, 1),
            ({"steps": None, "epochs": 1, "samples": None, "batch_size": 1}, 8),
        ],
    )
    def test_by_hand(self, options: dict[str, Any], expected: int) -> None:
        config = TrainConfig.model_validate(options)
        assert training_steps(config, cases((32, 32, 32)), plan(16, 16, 16)) == expected

    def test_two_lengths_are_an_error_that_says_what_to_do(self) -> None:
        with pytest.raises(
            InputError,
            match=r"train\.epochs: expected one of steps, epochs, samples, found steps and epochs; "
            r"set the other to null, for example train\.steps=null",
        ):
            config_from({"train": {"steps": 5, "epochs": 2}}, source="x.yaml")

    @pytest.mark.parametrize("length", [{}, {"steps": 3}, {"epochs": 2.5}, {"samples": 40}])
    def test_a_saved_configuration_reads_back(self, length: dict[str, Any]) -> None:
        config = TrainConfig.model_validate(length)
        assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
