"""A small evaluation with every kind of lesion and case, made of arrays and run through the real evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.evaluation.metrics import evaluate_case
from segment.evaluation.pictures import CasePictures
from segment.evaluation.report import write_html
from segment.evaluation.summary import summarise
from segment.evaluation.tables import sorted_cases, sorted_lesions

SCRIPT = "<script>alert('name')</script>"
CONFIG = EvaluationConfig(bootstrap_draws=200)


@dataclass(frozen=True, eq=False)
class MadeReport:
    """Everything that `write_html` takes, and the arrays by case id."""

    summary: dict[str, Any]
    cases: list[dict[str, Any]]
    lesions: list[dict[str, Any]]
    arrays: dict[str, CasePictures]

    def write(self, path: Path, *, language: str = "en") -> str:
        """Writes the page and gives its text back."""
        write_html(
            path,
            summary=self.summary,
            cases=self.cases,
            lesions=self.lesions,
            pictures=self.arrays.get,
            language=language,
        )
        return path.read_text(encoding="utf-8")


def make_report(case_ids: Sequence[str], *, side: int = 48, lesions: int = 8, probabilities: bool = True) -> MadeReport:
    """Brain-like balls with lesions: every third prediction missed, every fourth too small, some false positives.

    The case whose place is 2 has no lesion in either mask, the one at 3 has an empty label, the one at 4 an empty
    prediction.
    """
    arrays, results = {}, []
    for place, case_id in enumerate(case_ids):
        pictures, probability = _case(place, side, lesions)
        arrays[case_id] = pictures
        results.append(
            evaluate_case(
                case_id,
                pictures.label,
                pictures.prediction,
                pictures.grid,
                config=CONFIG,
                probability=probability if probabilities else None,
                froc=probabilities,
            )
        )
    point = {"threshold": 0.5, "min_lesion_mm3": 3.0} if probabilities else None
    summary = summarise(results, config=CONFIG, seed=0, inputs={"labels/a.nii.gz": "0" * 64}, operating_point=point)
    return MadeReport(summary, sorted_cases(results), sorted_lesions(results), arrays)


def _case(place: int, side: int, lesions: int) -> tuple[CasePictures, np.ndarray]:
    random = np.random.default_rng([7, place])
    shape = (side, side + 8, side // 2)
    spacing = np.array([1.0, 1.0, 2.0])
    # Stored left to right in every second case, so that the pictures have to turn it.
    affine = np.diag([*spacing * ([-1, 1, 1] if place % 2 else [1, 1, 1]), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ np.array(shape) / 2
    label, prediction = np.zeros((2, *shape), np.uint8)
    probability = np.zeros(shape, np.float32)
    for number in range(0 if place == 2 else lesions):
        centre = np.array([random.integers(size // 5, size - size // 5) for size in shape])
        ball = _ball(shape, centre, spacing, radius_mm=1.2 + 6.0 * random.random() ** 2)
        label[ball] = place != 3
        if number % 3 == 0 or place == 4:
            probability[ball] = (0.01, 0.35)[number % 2]
            continue
        moved = _ball(shape, centre + (number % 4 == 1), spacing, radius_mm=1.0 + 5.0 * random.random() ** 2)
        prediction[moved] = 1
        probability[moved] = 0.9
    image = _scan(random, shape, label)
    return CasePictures(image, label, prediction, Grid(shape, affine)), probability


def _ball(shape: tuple[int, ...], centre: np.ndarray, spacing: np.ndarray, *, radius_mm: float) -> np.ndarray:
    places = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    return (((places - centre) * spacing) ** 2).sum(axis=-1) <= radius_mm**2


def _scan(random: np.random.Generator, shape: tuple[int, ...], label: np.ndarray) -> np.ndarray:
    noise = ndimage.gaussian_filter(random.normal(size=shape), 2.0)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"), axis=-1)
    head = (places**2).sum(axis=-1) < 0.9
    image = head * (100 + 400 * noise + 12 * random.normal(size=shape)) + 90.0 * label
    return image.astype(np.float32)
