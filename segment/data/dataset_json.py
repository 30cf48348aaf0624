"""The `dataset.json` of nnU-Net v2 and of the Medical Segmentation Decathlon (MSD): channels, labels, patients.

nnU-Net v2 says `channel_names`, `labels` by name and `file_ending`; MSD says `modality`, `labels` by value, and lists
its files under `training` and `test`. The key `patients` is ours, and optional in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segment.data.nifti import ENDINGS
from segment.errors import InputError
from segment.files import read_json


@dataclass(frozen=True)
class DatasetTable:
    """What `dataset.json` says.

    Attributes:
        channel_names: In the order of their numbers 0, 1, ...
        label_values: Foreground name -> value from 1 to 255, in the order of the values; never empty.
        file_ending: ".nii.gz" or ".nii"; "" in the MSD form, which lists its files.
        patients: Case -> patient, for the cases that the optional key `patients` names; else empty.
        training: Image and label of each case, as the MSD form lists them; else empty.
        test: Images to predict, as the MSD form lists them; else empty.
    """

    channel_names: tuple[str, ...]
    label_values: dict[str, int]
    file_ending: str
    patients: dict[str, str]
    training: tuple[tuple[str, str], ...] = ()
    test: tuple[str, ...] = ()


def is_msd_form(path: Path) -> bool:
    """Whether a dataset.json has MSD's keys (`modality` or `training`) and not nnU-Net v2's (`channel_names`)."""
    values = read_json(path)
    return isinstance(values, dict) and bool({"modality", "training"} & set(values)) and "channel_names" not in values


def named_channels(path: Path) -> tuple[str, ...]:
    """The channels that a dataset.json of nnU-Net v2 names; none where it names none. Raises InputError as JSON."""
    values = read_json(path)
    names = values.get("channel_names") if isinstance(values, dict) else None
    return _channel_names(names, path, "channel_names") if names else ()


def read_dataset_table(path: Path, *, msd: bool = False) -> DatasetTable:
    """Reads and checks `dataset.json`; keys that are not used here are left aside.

    Args:
        path: The file.
        msd: Expect MSD's form instead of nnU-Net v2's.

    Raises:
        InputError: It cannot be read, or one of its keys is missing or not as expected; names the key.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        needed = "modality, labels and training" if msd else "channel_names, labels and file_ending"
        raise InputError(f"{path}: expected an object with {needed}, found {type(values).__name__}")
    if msd:
        return _msd_table(values, path)
    ending = values.get("file_ending")
    if ending not in ENDINGS:
        raise InputError(f"{path}: file_ending: expected '.nii.gz' or '.nii', found {ending!r}")
    return DatasetTable(
        _channel_names(values.get("channel_names"), path, "channel_names"),
        _label_values(values.get("labels"), path),
        ending,
        _patients(values.get("patients"), path),
    )


def _msd_table(values: dict[str, Any], path: Path) -> DatasetTable:
    labels = values.get("labels")
    if isinstance(labels, dict) and labels and all(str(key).isdecimal() for key in labels):
        labels = values_by_name(labels, path)
    training = values.get("training")
    if not isinstance(training, list) or not training:
        raise InputError(f'{path}: training: expected a list of {{"image": ..., "label": ...}}, found {training!r:.80}')
    pairs = []
    for entry in training:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
            raise InputError(f'{path}: training: expected {{"image": path, "label": path}}, found {entry!r:.80}')
        pairs.append((entry["image"], entry["label"]))
    test = values.get("test") or []
    images = []
    for entry in test if isinstance(test, list) else [test]:
        image = entry.get("image") if isinstance(entry, dict) else entry
        if not isinstance(image, str):
            raise InputError(f"{path}: test: expected a list of paths, found {entry!r:.80}")
        images.append(image)
    return DatasetTable(
        _channel_names(values.get("modality"), path, "modality"),
        _label_values(labels, path),
        "",
        _patients(values.get("patients"), path),
        tuple(pairs),
        tuple(images),
    )


def values_by_name(labels: dict[str, Any], path: Path) -> dict[str, int]:
    """MSD's names by value, turned round. Raises InputError where two values have one name."""
    names = [str(name) for name in labels.values()]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: labels: expected names that differ, found {', '.join(names)}")
    return {name: int(value) for value, name in zip(labels, names, strict=True)}


def _channel_names(values: object, table: Path, key: str) -> tuple[str, ...]:
    if not isinstance(values, dict) or not values:
        raise InputError(
            f'{table}: {key}: expected for example {{"0": "FLAIR"}} '
            f"({'MSD' if key == 'modality' else 'nnU-Net v2'}), found {values!r}"
        )
    numbers = [str(number) for number in range(len(values))]
    if set(values) != set(numbers):
        raise InputError(f"{table}: {key}: expected the keys {', '.join(numbers)}, found {', '.join(values)}")
    names = tuple(str(values[number]) for number in numbers)
    if len(set(names)) < len(names):
        raise InputError(f"{table}: {key}: expected names that differ, found {', '.join(names)}")
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
