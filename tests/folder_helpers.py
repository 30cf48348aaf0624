"""Folders of masks for tests of their evaluation. Not a test module: `from folder_helpers import run`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from builders import SHAPE, write_nifti

from segment.config import EvaluationConfig
from segment.evaluation.folders import evaluate_folders

CONFIG = EvaluationConfig(bootstrap_draws=20)


def mask(*boxes: tuple[int, int, int], value: int = 1) -> np.ndarray:
    """2x2x2 lesions with their first corners at the given voxels."""
    array = np.zeros(SHAPE, np.uint8)
    for x, y, z in boxes:
        array[x : x + 2, y : y + 2, z : z + 2] = value
    return array


def run(folder: Path, output: str = "out", **options: Any) -> int:
    options = {
        "config": CONFIG,
        "seed": 0,
        "probabilities": None,
        "images": None,
        "classes": None,
        "missing": "error",
        "workers": 1,
        "language": "en",
        "force": False,
    } | options
    return evaluate_folders(folder / "predictions", folder / "labels", folder / output, **options)


def summary(folder: Path, output: str = "out") -> dict[str, Any]:
    return json.loads((folder / output / "summary.json").read_text(encoding="utf-8"))


def failures(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "failures.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def three_cases(folder: Path) -> Path:
    """`labels` and `predictions` with cases a (one found, one missed), b (a false positive) and c (both empty)."""
    pairs = {
        "a": (mask((0, 0, 0), (5, 0, 0)), mask((0, 0, 0))),
        "b": (mask((0, 0, 0)), mask((0, 0, 0), (5, 4, 3))),
        "c": (mask(), mask()),
    }
    for name, (label, prediction) in pairs.items():
        write_nifti(folder / "labels" / f"{name}.nii.gz", label)
        write_nifti(folder / "predictions" / f"{name}.nii.gz", prediction)
    return folder
