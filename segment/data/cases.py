"""Which cases a dataset holds, which channels and labels they have, and how patients are split.

Layouts: nnU-Net v2 (`dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`) and a CSV manifest (columns
`case`, `patient` (optional), one a channel, and `label`; paths relative to the manifest). Nothing is read but names and
tables: a file that is missing becomes a finding of `segment.data.checks`, so that the other cases can be used.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segment.data.dataset_json import read_dataset_table
from segment.data.manifest import read_manifest
from segment.data.nifti import ENDINGS
from segment.data.scan import Case
from segment.errors import InputError

__all__ = ["Case", "Dataset", "Split", "find_dataset", "find_inputs", "find_label", "split_cases"]

CSV_LABELS = {"lesion": 1}  # a manifest has no place for names; more classes need a dataset.json
_CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")


@dataclass(frozen=True)
class Dataset:
    """A training dataset.

    Attributes:
        root: The dataset's folder, or its CSV manifest.
        cases: In the order of their ids; never empty.
        channel_names: In the order of `Case.image_paths`.
        label_values: Foreground name -> value in the label files, for example {"lesion": 1}; background is left out.
    """

    root: Path
    cases: tuple[Case, ...]
    channel_names: tuple[str, ...]
    label_values: dict[str, int]


@dataclass(frozen=True)
class Split:
    """Case ids of both sides, in the dataset's order, and the seed that they were drawn with."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    seed: int


def find_dataset(root: Path, *, layout: str) -> Dataset:
    """Finds the training cases of a dataset.

    Args:
        root: A folder with dataset.json, or a CSV manifest.
        layout: "nnunet", "csv", or "auto", which takes a file as a manifest and a folder as nnU-Net.

    Raises:
        InputError: The root or one of its parts is missing or broken, or there is no case. Missing images and labels of
            single cases are left to `segment.data.checks`.
    """
    if not os.path.exists(root):
        raise InputError(
            f"dataset {root} does not exist; set data.root to a folder with dataset.json or to a CSV manifest"
        )
    if layout == "csv" or (layout == "auto" and os.path.isfile(root)):
        return _csv_dataset(root)
    return _nnunet_dataset(root)


def _csv_dataset(path: Path) -> Dataset:
    cases, channels = read_manifest(path, with_label=True)
    return Dataset(path, tuple(sorted(cases, key=lambda case: case.case_id)), channels, dict(CSV_LABELS))


def _nnunet_dataset(root: Path) -> Dataset:
    path = root / "dataset.json"
    if not os.path.isfile(path):
        raise InputError(
            f"dataset {root}: expected dataset.json in it (nnU-Net v2), found none; set data.root or data.layout"
        )
    table = read_dataset_table(path)
    ending = table.file_ending
    images, labels = root / "imagesTr", root / "labelsTr"
    ids = sorted(_images_of(images, ending, len(table.channel_names)) | _stems(labels, (ending,)).keys())
    if not ids:
        raise InputError(f"dataset {root}: expected images such as imagesTr/CASE_0000{ending}, found none; add cases")
    for case_id in table.patients:
        if case_id not in ids:
            raise InputError(f"{path}: patients: case {case_id!r} has no files{nearest(case_id, ids)}")
    cases = tuple(
        Case(
            case_id,
            table.patients.get(case_id, case_id),
            tuple(images / f"{case_id}_{channel:04d}{ending}" for channel in range(len(table.channel_names))),
            labels / f"{case_id}{ending}",
        )
        for case_id in ids
    )
    return Dataset(root, cases, table.channel_names, table.label_values)


def _stems(folder: Path, endings: Iterable[str]) -> dict[str, str]:
    """Name without ending -> name, of everything in a folder that is named as a scan (links and folders too)."""
    if not os.path.isdir(folder):
        raise InputError(
            f"{folder}: expected a folder with NIfTI files, found {'a file' if os.path.exists(folder) else 'nothing'}"
        )
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as cause:
        raise InputError(f"{folder}: cannot be read: {cause.strerror or cause}; check its permissions") from cause
    stems: dict[str, str] = {}
    for name in names:
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        if ending is None or name.startswith("."):
            continue
        stem = name.removesuffix(ending)
        if stem in stems:
            raise InputError(f"{folder}: expected one file for {stem}, found {stems[stem]} and {name}; remove one")
        stems[stem] = name
    return stems


def _images_of(folder: Path, ending: str, channels: int) -> set[str]:
    """The case ids of a folder of CASE_0000 files."""
    ids = set()
    for stem, name in _stems(folder, (ending,)).items():
        match = _CHANNEL_FILE.fullmatch(stem)
        if match is None:
            raise InputError(
                f"{folder / name}: expected a name such as CASE_0000{ending}, where 0000 is the channel; rename it"
            )
        if int(match["channel"]) >= channels:
            raise InputError(
                f"{folder / name}: is channel {match['channel']} of case {match['case']}, expected 0000 to "
                f"{channels - 1:04d} ({channels} channels); name it in dataset.json or remove the file"
            )
        ids.add(match["case"])
    return ids


def find_inputs(path: Path, *, channels: int) -> tuple[Case, ...]:
    """Finds the scans to predict.

    Args:
        path: A NIfTI file (one channel only); a folder of CASE_0000.nii.gz files, or of any NIfTI files when `channels`
            is 1 (_0000 is left off when all names end in it); an nnU-Net dataset (imagesTs where it is there, else
            imagesTr); or a CSV manifest (a label column is left aside).
        channels: How many channels the model takes.

    Returns:
        At least one case, in the order of the ids, without labels. Channels that are missing are listed with the path
        where they were expected, so that reading that case fails and the others do not.

    Raises:
        InputError: Nothing is there, or it does not fit the number of channels.
    """
    if not os.path.lexists(path):
        raise InputError(f"input {path} does not exist; give a NIfTI file, a folder or a CSV manifest")
    if path.name.lower().endswith(".csv"):
        cases, names = read_manifest(path, with_label=False)
        if len(names) != channels:
            raise InputError(
                f"{path}: expected {channels} channel columns as the model takes, found {', '.join(names)}"
            )
        return tuple(sorted(cases, key=lambda case: case.case_id))
    if os.path.isdir(path) and not path.name.endswith(ENDINGS):
        return _inputs_of_folder(path, channels)
    if not path.name.endswith(ENDINGS):
        raise InputError(f"input {path}: expected .nii.gz, .nii, .csv or a folder, found a file with another ending")
    if channels != 1:
        raise InputError(
            f"input {path} is one channel, the model takes {channels}; give a folder of CASE_0000.nii.gz files or a CSV"
        )
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    case_id = stem.removesuffix("_0000") or stem
    return (Case(case_id, case_id, (path,), None),)


def _inputs_of_folder(folder: Path, channels: int) -> tuple[Case, ...]:
    if os.path.isfile(folder / "dataset.json"):
        folder = folder / ("imagesTs" if os.path.isdir(folder / "imagesTs") else "imagesTr")
    stems = _stems(folder, ENDINGS)
    if not stems:
        raise InputError(f"input {folder}: expected NIfTI files (.nii.gz or .nii), found none")
    if channels == 1 and not all(stem.endswith("_0000") for stem in stems):
        return tuple(Case(stem, stem, (folder / name,), None) for stem, name in sorted(stems.items()))
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for stem, name in stems.items():
        match = _CHANNEL_FILE.fullmatch(stem)
        number = int(match["channel"]) if match else -1
        if number >= channels:
            raise InputError(
                f"input {folder / name}: is channel {number}, the model takes {channels}: 0000 to {channels - 1:04d}"
            )
        found[match["case"] if match else stem][number] = folder / name
    if all(list(numbers) == [-1] for numbers in found.values()):
        raise InputError(
            f"input {folder}: the model takes {channels} channels, expected CASE_0000.nii.gz, found {name}"
        )
    return tuple(_input_case(folder, case_id, numbers, channels) for case_id, numbers in sorted(found.items()))


def _input_case(folder: Path, case_id: str, found: dict[int, Path], channels: int) -> Case:
    ending = ".nii.gz" if all(path.name.endswith(".nii.gz") for path in found.values()) else ".nii"
    paths = (found.get(channel, folder / f"{case_id}_{channel:04d}{ending}") for channel in range(channels))
    return Case(case_id, case_id, tuple(paths), None)


def find_label(labels: Path, case_id: str) -> Path:
    """The label of a case in a folder, CASE.nii.gz or CASE.nii. Raises InputError when folder or file is missing."""
    for ending in ENDINGS:
        if os.path.lexists(labels / f"{case_id}{ending}"):
            return labels / f"{case_id}{ending}"
    raise InputError(
        f"case {case_id}: expected its label {labels / case_id}.nii.gz, found none"
        f"{nearest(case_id, _stems(labels, ENDINGS))}"
    )


def nearest(name: str, names: Collection[str]) -> str:
    """'; did you mean X?' with the most similar name, or nothing when there are no names."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else ""


def split_cases(
    dataset: Dataset, *, validation_cases: Sequence[str] | None, validation_share: float, seed: int
) -> Split:
    """Divides the cases into training and validation, whole patients to one side.

    Args:
        dataset: With cases of at least two patients.
        validation_cases: The case ids of the validation side; None draws patients.
        validation_share: Share of patients drawn, rounded, at least one and not all; not used when cases are named.
        seed: Patients are drawn in the order of the SHA-256 of seed and patient, so that the draw depends on neither
            the order of the cases nor a library's generator, and that a new patient moves few others.

    Raises:
        InputError: A named case does not exist (names the nearest), a patient would fall on both sides, or a side would
            be empty.
    """
    if validation_cases is None:
        patients = _draw_patients(dataset, validation_share, seed)
    else:
        patients = _named_patients(dataset, validation_cases)
    train = tuple(case.case_id for case in dataset.cases if case.patient_id not in patients)
    validation = tuple(case.case_id for case in dataset.cases if case.patient_id in patients)
    if not train or not validation:
        raise InputError(
            f"data.validation_cases: expected at least one case to train on and one to validate on, found {len(train)} "
            f"and {len(validation)} of {len(dataset.cases)} cases; name other cases"
        )
    return Split(train, validation, seed)


def _draw_patients(dataset: Dataset, share: float, seed: int) -> set[str]:
    patients = {case.patient_id for case in dataset.cases}
    if len(patients) < 2:
        raise InputError(
            f"dataset {dataset.root}: expected at least 2 patients to split, found {len(patients)}; add cases"
        )
    if not 0.0 < share < 1.0:
        raise InputError(
            f"data.validation_share: expected a share above 0 and below 1, found {share:g}, which leaves a side empty"
        )
    order = sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    return set(order[: min(max(round(share * len(order)), 1), len(order) - 1)])


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
