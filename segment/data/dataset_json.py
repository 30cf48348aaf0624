"""The `dataset.json` of the nnU-Net v2 layout: channels, labels, file ending, and (ours, optional) patients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segment.data.nifti import ENDINGS
from segment.errors import InputError
from segment.files import read_json


@dataclass(frozen=True)
class DatasetTable:
    """What `dataset.json` says.

    Attributes:
        channel_names: In the order of their numbers 0, 1, ...
        label_values: Foreground name -> value from 1 to 255, in the order of the values; never empty.
        file_ending: ".nii.gz" or ".nii".
        patients: Case -> patient, for the cases that the optional key `patients` names; else empty.
    """

    channel_names: tuple[str, ...]
    label_values: dict[str, int]
    file_ending: str
    patients: dict[str, str]


def read_dataset_table(path: Path) -> DatasetTable:
    """Reads and checks `dataset.json`; keys that are not used here are left aside.

    Raises:
        InputError: It cannot be read, or one of its keys is missing or not as expected; names the key.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: expected an object with channel_names, labels and file_ending, found {type(values).__name__}"
        )
    ending = values.get("file_ending")
    if ending not in ENDINGS:
        raise InputError(f"{path}: file_ending: expected '.nii.gz' or '.nii', found {ending!r}")
    return DatasetTable(
        _channel_names(values.get("channel_names"), path),
        _label_values(values.get("labels"), path),
        ending,
        _patients(values.get("patients"), path),
    )


def _channel_names(values: object, table: Path) -> tuple[str, ...]:
    if not isinstance(values, dict) or not values:
        raise InputError(
            f'{table}: channel_names: expected for example {{"0": "FLAIR"}} (nnU-Net v2), found {values!r}'
        )
    numbers = [str(number) for number in range(len(values))]
    if set(values) != set(numbers):
        raise InputError(f"{table}: channel_names: expected the keys {', '.join(numbers)}, found {', '.join(values)}")
    names = tuple(str(values[number]) for number in numbers)
    if len(set(names)) < len(names):
        raise InputError(f"{table}: channel_names: expected names that differ, found {', '.join(names)}")
    return names


def _label_values(values: object, table: Path) -> dict[str, int]:
    if not isinstance(values, dict):
        raise InputError(f'{table}: labels: expected for example {{"background": 0, "lesion": 1}}, found {values!r}')
    for name, value in values.items():
        if isinstance(value, list):
            raise InputError(
                f"{table}: labels: {name!r} is a region of several values {value}, which is not supported; "
                "give each name one value"
            )
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 255:
            raise InputError(f"{table}: labels: {name!r}: expected an integer from 0 to 255, found {value!r}")
    if "ignore" in values:
        raise InputError(f"{table}: labels: 'ignore' is not supported; relabel those voxels and remove it")
    if len(set(values.values())) < len(values):
        raise InputError(f"{table}: labels: expected values that differ, found {values}")
    foreground = {str(name): value for name, value in values.items() if value != 0}
    if not foreground:
        raise InputError(f"{table}: labels: expected at least one value above 0, found {values}")
    return dict(sorted(foreground.items(), key=lambda item: item[1]))


def _patients(values: object, table: Path) -> dict[str, str]:
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(patient, str) and patient for patient in values.values()):
        raise InputError(
            f'{table}: patients: expected a name for each case, for example {{"case1": "patient1"}}, found {values!r}'
        )
    return values
