"""From the fingerprint and a memory budget to the choices of a configuration."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from segment.config import config_from
from segment.data.budget import GIB, LEAST_BATCH, MARGIN, Choice, choose, choose_normalization
from segment.data.cases import Dataset
from segment.data.fingerprint import Fingerprint, Intensities, target_spacing
from segment.data.memory_model import RUNTIME_BYTES, estimate_memory
from segment.data.planning import Plan, make_plan
from segment.errors import InputError

MR = Intensities((80.0, 120.0, 160.0), (5.0, 90.0, 150.0))
CT = Intensities((-10.0, 30.0, 70.0), (-1000.0, -20.0, 900.0))
DATASET = Dataset(root=Path("d"), cases=(), channel_names=("FLAIR", "T1"), label_values={"lesion": 1})
BRAIN = Fingerprint(
    cases=20,
    channels=2,
    spacing_mm=(1.0, 1.0, 1.0),
    spacing_range_mm=((1.0, 1.0),) * 3,
    shape=(150, 180, 130),
    voxels=20 * 150 * 180 * 130,
    foreground_share=0.01,
    lesion_mm3=(3.0, 40.0, 500.0),
    intensities=(MR, MR),
)
THICK = dataclasses.replace(BRAIN, spacing_mm=(0.75, 0.75, 5.0), shape=(200, 240, 30), voxels=20 * 200 * 240 * 30)
BUDGETS = {3: (1.2, 2.0, 4.0, 8.0, 24.0, 80.0), 2: (1.2, 2.0, 4.0, 8.0, 24.0)}


def chosen(found: Fingerprint = BRAIN, *, dimensions: int = 3, memory_gb: float = 4.0, **options: Any) -> Choice:
    given = {"values": {"data": {}}, "precision": "float32", "gpus": 0, **options}
    return choose(DATASET, found, dimensions=dimensions, memory_gb=memory_gb, **given)


class TestSpacing:
    def test_the_coarse_axis_keeps_its_spacing(self) -> None:
        assert target_spacing([(0.7, 0.7, 5.0), (0.8, 0.8, 6.0), (0.75, 0.9, 5.0)]) == (0.75, 0.8, 5.0)


class TestBudget:
    @pytest.mark.parametrize("dimensions", [2, 3])
    @pytest.mark.parametrize("gpu", [False, True])
    @pytest.mark.parametrize("found", [BRAIN, THICK])
    def test_is_kept_and_used(self, dimensions: int, gpu: bool, found: Fingerprint) -> None:
        sizes = []
        for memory_gb in BUDGETS[dimensions][1 if gpu else 0 :]:
            choice = chosen(found, dimensions=dimensions, memory_gb=memory_gb, gpus=int(gpu))
            batch = choice.values["train"]["batch_size"]
            own = estimate_memory(choice.plan, batch, "float32", gpu=gpu)
            assert RUNTIME_BYTES["gpu" if gpu else "cpu"] + MARGIN * own <= memory_gb * GIB
            assert choice.memory_bytes == RUNTIME_BYTES["gpu" if gpu else "cpu"] + own
            assert batch >= LEAST_BATCH[dimensions]
            sizes.append(batch * math.prod(choice.plan.patch_size) * choice.plan.filters[0])
        assert sizes == sorted(sizes)
        assert sizes[-1] > 4 * sizes[0]

    def test_half_the_bytes_a_number_give_a_larger_network(self) -> None:
        wide, narrow = (chosen(precision=name).plan for name in ("mixed_bfloat16", "float32"))
        assert math.prod(wide.patch_size) * wide.filters[0] > math.prod(narrow.patch_size) * narrow.filters[0]

    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_too_small_says_how_much_is_needed(self, dimensions: int) -> None:
        with pytest.raises(InputError, match=rf"^--memory-gb 0.5: expected at least [\d.]+ .*\({dimensions}D"):
            chosen(dimensions=dimensions, memory_gb=0.5)

    @pytest.mark.parametrize("dimensions", [2, 3])
    @pytest.mark.parametrize("gpus", [2, 3, 4, 16])
    def test_gpus_share_the_batch(self, dimensions: int, gpus: int) -> None:
        """Training refuses a batch that they cannot divide evenly."""
        one, all_ = (chosen(dimensions=dimensions, memory_gb=24, gpus=count) for count in (1, gpus))
        batch = all_.values["train"]["batch_size"]
        assert batch % gpus == 0
        assert batch >= LEAST_BATCH[dimensions]
        own = estimate_memory(all_.plan, batch // gpus, "float32", gpu=True)
        assert all_.memory_bytes == RUNTIME_BYTES["gpu"] + own
        assert RUNTIME_BYTES["gpu"] + MARGIN * own <= 24 * GIB
        assert math.prod(all_.plan.patch_size) >= math.prod(one.plan.patch_size)

    def test_a_batch_is_a_small_part_of_the_dataset(self) -> None:
        few = dataclasses.replace(BRAIN, shape=(40, 40, 40), voxels=2 * 40**3, cases=2)
        assert chosen(few, memory_gb=16).values["train"]["batch_size"] == 2
        many = dataclasses.replace(few, voxels=1000 * 40**3, cases=1000)
        assert chosen(many, memory_gb=16).values["train"]["batch_size"] == 8


class TestNetwork:
    @pytest.mark.parametrize("dimensions", [2, 3])
    @pytest.mark.parametrize("found", [BRAIN, THICK])
    def test_the_configuration_leads_back_to_the_plan(self, found: Fingerprint, dimensions: int) -> None:
        choice = chosen(found, dimensions=dimensions)
        config = config_from(json.loads(json.dumps(choice.values)), source="written")
        assert make_plan(DATASET, found, config) == choice.plan == Plan.from_json(choice.plan.to_json())

    def test_thick_slices_shrink_within_themselves_first(self) -> None:
        # 0.75 and 5 mm: the third axis waits until the others are at 3 mm, two halvings later.
        plan = chosen(THICK).plan
        assert plan.strides[:3] == ((2, 2, 1), (2, 2, 1), (2, 2, 2))
        assert plan.kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
        assert plan.patch_size[0] > 3 * plan.patch_size[2]

    def test_isotropic_voxels_give_cubes(self) -> None:
        plan = chosen(BRAIN).plan
        assert len(set(plan.patch_size)) == 1
        assert set(plan.strides) == {(2, 2, 2)}
        assert set(plan.kernels) == {(3, 3, 3)}
        assert plan.patch_size[0] // 2 ** len(plan.strides) in (4, 5, 6, 7)

    def test_filters_double_up_to_a_limit(self) -> None:
        plan = chosen(BRAIN, memory_gb=24).plan
        assert plan.filters == (32, 64, 128, 256, 320, 320)[: len(plan.filters)]

    def test_2d_leaves_out_the_coarsest_axis(self) -> None:
        plan = chosen(THICK, dimensions=2).plan
        assert (plan.dimensions, plan.slice_axis, plan.patch_size[2]) == (2, 2, 1)

    @pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 3), (8, 7, 6), (300, 2, 90)])
    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_odd_shapes(self, shape: tuple[int, int, int], dimensions: int) -> None:
        found = dataclasses.replace(BRAIN, shape=shape, voxels=20 * math.prod(shape))
        plan = chosen(found, dimensions=dimensions).plan
        assert all(size <= 1.5 * whole + 1 for size, whole in zip(plan.patch_size, shape, strict=True))

    def test_what_is_given_is_kept(self) -> None:
        values = {
            "data": {"spacing_mm": [2.0, 2.0, 2.0], "normalization": "tissue"},
            "train": {"epochs": 3.0, "batch_size": 7},
            "loss": {"terms": [{"name": "dice"}]},
        }
        choice = chosen(values=values)
        assert choice.plan.spacing_mm == (2.0, 2.0, 2.0)
        assert choice.plan.normalization == "tissue"
        assert choice.why_normalization == "given"
        assert "steps" not in choice.values["train"]
        assert choice.values["train"]["epochs"] == 3.0
        assert choice.values["loss"] == {"terms": [{"name": "dice"}]}


class TestNormalization:
    @pytest.mark.parametrize("name", ["CT", "ct", "CT_venous", "NCCT", "head-CTA"])
    def test_ct_by_name(self, name: str) -> None:
        assert choose_normalization([name], [MR])[0] == "percentile"

    def test_ct_by_air(self) -> None:
        how, why = choose_normalization(["image"], [CT])
        assert (how, why) == ("percentile", "channel image holds values down to -1000, like air on CT")

    @pytest.mark.parametrize("name", ["FLAIR", "T1", "ACT", "contrast"])
    def test_else_mr(self, name: str) -> None:
        assert choose_normalization([name], [MR])[0] == "zscore"
        assert choose_normalization([name], [Intensities(None, None)])[0] == "zscore"
