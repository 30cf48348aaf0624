"""Halves of patients as the two sides of a split (`data.validation_half`)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf  # noqa: F401 - the four logical devices are set up before any test runs
from builders import write_case, write_dataset_json
from cli_helpers import tiny_config
from pydantic import ValidationError

from segment.cli import main
from segment.config import Config
from segment.config_data import DataConfig
from segment.data.cases import Case, find_dataset
from segment.data.orientation import keep_half
from segment.data.scan import read_scan
from segment.data.splits import split_dataset

# Axis order and direction of a file; the patient's left is where x of the world is low.
AFFINES = {
    "as RAS": np.eye(4),
    "x flipped": np.diag([-1.0, 1, 1, 1]),
    "x last": np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
}


class TestKeepHalf:
    @pytest.mark.parametrize("name", AFFINES)
    @pytest.mark.parametrize("half", ["left", "right"])
    def test_keeps_the_patients_own_half(self, name: str, half: Any) -> None:
        affine = AFFINES[name]
        image = np.ones((6, 6, 6, 2), np.float32)
        label = np.ones((6, 6, 6), np.uint8)
        world = np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices((6, 6, 6)))[0]
        keep_half(image, label, affine, half)
        own = world < np.median(world) if half == "left" else world > np.median(world)
        np.testing.assert_array_equal(image[..., 0] > 0, own)
        np.testing.assert_array_equal(label > 0, own)

    def test_the_middle_is_that_of_what_is_there(self) -> None:
        image = np.zeros((20, 4, 4, 1), np.float32)
        image[10:15] = 1  # 5 layers
        left, right = image.copy(), image.copy()
        keep_half(left, None, np.eye(4), "left")
        keep_half(right, None, np.eye(4), "right")
        assert np.flatnonzero(left.any(axis=(1, 2, 3))).tolist() == [10, 11]
        assert np.flatnonzero(right.any(axis=(1, 2, 3))).tolist() == [12, 13, 14]
        np.testing.assert_array_equal(left + right, image)

    def test_an_empty_scan_stays_empty(self) -> None:
        image = np.zeros((4, 4, 4, 1), np.float32)
        keep_half(image, None, np.eye(4), "right")
        assert not image.any()


@pytest.fixture
def one_patient(tmp_path: Path) -> Path:
    """A dataset of one patient with a lesion on each side."""
    root = tmp_path / "data"
    write_dataset_json(root, channels=("FLAIR",))
    label = np.zeros((32, 18, 16), np.uint8)
    label[5:8, 5:8, 5:8] = label[22:25, 10:13, 8:11] = 1
    image = np.random.default_rng(1).normal(100, 9, label.shape).astype(np.float32) + 60 * label
    write_case(root, "only", image, label)
    return root


class TestSplit:
    def test_each_half_is_a_case_on_its_side(self, one_patient: Path) -> None:
        dataset = find_dataset(one_patient, layout="auto")
        halves, split = split_dataset(dataset, DataConfig(validation_half="left"), seed=0, loads=None)
        assert (split.train, split.validation) == (("only-right",), ("only-left",))
        assert {case.patient_id for case in halves.cases} == {dataset.cases[0].patient_id}
        scans = {case.half: read_scan(case, with_label=True) for case in halves.cases}
        whole = read_scan(dataset.cases[0], with_label=True)
        np.testing.assert_array_equal(scans["left"].image + scans["right"].image, whole.image)
        assert [int(scans[half].label.sum()) for half in ("left", "right")] == [27, 27]

    @pytest.mark.parametrize("other", [{"validation_cases": ("a",)}, {"folds": 3}])
    def test_one_way_to_split_at_a_time(self, other: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="validation_half: expected validation_cases and folds to be null"):
            Config.model_validate({"data": {"validation_half": "left", **other}})

    def test_a_case_is_whole_by_itself(self) -> None:
        case = Case("a", "a", (Path("a.nii"),), None)
        assert case.half is None
        assert replace(case, half="left") != case


@pytest.mark.slow
def test_trains_on_one_patient_resumes_and_predicts_whole_scans(one_patient: Path, tmp_path: Path) -> None:
    options = [f"data.root={one_patient}", "data.validation_half=right", "--run-dir", str(tmp_path / "run")]
    arguments = ["train", str(tiny_config(tmp_path)), *options]
    assert main(arguments) == 0
    assert main([*arguments, "--resume"]) == 0
    run = tmp_path / "run"
    split = json.loads((run / "split.json").read_text())
    assert (split["train"], split["validation"]) == (["only-left"], ["only-right"])
    lesions = json.loads((run / "validation" / "report" / "summary.json").read_text())
    assert json.dumps(lesions).count('"n_gt": 1') >= 1  # the one of that half
    output = tmp_path / "out"
    assert main(["infer", "--run", str(run), "--input", str(one_patient), "--output", str(output)]) == 0
    assert (output / "masks" / "only.nii.gz").exists()
