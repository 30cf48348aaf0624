"""Whole runs whose network has other outputs: softmax over several classes, and a second head for distances."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from builders import AFFINE, tiny_dataset, write_case, write_dataset_json
from data_helpers import make_test_plan

from segment.config import Config
from segment.config_loss import LossConfig
from segment.data.cases import Case
from segment.data.planning import Plan
from segment.data.scan import read_scan
from segment.errors import InputError
from segment.files import read_json
from segment.inference.model_file import load_model
from segment.inference.predictor import Predictor
from segment.inference.tiles import probabilities_of, to_mask
from segment.losses import build_hybrid, split_outputs, supervised_loss
from segment.model import build_unet
from segment.training.numerics import find_bad_number
from segment.training.trainer import train

VALUES = {"bright": 2, "dark": 7}
SHAPE = (24, 24, 16)
SOFTMAX = {"terms": [{"name": "categorical_crossentropy"}, {"name": "categorical_dice"}, {"name": "categorical_focal"}]}
HEAD = {"terms": [{"name": "binary_crossentropy"}, {"name": "dice"}, {"name": "distance_regression", "weight": 0.1}]}
TWO = {"bright": 1, "dark": 2}


def configuration(root: Path, run_dir: Path, loss: dict[str, Any], *, steps: int, **model: Any) -> Config:
    """A network of two levels on 16^3 patches."""
    options = {"steps": steps, "precision": "float32", "validate_every": steps, "log_every": steps}
    return Config.model_validate(
        {
            "run_dir": run_dir,
            "data": {"root": root, "validation_cases": ["case2"], "lesion_patch_share": 1.0},
            "augmentation": {"brightness_contrast_share": 0, "gamma_share": 0, "noise_share": 0, "blur_share": 0},
            "model": {"filters": [4, 8], "patch_size": [16, 16, 16], **model},
            "loss": loss,
            "train": options | {"optimizer": {"learning_rate": 0.02}},
        }
    )


def two_class_dataset(folder: Path) -> Path:
    """Three cases of noise around 100 with a box 60 brighter and a box 60 darker, in other places in each case."""
    write_dataset_json(folder, labels={"background": 0, **VALUES})
    for index in range(3):
        label = np.zeros(SHAPE, np.uint8)
        label[2 + index : 8 + index, 3:9, 4:9] = VALUES["bright"]
        label[14:20, 12 - index : 18 - index, 6:11] = VALUES["dark"]
        image = np.random.default_rng([9, index]).normal(100, 5, SHAPE)
        image += 60.0 * (label == VALUES["bright"]) - 60.0 * (label == VALUES["dark"])
        write_case(folder, f"case{index}", image.astype(np.float32), label, AFFINE)
    return folder


def last_row(path: Path) -> dict[str, str]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))[-1]


@pytest.fixture(scope="module")
def softmax_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and run/."""
    folder = tmp_path_factory.mktemp("softmax")
    root = two_class_dataset(folder / "data")
    train(configuration(root, folder / "run", SOFTMAX, steps=60), resume=False, force=False)
    return folder


@pytest.fixture(scope="module")
def head_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and run/."""
    folder = tmp_path_factory.mktemp("head")
    root = tiny_dataset(folder / "data", cases=3, shape=(24, 24, 16))
    train(configuration(root, folder / "run", HEAD, steps=4), resume=False, force=False)
    return folder


class TestSoftmaxRun:
    def test_the_plan_says_so_and_the_network_has_the_background_as_an_output(self, softmax_run: Path) -> None:
        plan = Plan.from_json(read_json(softmax_run / "run" / "plan.json"))
        assert (plan.softmax, plan.classes, plan.outputs) == (True, 2, 3)
        assert load_model(softmax_run / "run" / "model.keras", plan).output_shape == (None, 16, 16, 16, 3)

    def test_terms_are_logged(self, softmax_run: Path) -> None:
        row = last_row(softmax_run / "run" / "metrics.csv")
        total = sum(float(row[f"loss/{term['name']}"]) for term in SOFTMAX["terms"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)

    def test_a_held_out_scan_gets_a_mask_of_the_datasets_values(self, softmax_run: Path) -> None:
        data = softmax_run / "data"
        case = Case("case2", "case2", (data / "imagesTr" / "case2_0000.nii.gz",), data / "labelsTr" / "case2.nii.gz")
        scan = read_scan(case, with_label=True)
        predictor = Predictor.load([softmax_run / "run"])
        probabilities = predictor.predict(scan)
        assert probabilities.shape == (*SHAPE, 2)
        assert probabilities.min() >= 0.0
        assert probabilities.sum(axis=-1).max() <= 1.0 + 1e-5
        mask = to_mask(probabilities, predictor.plan, threshold=0.5, min_lesion_mm3=0.0, voxel_mm3=2.0)
        assert set(np.unique(mask)) == {0, 2, 7}
        for value in VALUES.values():
            found, label = mask == value, scan.label == value
            assert (found & label).sum() / (found | label).sum() > 0.5

    def test_validation_counts_each_class(self, softmax_run: Path) -> None:
        cases = json.loads((softmax_run / "run" / "validation" / "report" / "cases.json").read_text())
        assert {"bright", "dark"} <= set(json.dumps(cases).replace('"', " ").split())


class TestSoftmaxParts:
    def test_first_probabilities_are_the_foregrounds_share_in_equal_parts(self) -> None:
        plan = dataclasses.replace(make_test_plan(label_values=TWO), softmax=True, foreground_share=0.02)
        model = build_unet(plan, seed=0)
        bias = model.get_layer("logits0").get_weights()[1]
        # softmax of the biases: 0.98 background, 0.01 each class.
        np.testing.assert_allclose(np.exp(bias) / np.exp(bias).sum(), [0.98, 0.01, 0.01], rtol=1e-6)

    def test_probabilities_are_those_of_the_foreground(self) -> None:
        plan = dataclasses.replace(make_test_plan(label_values=TWO), softmax=True)
        found = probabilities_of(np.log(np.array([[2.0, 5.0, 3.0], [8.0, 1.0, 1.0]], np.float32)), plan)
        np.testing.assert_allclose(found, [[0.5, 0.3], [0.1, 0.1]], rtol=1e-6)

    def test_nan_is_still_an_error(self) -> None:
        plan = dataclasses.replace(make_test_plan(label_values=TWO), softmax=True)
        with pytest.raises(InputError, match="the network gave NaN"):
            probabilities_of(np.array([[np.nan, 0.0, 0.0]], np.float32), plan)

    def test_a_sigmoid_model_is_refused_for_a_softmax_plan(self, tmp_path: Path) -> None:
        plan = make_test_plan(label_values=TWO)
        build_unet(plan, seed=0).save(tmp_path / "model.keras")
        with pytest.raises(InputError, match=r"to 3 classes as plan.json beside it says, found one .* to \[2\]"):
            load_model(tmp_path / "model.keras", dataclasses.replace(plan, softmax=True))

    def test_plans_written_before_there_was_softmax_can_be_read(self) -> None:
        plan = make_test_plan()
        values = plan.to_json()
        del values["softmax"], values["distance_head"]
        assert Plan.from_json(values) == plan


def head_plan(**changes: Any) -> Plan:
    return dataclasses.replace(make_test_plan(), distance_head=True, **changes)


class TestDistanceHead:
    def test_all_other_weights_are_those_of_the_plain_network(self) -> None:
        plain, both = build_unet(make_test_plan(), seed=3), build_unet(head_plan(), seed=3)
        assert plain.output_shape == (None, 8, 8, 8, 1)
        own = {layer.name: layer.get_weights() for layer in both.layers}
        assert set(own) - {layer.name for layer in plain.layers} == {"distance"}
        for layer in plain.layers:
            for ours, theirs in zip(own[layer.name], layer.get_weights(), strict=True):
                np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize("deep", [False, True])
    @pytest.mark.parametrize("error", ["mean_squared_error", "mean_absolute_error", "huber"])
    def test_its_gradient_reaches_the_head_and_the_network_below(self, error: str, deep: bool) -> None:
        levels = {"filters": (4, 8, 8), "strides": ((2,) * 3,) * 2, "kernels": ((3,) * 3,) * 3}
        model = build_unet(head_plan(deep_supervision=deep, **levels), seed=0)
        terms = [{"name": "dice", "weight": 0}, {"name": "distance_regression", "error": error}]
        hybrid = build_hybrid(LossConfig.model_validate({"terms": terms}))
        rng = np.random.default_rng(0)
        image = tf.constant(rng.normal(size=(2, 8, 8, 8, 1)), tf.float32)
        distance = tf.constant(rng.normal(size=(2, 8, 8, 8, 1)), tf.float32)
        with tf.GradientTape() as tape:
            logits, maps = split_outputs(hybrid, model(image, training=True))
            assert len(logits) == (2 if deep else 1)
            output = supervised_loss(hybrid, tf.zeros_like(image), logits, distance=distance, **maps)
        names = [layer.name for layer in model.layers for _ in layer.trainable_weights]
        gradients = dict(zip(names, tape.gradient(output.total, model.trainable_weights), strict=True))
        assert np.abs(gradients["distance"]).max() > 0
        assert np.abs(gradients["down0_a_conv"]).max() > 0
        assert gradients["logits0"] is None or np.abs(gradients["logits0"]).max() == 0

    def test_the_search_for_bad_numbers_knows_it(self) -> None:
        model, hybrid = build_unet(head_plan(), seed=0), build_hybrid(LossConfig.model_validate(HEAD))
        image = tf.constant(np.random.default_rng(0).normal(size=(1, 8, 8, 8, 1)), tf.float32)
        distance = tf.fill([1, 8, 8, 8, 1], np.float32(np.nan))
        batch = {"image": image, "label": tf.zeros_like(image), "distance": distance}
        found = find_bad_number(model, hybrid, batch, ["case0"], scale=1.0)
        assert (found.place, found.kind) == ("loss term distance_regression", "NaN")

    def test_a_run_trains_it(self, head_run: Path) -> None:
        plan = Plan.from_json(read_json(head_run / "run" / "plan.json"))
        assert plan.distance_head
        assert float(last_row(head_run / "run" / "metrics.csv")["loss/distance_regression"]) > 0
        before = build_unet(plan, seed=0).get_layer("distance").get_weights()
        after = load_model(head_run / "run" / "model.keras", plan).get_layer("distance").get_weights()
        assert all(np.abs(new - old).max() > 0 for new, old in zip(after, before, strict=True))

    def test_inference_does_not_look_at_it(self, head_run: Path) -> None:
        data, plan = head_run / "data", Plan.from_json(read_json(head_run / "run" / "plan.json"))
        scan = read_scan(Case("case2", "case2", (data / "imagesTr" / "case2_0000.nii.gz",), None), with_label=False)
        model = load_model(head_run / "run" / "model.keras", plan)
        before = Predictor.load([head_run / "run"]).predict(scan)
        assert before.shape == (24, 24, 16, 1)
        head = model.get_layer("distance")
        head.set_weights([np.full_like(weight, np.nan) for weight in head.get_weights()])
        model.save(head_run / "run" / "model.keras")
        np.testing.assert_array_equal(Predictor.load([head_run / "run"]).predict(scan), before)
