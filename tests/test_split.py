"""Splitting cases into training and validation, whole patients to one side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segment.config import config_from
from segment.data.cases import Case, Dataset
from segment.data.census import LesionLoad
from segment.data.splits import split_cases
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


LOADS = st.lists(st.tuples(st.integers(0, 8), st.lists(st.floats(1, 1e5), max_size=6)), min_size=2, max_size=24).filter(
    lambda cases: len({patient for patient, _ in cases}) > 1
)


def described(cases: list[tuple[int, list[float]]]) -> tuple[dict[str, str], dict[str, LesionLoad]]:
    owner = {f"c{index}": f"p{patient}" for index, (patient, _) in enumerate(cases)}
    return owner, {f"c{index}": LesionLoad(tuple(volumes)) for index, (_, volumes) in enumerate(cases)}


class TestStratified:
    @given(cases=LOADS, share=st.floats(0.01, 0.99), seed=st.integers(0, 2**31 - 1))
    def test_hold_out_keeps_patients_whole(self, cases: list, share: float, seed: int) -> None:
        owner, loads = described(cases)
        options = {"validation_cases": None, "validation_share": share, "seed": seed}
        split = split_cases(dataset_of(owner), **options, loads=loads)
        train, validation = {owner[case] for case in split.train}, {owner[case] for case in split.validation}
        assert not train & validation
        assert sorted(split.train + split.validation) == sorted(owner)
        count = len(train | validation)
        assert len(validation) == min(max(round(share * count), 1), count - 1)
        again = split_cases(dataset_of(dict(reversed(owner.items()))), **options, loads=loads)
        assert set(again.validation) == set(split.validation)
        assert split.stratified

    @given(cases=LOADS, folds=st.integers(2, 6), seed=st.integers(0, 2**31 - 1))
    def test_each_patient_is_in_one_fold(self, cases: list, folds: int, seed: int) -> None:
        owner, loads = described(cases)
        count = len(set(owner.values()))
        folds = min(folds, count)
        sides = []
        for fold in range(folds):
            split = split_cases(
                dataset_of(owner), validation_cases=None, validation_share=0.2, seed=seed, folds=folds, fold=fold,
                loads=loads,
            )  # fmt: skip
            assert (split.folds, split.fold) == (folds, fold)
            assert not {owner[case] for case in split.train} & {owner[case] for case in split.validation}
            sides.append({owner[case] for case in split.validation})
        assert sorted(patient for side in sides for patient in side) == sorted(set(owner.values()))
        assert max(map(len, sides)) - min(map(len, sides)) <= 1

    def test_both_sides_hold_light_and_heavy_patients(self) -> None:
        """20 patients whose load doubles each time: every quarter of the ranking gives one of 4 to validation."""
        dataset = dataset_of({f"c{index:02d}": f"p{index:02d}" for index in range(20)})
        loads = {f"c{index:02d}": LesionLoad((2.0**index,) * (index + 1)) for index in range(20)}
        for seed in range(10):
            split = split_cases(dataset, validation_cases=None, validation_share=0.2, seed=seed, loads=loads)
            assert [int(case[1:]) // 5 for case in split.validation] == [0, 1, 2, 3]
            for fold in range(5):
                split = split_cases(
                    dataset, validation_cases=None, validation_share=0.2, seed=seed, folds=5, fold=fold, loads=loads
                )
                assert [int(case[1:]) // 5 for case in split.validation] == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"fold": 1}, "data.fold: expected data.folds beside it, found fold 1 alone"),
            ({"folds": 3, "fold": 3}, "data.fold: expected 0 to 2 for 3 folds, found 3"),
            ({"folds": 3, "validation_cases": ["a"]}, "data.folds: expected validation_cases to be null beside it"),
            ({"folds": 1}, "data.folds: input should be greater than or equal to 2, found 1"),
        ],
    )
    def test_options_that_do_not_fit_together(self, options: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            config_from({"data": options}, source="x.yaml")

    def test_more_folds_than_patients(self) -> None:
        with pytest.raises(InputError, match=r"data\.folds: expected at most the 2 patients of data, found 3"):
            split_cases(
                dataset_of({"a": "a", "b": "b"}), validation_cases=None, validation_share=0.2, seed=0, folds=3, fold=0
            )
