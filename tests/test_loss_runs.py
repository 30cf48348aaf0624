"""Whole runs with losses whose weights move: what they leave in the run folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from builders import tiny_dataset

from segment.config import Config
from segment.training.trainer import train

LESION_TERMS = [{"name": "binary_crossentropy"}, {"name": "focal"}, {"name": "component_dice"}, {"name": "boundary"}]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", cases=3, shape=(24, 24, 16))


def run(root: Path, run_dir: Path, weighting: dict[str, Any], terms: Sequence[dict[str, str]] = LESION_TERMS) -> None:
    values = {
        "run_dir": run_dir,
        "data": {"root": root, "validation_cases": ["case2"]},
        "model": {"filters": [4, 8], "patch_size": [16, 16, 16]},
        "loss": {"terms": terms, "weighting": weighting},
        "train": {"steps": 4, "precision": "float32", "validate_every": 2, "log_every": 2},
    }
    train(Config.model_validate(values), resume=False, force=False)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def tags_in(folder: Path) -> set[str]:
    """Names of all scalars in TensorBoard's files."""
    return {
        value.tag
        for path in folder.glob("events*")
        for record in tf.data.TFRecordDataset(str(path))
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    }


def test_recall_feedback_moves_after_each_validation_and_says_why(dataset: Path, tmp_path: Path) -> None:
    # A few steps find nothing: recall 0 and no false positives, or many, so the target is put where the move is known.
    run(dataset, tmp_path / "run", {"name": "recall_feedback", "target_recall": 1.0, "max_fp_per_scan": 1e6})
    rows = rows_of(tmp_path / "run" / "metrics.csv")
    validations = rows_of(tmp_path / "run" / "validation.csv")
    for validation, before, after in zip(validations, ("1.000", "1.250"), ("1.250", "1.562"), strict=True):
        assert float(validation["small_lesion_recall"]) < 1.0
        move = f"recall_feedback: factor rises from {before} to {after}: small-lesion recall "
        assert validation["note"].startswith(move)
        assert "is under its target 1" in validation["note"]
    # Focal and component_dice are the recall-heavy ones; factor 1.25, and the four weights keep their sum.
    first, second = ([float(row[f"weight/{term['name']}"]) for term in LESION_TERMS] for row in rows)
    assert first == pytest.approx([1.0] * 4)
    assert second == pytest.approx([4 / 4.5, 5 / 4.5, 5 / 4.5, 4 / 4.5])


def test_learnt_weights_terms_and_sigmas_are_logged(dataset: Path, tmp_path: Path) -> None:
    terms = [term for term in LESION_TERMS if term["name"] != "boundary"]  # which may be negative
    run(dataset, tmp_path / "run", {"name": "uncertainty"}, terms)
    names = [term["name"] for term in terms]
    wanted = {f"{kind}/{name}" for kind in ("loss", "weight", "sigma") for name in names}
    rows = rows_of(tmp_path / "run" / "metrics.csv")
    assert wanted <= set(rows[0])
    assert any(float(rows[-1][f"sigma/{name}"]) != 1.0 for name in names)
    assert {f"train/{name}" for name in wanted} <= tags_in(tmp_path / "run" / "tensorboard")
