"""Which validation cases get a picture, and what it shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from builders import tiny_dataset

from segment.data.cases import find_dataset
from segment.evaluation.overlays import PREDICTION_RGB
from segment.training.slices import CASES, pictured_cases, slice_picture


def prepared(name: str, lesions: int) -> Any:
    return SimpleNamespace(case=SimpleNamespace(case_id=name), lesions=range(lesions))


class TestPicturedCases:
    def test_cases_with_lesions_come_first(self) -> None:
        cases = [prepared("a", 0), prepared("b", 2), prepared("c", 0), prepared("d", 1)]
        assert pictured_cases(cases) == {"a", "b", "c", "d"}
        more = [prepared(f"empty{number}", 0) for number in range(CASES)] + [prepared("b", 2)]
        assert pictured_cases(more) == {"b", *(f"empty{number}" for number in range(CASES - 1))}

    def test_a_few_of_many(self) -> None:
        assert pictured_cases([prepared(f"case{number}", 1) for number in range(50)]) == {
            f"case{number}" for number in range(CASES)
        }


class TestSlicePicture:
    def test_shows_the_prediction_on_the_scan(self, tmp_path: Path) -> None:
        (case,) = find_dataset(tiny_dataset(tmp_path, cases=1), layout="nnunet").cases
        mask = np.zeros((8, 7, 6), np.uint8)
        without = slice_picture(SimpleNamespace(case=case), mask)
        mask[4:7, 3:6, 1] = 1  # in the slice of the lesion
        picture = slice_picture(SimpleNamespace(case=case), mask)
        assert picture is not None
        assert without is not None
        assert picture.dtype == np.uint8
        assert (picture == PREDICTION_RGB).all(axis=-1).any()
        assert not (without == PREDICTION_RGB).all(axis=-1).any()
