"""A BIDS dataset from the check to the masks of new scans, with the commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf  # noqa: F401  (before the first test, as conftest asks)
from builders import write_nifti

from segment.cli import main
from segment.files import read_json

CONFIG = """
model: {filters: [4, 8], patch_size: [8, 8, 8]}
train: {steps: 1, batch_size: 1, precision: float32}
data:
  normalization: tissue
  folds: 2
  fold: 1
  bids: {channels: {FLAIR: {suffix: FLAIR}, T1: {suffix: T1w, acq: mprage}}, label: {desc: experts, suffix: mask}}
"""


def write_subject(root: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.zeros((12, 12, 8), np.uint8)
    label[4:7, 4:7, 3:5] = 1
    for suffix in ("FLAIR", "acq-mprage_T1w", "acq-space_T1w"):
        image = rng.normal(100, 10, label.shape) + 50 * label
        write_nifti(root / f"{name}/anat/{name}_{suffix}.nii.gz", image.astype(np.float32))
    for desc in ("experts", "students"):
        write_nifti(root / f"derivatives/masks/{name}/anat/{name}_desc-{desc}_mask.nii.gz", label)


def test_check_train_and_infer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("sub-1", "sub-2")):
        write_subject(Path("data"), name, seed)
    Path("data/T1w.json").write_text('{"MagneticFieldStrength": 3}')
    Path("own.yaml").write_text(CONFIG)
    assert main(["check", "data"]) == 2  # two T1w a subject, and no filter to choose by
    assert "data.bids.channels.T1w: expected one file that fits" in capsys.readouterr().err
    assert main(["check", "data", "--config", "own.yaml"]) == 0
    assert main(["train", "own.yaml", "data.root=data", "--run-dir", "run"]) == 0
    split = read_json(Path("run/split.json"))
    assert (split["folds"], split["fold"], split["stratified"]) == (2, 1, True)
    assert sorted(split["train"] + split["validation"]) == ["sub-1", "sub-2"]
    image = "sub-1/anat/sub-1_acq-mprage_T1w.nii.gz"
    assert read_json(Path("run/sidecars.json"))["sub-1"] == {image: {"MagneticFieldStrength": 3}}
    assert main(["infer", "--run", "run", "--input", "data", "--labels", "data", "--output", "out"]) == 0
    assert read_json(Path("out/report/summary.json"))["n_cases"] == 2
    assert sorted(path.name for path in Path("out/masks").iterdir()) == ["sub-1.nii.gz", "sub-2.nii.gz"]
    inputs = read_json(Path("out/manifest.json"))["cases"]["sub-1"]["inputs"]
    images = ["data/sub-1/anat/sub-1_FLAIR.nii.gz", f"data/{image}"]
    label = "derivatives/masks/sub-1/anat/sub-1_desc-experts_mask.nii.gz"
    assert list(inputs) == [*images, str(Path("data").resolve() / label)]
