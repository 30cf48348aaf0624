"""Run folders into predictors: averages, grids, and every way in which a run folder can be wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import axis_orders, make_scan, make_test_plan
from inference_helpers import (
    bright_is_lesion,
    lesion_image,
    make_member,
    quick_config,
    threshold_predictor,
    write_run,
)

from segment.errors import InputError
from segment.inference.model_file import load_model, network_shape
from segment.inference.predictor import Predictor

# Odd sizes, spacing that differs by axis, and an oblique turn of 10 degrees.
COS, SIN = np.cos(np.radians(10)), np.sin(np.radians(10))
OBLIQUE = np.array([[COS, -2 * SIN, 0, 5], [SIN, 2 * COS, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3D run with deep supervision; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    plan = replace(
        make_test_plan(),
        filters=(2, 3, 4),
        strides=((2, 2, 1), (2, 2, 2)),
        kernels=((3, 3, 1),) * 3,
        deep_supervision=True,
    )
    write_run(folder, plan)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


class TestPredict:
    @pytest.mark.parametrize("number", range(0, 48, 5))
    def test_finds_the_voxels_in_any_axis_order(self, number: int) -> None:
        image, mask = lesion_image((7, 9, 6))
        scan = make_scan(image, axis_orders()[number])
        found = threshold_predictor().predict(scan)
        assert np.array_equal(found[..., 0] > 0.5, mask.astype(bool))

    @pytest.mark.parametrize("window", [(8, 8, 8), (4, 8, 2)])
    def test_odd_sizes_and_an_oblique_grid_of_the_plans_spacing(self, window: tuple[int, int, int]) -> None:
        image, mask = lesion_image((11, 5, 13))
        plan = make_test_plan(spacing_mm=(1.0, 2.0, 3.0), patch_size=window)
        found = threshold_predictor(plan).predict(make_scan(image, OBLIQUE))
        assert found.shape == (11, 5, 13, 1)
        assert np.array_equal(found[..., 0] > 0.5, mask.astype(bool))

    def test_resampled_scan_keeps_a_lesion_in_its_place(self) -> None:
        image = np.ones((12, 12, 4), np.float32)
        image[6:9, 2:5, 1:3] = 10.0
        found = threshold_predictor().predict(make_scan(image, np.diag([1.0, 1.0, 3.0, 1.0])))
        inside = found[..., 0] > 0.5
        assert np.array_equal(inside, image > 1)

    @pytest.mark.parametrize("slice_axis", [0, 2])
    def test_two_dimensional_plan(self, slice_axis: int) -> None:
        spacing, window = [1.0, 1.0, 1.0], [8, 8, 8]
        spacing[slice_axis], window[slice_axis] = 3.0, 1
        plan = make_test_plan(dimensions=2, spacing_mm=tuple(spacing), patch_size=tuple(window))
        image, mask = lesion_image((9, 10, 11))
        found = threshold_predictor(plan).predict(make_scan(image, np.diag([*spacing, 1.0])))
        assert np.array_equal(found[..., 0] > 0.5, mask.astype(bool))

    def test_scan_of_zeros_gives_what_the_network_says_of_zeros(self) -> None:
        found = threshold_predictor().predict(make_scan(np.zeros((5, 5, 5)), np.eye(4)))
        assert found.max() < 1e-6


class TestEnsemble:
    def test_members_are_averaged_as_probabilities(self) -> None:
        logits = [0.0, 2.0, -1.0]
        members = [make_member(forward=lambda windows, logit=logit: np.full_like(windows, logit)) for logit in logits]
        found = Predictor(members).predict(make_scan(lesion_image((9, 9, 9))[0], np.eye(4)))
        assert np.allclose(found, np.mean(1 / (1 + np.exp(-np.array(logits)))), atol=1e-6)

    def test_members_on_several_grids_have_equal_weights(self) -> None:
        # Two members at 1 mm and one at 2 mm: (0.5 + 0.5 + sigmoid(2)) / 3.
        coarse = make_test_plan(spacing_mm=(2.0, 2.0, 2.0))
        members = [make_member(forward=lambda windows: 0 * windows) for _ in range(2)]
        members.append(make_member(coarse, forward=lambda windows: 0 * windows + 2))
        predictor = Predictor(members)
        scan = make_scan(lesion_image((9, 9, 9))[0], np.eye(4))
        assert [scan.image.shape[:3] for scan in predictor.prepare(scan)] == [(9, 9, 9), (4, 4, 4)]
        assert np.allclose(predictor.predict(scan), (1 + 1 / (1 + np.exp(-2))) / 3, atol=1e-6)

    @pytest.mark.parametrize("order", [1, -1])
    def test_members_that_see_other_numbers_of_slices(self, order: int) -> None:
        options = {"dimensions": 2, "spacing_mm": (1.0, 1.0, 3.0), "patch_size": (8, 8, 1)}
        one, three = make_test_plan(**options), make_test_plan(**options, slices=3)
        middle = lambda windows: bright_is_lesion(windows[..., 1:2])  # noqa: E731
        members = [make_member(one), make_member(three, forward=middle)][::order]
        image, mask = lesion_image((9, 10, 11))
        found = Predictor(members).predict(make_scan(image, np.diag([1.0, 1.0, 3.0, 1.0])))
        assert np.array_equal(found[..., 0] > 0.9, mask.astype(bool))

    def test_classes_in_another_order_are_refused(self) -> None:
        plans = [make_test_plan(label_values=values) for values in ({"core": 2, "edge": 1}, {"edge": 1, "core": 2})]
        with pytest.raises(InputError, match="expected the labels"):
            Predictor([make_member(plan) for plan in plans])

    def test_other_channels_are_refused(self) -> None:
        other = replace(make_test_plan(), channel_names=("T1",))
        with pytest.raises(InputError, match=r"expected the channels \('channel0',\) .* found \('T1',\)"):
            Predictor([make_member(), make_member(other)])

    def test_other_labels_are_refused(self) -> None:
        with pytest.raises(InputError, match="expected the labels"):
            Predictor([make_member(), make_member(make_test_plan(label_values={"lesion": 2}))])

    def test_no_run_is_refused(self) -> None:
        with pytest.raises(InputError, match="at least one run folder"):
            Predictor.load([])


class TestLoad:
    def test_compiled_network_equals_the_model(self, run: Path) -> None:
        predictor = Predictor.load([run])
        member = predictor.members[0]
        model = load_model(run / "model.keras", predictor.plan)
        windows = np.random.default_rng(0).normal(size=(member.window_batch, 8, 8, 8, 1)).astype(np.float32)
        assert np.allclose(member.forward(windows), model(windows)[0], atol=1e-5)
        assert predictor.config.inference.threshold == 0.5

    def test_the_network_is_compiled_once(self, run: Path) -> None:
        member = Predictor.load([run]).members[0]
        with pytest.raises((TypeError, ValueError), match=r"signature|incompatible"):
            member.forward(np.zeros((member.window_batch + 1, 8, 8, 8, 1), np.float32))

    def test_two_dimensional_run(self, tmp_path: Path) -> None:
        plan = make_test_plan(dimensions=2, spacing_mm=(1, 4, 1), patch_size=(8, 1, 8), channels=2)
        write_run(tmp_path, plan)
        assert network_shape(plan) == (8, 8, 2)
        found = Predictor.load([tmp_path]).predict(
            make_scan(np.random.default_rng(0).random((9, 3, 7, 2)), np.diag([1, 4, 1, 1]))
        )
        assert found.shape == (9, 3, 7, 1)
        assert ((found > 0) & (found < 1)).all()

    def test_float16_run_is_computed_in_float32_without_a_gpu(self, tmp_path: Path) -> None:
        plan = make_test_plan()
        half = write_run(tmp_path, plan, policy="mixed_float16")
        model = load_model(tmp_path / "model.keras", plan)
        assert {layer.compute_dtype for layer in model.layers} == {"float32"}
        assert all(np.array_equal(a, b) for a, b in zip(half.get_weights(), model.get_weights(), strict=True))
        assert tf.keras.mixed_precision.global_policy().name == "float32"

    @pytest.mark.parametrize(("flag", "computed"), [("avx512_bf16", "bfloat16"), ("avx2", "float32")])
    def test_bfloat16_run_without_bfloat16_units(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, computed: str
    ) -> None:
        plan = make_test_plan()
        write_run(tmp_path, plan, policy="mixed_bfloat16")
        monkeypatch.setattr("segment.inference.model_file.read_cpu_flags", lambda: frozenset({flag}))
        model = load_model(tmp_path / "model.keras", plan)
        assert model.get_layer("down0_a_conv").compute_dtype == computed

    def test_options_can_be_replaced(self, run: Path) -> None:
        predictor = Predictor.load([run], changes={"flips": True, "overlap": 0.25})
        assert predictor.config.inference.flips
        assert predictor.members[0].windows[3] == 0.25
        with pytest.raises(InputError, match=r"inference.overlap"):
            Predictor.load([run], changes={"overlap": 1.5})


class TestBadRunFolders:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"run folder .*nowhere: expected a folder, found nothing"):
            Predictor.load([tmp_path / "nowhere"])

    def test_file_instead_of_a_folder(self, run: Path) -> None:
        with pytest.raises(InputError, match="expected a folder, found a file"):
            Predictor.load([run / "plan.json"])

    @pytest.mark.parametrize("name", ["plan.json", "config.yaml", "model.keras"])
    def test_missing_piece(self, copy: Path, name: str) -> None:
        (copy / name).unlink()
        with pytest.raises(InputError, match=f"expected {name} in it, found none"):
            Predictor.load([copy])

    def test_broken_plan_names_the_file(self, copy: Path) -> None:
        (copy / "plan.json").write_text('{"filters": [1]}')
        with pytest.raises(InputError, match=r"plan\.json: plan: key"):
            Predictor.load([copy])

    def test_unknown_option_in_the_configuration(self, copy: Path) -> None:
        (copy / "config.yaml").write_text("inference: {treshold: 0.4}")
        with pytest.raises(InputError, match=r"config\.yaml: unknown key 'inference\.treshold'"):
            Predictor.load([copy])

    def test_plan_of_another_network(self, copy: Path) -> None:
        plan = replace(Predictor.load([copy]).plan, patch_size=(16, 8, 8))
        write_run(copy.parent / "other", plan)
        shutil.copy(copy.parent / "other" / "plan.json", copy)
        with pytest.raises(InputError, match=r"expected a network from \(16, 8, 8, 1\) to 1 classes"):
            Predictor.load([copy])


def test_config_of_the_first_run_counts(tmp_path: Path) -> None:
    plan = make_test_plan()
    for name, threshold in (("one", 0.3), ("two", 0.7)):
        write_run(tmp_path / name, plan, config=quick_config(threshold=threshold))
    assert Predictor.load([tmp_path / "one", tmp_path / "two"]).config.inference.threshold == 0.3
