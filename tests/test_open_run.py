"""Opening a run: on a thousand cases of which three are bad, and on a BIDS dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf  # noqa: F401  (before the first test, as conftest asks)
from builders import write_case, write_dataset_json, write_nifti

from segment.config import Config, config_from
from segment.data.preprocessing import prepare_cases
from segment.errors import InputError
from segment.files import read_json
from segment.training.run_folder import open_run

CASES = 1000
BAD = ("case0100", "case0500", "case0999")
SHAPE = (5, 4, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans of each of 500 patients; the bad ones are truncated, hold a NaN and have a label on another grid."""
    folder = tmp_path_factory.mktemp("thousand")
    write_dataset_json(
        folder,
        file_ending=".nii.gz",
        patients={f"case{index:04d}": f"patient{index // 2:03d}" for index in range(CASES)},
    )
    rng = np.random.default_rng(0)
    label = np.zeros(SHAPE, np.uint8)
    label[2, 2, 2] = 1
    for index in range(CASES):
        write_case(folder, f"case{index:04d}", rng.normal(100, 10, SHAPE).astype(np.float32), label)
    truncated = folder / f"imagesTr/{BAD[0]}_0000.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:-20])
    write_nifti(folder / f"imagesTr/{BAD[1]}_0000.nii.gz", np.full(SHAPE, np.nan, np.float32))
    write_nifti(folder / f"labelsTr/{BAD[2]}.nii.gz", label, np.eye(4))
    return folder


def configuration(root: Path, run_dir: Path, *, skip_invalid: bool) -> Config:
    return Config.model_validate(
        {
            "run_dir": run_dir,
            "data": {"root": root, "skip_invalid": skip_invalid},
            "model": {"filters": [4, 8], "patch_size": [8, 8, 8]},
        }
    )


def test_the_sidecars_of_a_bids_dataset_are_kept_with_the_run(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    label = np.zeros(SHAPE, np.uint8)
    label[2, 2, 2] = 1
    for subject in ("sub-1", "sub-2"):
        image = np.random.default_rng(int(subject[-1])).normal(100, 10, SHAPE).astype(np.float32)
        write_nifti(root / f"{subject}/anat/{subject}_FLAIR.nii.gz", image)
        write_nifti(root / f"derivatives/experts/{subject}/anat/{subject}_mask.nii.gz", label)
    (root / "sub-2/anat/sub-2_FLAIR.json").write_text('{"MagneticFieldStrength": 3}')
    config = configuration(root, tmp_path / "run", skip_invalid=False)
    data = open_run(config, resume=False, force=False)
    assert data.plan.channel_names == ("FLAIR",)
    kept = {"sub-2": {"sub-2/anat/sub-2_FLAIR.nii.gz": {"MagneticFieldStrength": 3}}}
    assert read_json(config.run_dir / "sidecars.json") == kept
    again = open_run(config, resume=True, force=False)
    assert (again.train, again.validation) == (data.train, data.validation)


def test_without_skip_invalid_the_first_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^case case0100: channel FLAIR: .*; 3 errors in 3 cases; or set data\.skip_invalid=true"
    ):
        open_run(configuration(root, tmp_path / "run", skip_invalid=False), resume=False, force=False)
    assert not (tmp_path / "run").exists()


def test_skip_invalid_lists_what_it_leaves_out(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configuration(root, tmp_path / "run", skip_invalid=True)
    data = open_run(config, resume=False, force=False)
    shown = capsys.readouterr().err
    assert f"data.skip_invalid: left out 3 of 1000 cases: {', '.join(BAD)}\n" in shown
    assert [(finding.case_id, finding.kind) for finding in data.findings] == list(
        zip(BAD, ("truncated", "non_finite", "grid"), strict=True)
    )
    for finding in data.findings:
        assert f"error: {finding.message}\n" in shown
        assert finding.path in finding.message
    used = [case.case_id for case in (*data.train, *data.validation)]
    assert len(used) == CASES - 3
    assert not set(BAD) & set(used)
    assert not {case.patient_id for case in data.train} & {case.patient_id for case in data.validation}
    assert len({case.patient_id for case in data.validation}) == 100  # a fifth of 500 patients
    split = read_json(config.run_dir / "split.json")
    assert sorted(split["train"] + split["validation"]) == sorted(used)
    assert (split["seed"], split["stratified"], split["folds"]) == (0, True, None)
    prepared = prepare_cases(data.train[:50], data.plan, cache_dir=tmp_path / "cache", workers=2)
    assert all(len(case.lesions) == 1 for case in prepared)


def test_a_case_left_out_cannot_be_validated_on(root: Path, tmp_path: Path) -> None:
    config = configuration(root, tmp_path / "run", skip_invalid=True)
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation_cases": (BAD[1],)})})
    with pytest.raises(InputError, match=rf"data\.validation_cases: case {BAD[1]} is invalid and was left out"):
        open_run(config, resume=False, force=False)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three cases, the last of them without a lesion, and a folder with a lesion's shape."""
    write_dataset_json(tmp_path / "data", file_ending=".nii.gz")
    label = np.zeros(SHAPE, np.uint8)
    label[2, 2, 2] = 1
    for index in range(3):
        image = np.random.default_rng(index).normal(100, 10, SHAPE).astype(np.float32)
        write_case(tmp_path / "data", f"case{index}", image, label * (index < 2))
    write_nifti(tmp_path / "shapes" / "one.nii.gz", label)
    return tmp_path


def test_a_training_side_without_lesions_is_refused(three: Path) -> None:
    config = config_from(
        {"run_dir": three / "run", "data": {"root": three / "data", "validation_cases": ["case0", "case1"]}}, source="t"
    )
    with pytest.raises(
        InputError, match=r"expected a lesion to learn from .* found none in its 1 cases, such as case2"
    ):
        open_run(config, resume=False, force=False)


def test_shapes_to_paste_belong_to_what_a_run_began_with(three: Path) -> None:
    config = config_from(
        {
            "run_dir": three / "run",
            "data": {"root": three / "data", "validation_cases": ["case2"]},
            "augmentation": {"copy_paste_share": 0.5, "copy_paste_shapes": three / "shapes"},
        },
        source="t",
    )
    open_run(config, resume=False, force=False)
    open_run(config, resume=True, force=False)
    label = np.ones(SHAPE, np.uint8)
    write_nifti(three / "shapes" / "two.nii.gz", label)
    with pytest.raises(InputError, match=r"two\.nii\.gz changed since the run"):
        open_run(config, resume=True, force=False)
