"""Training and validation sides: whole patients, hold-out or k-fold, alike in lesion load."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import get_args

import numpy as np

from segment.config_data import DataConfig
from segment.data.cases import Dataset
from segment.data.census import LesionLoad
from segment.data.folder_names import nearest
from segment.data.orientation import Half
from segment.errors import InputError

HALVES: tuple[Half, ...] = get_args(Half)


@dataclass(frozen=True)
class Split:
    """Case ids of both sides, in the dataset's order, and what they were drawn with.

    Attributes:
        train, validation: Case ids.
        seed: Of the draw.
        folds, fold: Number of folds and which of them is the validation side; None for a hold-out split.
        stratified: Whether the patients' lesion load took part.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    seed: int
    folds: int | None = None
    fold: int | None = None
    stratified: bool = False


def split_dataset(
    dataset: Dataset, options: DataConfig, *, seed: int, loads: Mapping[str, LesionLoad] | None
) -> tuple[Dataset, Split]:
    """The split that a configuration asks for, and the dataset that it is of; raises as `split_cases`."""
    if options.validation_half is not None:
        return split_halves(dataset, options.validation_half)
    return dataset, split_cases(
        dataset,
        validation_cases=options.validation_cases,
        validation_share=options.validation_share,
        seed=seed,
        folds=options.folds,
        fold=options.fold,
        loads=loads,
    )


def split_cases(
    dataset: Dataset,
    *,
    validation_cases: Sequence[str] | None,
    validation_share: float,
    seed: int,
    folds: int | None = None,
    fold: int = 0,
    loads: Mapping[str, LesionLoad] | None = None,
) -> Split:
    """Divides the cases into training and validation, whole patients to one side.

    Args:
        dataset: With cases of at least two patients.
        validation_cases: The case ids of the validation side; None draws patients.
        validation_share: Share of patients drawn, rounded, at least one and not all; used for a hold-out draw only.
        seed: Patients are drawn in the order of the SHA-256 of seed and patient, so that the draw depends on neither
            the order of the cases nor a library's generator.
        folds: Divide into this many folds instead, whose sizes differ by at most one patient; each patient is on the
            validation side of exactly one.
        fold: Which fold is the validation side, from 0.
        loads: Lesion load by case id. With it, patients are ranked by volume and count together and each stretch of
            the ranking gives its part to every side, so that both sides hold light and heavy patients.

    Raises:
        InputError: A named case does not exist (names the nearest), a patient would fall on both sides, there are fewer
            patients than folds, or a side would be empty.
    """
    stratified = loads is not None and validation_cases is None
    if validation_cases is not None:
        patients = _named_patients(dataset, validation_cases)
    elif folds is not None:
        patients = _fold_of(_ranked(dataset, loads, seed), dataset, folds, fold, seed)
    else:
        patients = _draw_patients(_ranked(dataset, loads, seed), dataset, validation_share, seed)
    train = tuple(case.case_id for case in dataset.cases if case.patient_id not in patients)
    validation = tuple(case.case_id for case in dataset.cases if case.patient_id in patients)
    if not train or not validation:
        raise InputError(
            f"data.validation_cases: expected at least one case to train on and one to validate on, found {len(train)} "
            f"and {len(validation)} of {len(dataset.cases)} cases; name other cases"
        )
    drawn_fold = None if folds is None or validation_cases is not None else fold
    return Split(train, validation, seed, None if drawn_fold is None else folds, drawn_fold, stratified)


def split_halves(dataset: Dataset, validation_half: Half) -> tuple[Dataset, Split]:
    """Divides every patient instead of the patients: one half is validated on, the other trained on.

    For datasets of few patients, where a held-out one would be missed. Both sides see the same scanner and the same
    disease: the figures are better than those of a patient whom nobody has seen.

    Returns:
        The dataset of the halves, two cases for each of its own, CASE-left and CASE-right; and the split.
    """
    cases = tuple(
        replace(case, case_id=f"{case.case_id}-{half}", half=half) for case in dataset.cases for half in HALVES
    )
    train, validation = (
        tuple(case.case_id for case in cases if (case.half == validation_half) == wanted) for wanted in (False, True)
    )
    return replace(dataset, cases=cases), Split(train, validation, seed=0)


def _hash(seed: int, patient: str) -> bytes:
    return hashlib.sha256(f"{seed}:{patient}".encode()).digest()


def _ranked(dataset: Dataset, loads: Mapping[str, LesionLoad] | None, seed: int) -> list[str]:
    """The patients from light to heavy; equals, or all without loads, in the order of their hashes."""
    patients = sorted({case.patient_id for case in dataset.cases}, key=lambda patient: _hash(seed, patient))
    if len(patients) < 2:
        raise InputError(
            f"dataset {dataset.root}: expected at least 2 patients to split, found {len(patients)}; add cases "
            "or set data.validation_half=right"
        )
    if loads is None:
        return patients
    own: dict[str, list[LesionLoad]] = {patient: [] for patient in patients}
    for case in dataset.cases:
        if case.case_id in loads:
            own[case.patient_id].append(loads[case.case_id])
    heaviest = [max((load.volume_mm3 for load in own[patient]), default=0.0) for patient in patients]
    most = [max((load.count for load in own[patient]), default=0) for patient in patients]
    rank = np.unique(heaviest, return_inverse=True)[1] + np.unique(most, return_inverse=True)[1]
    return [patients[index] for index in np.argsort(rank, kind="stable")]


def _draw_patients(ranked: list[str], dataset: Dataset, share: float, seed: int) -> set[str]:
    """One patient, that of the lowest hash, from each of as many stretches of the ranking as patients are drawn."""
    if not 0.0 < share < 1.0:
        raise InputError(
            f"data.validation_share: expected a share above 0 and below 1, found {share:g}, which leaves a side empty"
        )
    count = min(max(round(share * len(ranked)), 1), len(ranked) - 1)
    ends = [index * len(ranked) // count for index in range(count + 1)]
    return {min(ranked[start:stop], key=lambda patient: _hash(seed, patient)) for start, stop in pairwise(ends)}


def _fold_of(ranked: list[str], dataset: Dataset, folds: int, fold: int, seed: int) -> set[str]:
    """Of each `folds` neighbours in the ranking one patient; the draw within them is that of the hashes."""
    if len(ranked) < folds:
        raise InputError(
            f"data.folds: expected at most the {len(ranked)} patients of {dataset.root}, found {folds}; use fewer folds"
        )
    chosen = set()
    for start in range(0, len(ranked), folds):
        block = sorted(ranked[start : start + folds], key=lambda patient: _hash(seed, patient))
        # The last block may be short: where it begins to count moves with the seed, so that no fold is always larger.
        turn = seed % folds if len(block) < folds else 0
        chosen |= {patient for index, patient in enumerate(block) if (index + turn) % folds == fold}
    return chosen


def _named_patients(dataset: Dataset, named: Sequence[str]) -> set[str]:
    by_id = {case.case_id: case for case in dataset.cases}
    for case_id in named:
        if case_id not in by_id:
            raise InputError(
                f"data.validation_cases: case {case_id!r} is not in {dataset.root}{nearest(case_id, by_id)}"
            )
    patients = {by_id[case_id].patient_id for case_id in named}
    for case in dataset.cases:
        if case.patient_id in patients and case.case_id not in named:
            raise InputError(
                f"data.validation_cases: case {case.case_id!r} is of patient {case.patient_id!r}, who has other cases "
                "on the validation side; name all cases of a patient or none"
            )
    return patients
