"""Splitting cases into training and validation, whole patients to one side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segment.data.cases import Case, Dataset, split_cases
from segment.errors import InputError


def dataset_of(patients: Mapping[str, str]) -> Dataset:
    cases = tuple(Case(case, patient, (Path(f"{case}.nii"),), None) for case, patient in patients.items())
    return Dataset(Path("data"), cases, ("FLAIR",), {"lesion": 1})


class TestSplit:
    def test_named(self) -> None:
        dataset = dataset_of({"a": "a", "b": "b", "c": "c"})
        split = split_cases(dataset, validation_cases=("b",), validation_share=0.2, seed=3)
        assert (split.train, split.validation, split.seed) == (("a", "c"), ("b",), 3)

    def test_a_name_that_does_not_exist(self) -> None:
        with pytest.raises(InputError, match="case 'ms62' is not in data; did you mean 'ms26'"):
            split_cases(dataset_of({"ms19": "x", "ms26": "y"}), validation_cases=["ms62"], validation_share=0.2, seed=0)

    def test_half_a_patient(self) -> None:
        dataset = dataset_of({"a1": "a", "a2": "a", "b": "b"})
        with pytest.raises(InputError, match="case 'a2' is of patient 'a', who has other cases on the validation side"):
            split_cases(dataset, validation_cases=["a1"], validation_share=0.2, seed=0)
        assert split_cases(dataset, validation_cases=["a1", "a2"], validation_share=0.2, seed=0).train == ("b",)

    @pytest.mark.parametrize("named", [[], ["a", "b"]])
    def test_an_empty_side(self, named: list[str]) -> None:
        with pytest.raises(
            InputError, match=r"at least one case to train on and one to validate on, found [20] and [20] of 2"
        ):
            split_cases(dataset_of({"a": "a", "b": "b"}), validation_cases=named, validation_share=0.2, seed=0)

    def test_one_patient_cannot_be_split(self) -> None:
        with pytest.raises(InputError, match="expected at least 2 patients to split, found 1"):
            split_cases(dataset_of({"a": "p", "b": "p"}), validation_cases=None, validation_share=0.5, seed=0)

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_a_share_that_leaves_a_side_empty(self, share: float) -> None:
        with pytest.raises(InputError, match="validation_share: expected a share above 0 and below 1"):
            split_cases(dataset_of({"a": "a", "b": "b"}), validation_cases=None, validation_share=share, seed=0)

    @given(
        patients=st.lists(st.integers(0, 8), min_size=2, max_size=20).filter(lambda values: len(set(values)) > 1),
        share=st.floats(0.01, 0.99),
        seed=st.integers(0, 2**31 - 1),
    )
    def test_drawn_by_patient(self, patients: list[int], share: float, seed: int) -> None:
        owner = {f"c{index}": f"p{patient}" for index, patient in enumerate(patients)}
        split = split_cases(dataset_of(owner), validation_cases=None, validation_share=share, seed=seed)
        train, validation = {owner[case] for case in split.train}, {owner[case] for case in split.validation}
        assert not train & validation
        assert sorted(split.train + split.validation) == sorted(owner)
        count = len(set(patients))
        assert len(validation) == min(max(round(share * count), 1), count - 1)
        backwards = dict(reversed(owner.items()))
        again = split_cases(dataset_of(backwards), validation_cases=None, validation_share=share, seed=seed)
        assert set(again.validation) == set(split.validation)

    def test_seeds_differ(self) -> None:
        dataset = dataset_of({f"c{index}": f"p{index}" for index in range(10)})
        draws = {
            split_cases(dataset, validation_cases=None, validation_share=0.3, seed=seed).validation
            for seed in range(20)
        }
        assert len(draws) > 10
        assert all(len(draw) == 3 for draw in draws)
