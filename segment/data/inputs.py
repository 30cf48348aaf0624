"""The scans to predict: a file, a folder, a dataset in any of the layouts, or a CSV manifest."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from segment.config_data import Entities
from segment.data.bids import bids_inputs, is_bids
from segment.data.dataset_json import is_msd_form, named_channels, read_dataset_table
from segment.data.folder_names import CHANNEL_FILE, scan_stem, stems
from segment.data.manifest import read_manifest
from segment.data.msd import msd_cases
from segment.data.nifti import ENDINGS, ScanError, read_shape
from segment.data.scan import Case
from segment.errors import InputError


def find_inputs(path: Path, *, channels: Sequence[str], bids: Mapping[str, Entities] | None = None) -> tuple[Case, ...]:
    """Finds the scans to predict.

    Args:
        path: A NIfTI file (of one channel, or 4D with all channels last); a folder of CASE_0000.nii.gz files, of such
            4D files, or of any NIfTI files when there is one channel (_0000 is left off when all names end in it); an
            nnU-Net dataset (imagesTs where it is there, else imagesTr); an MSD one (its list `test`, else `training`);
            a BIDS one; or a CSV manifest (a label column is left aside).
        channels: The names of the channels that the model takes. Columns of a manifest are brought into their order;
            where a dataset.json names channels they must be these; files alone are taken to be in this order.
        bids: A filter of suffix and entities for each channel, for a BIDS dataset.

    Returns:
        At least one case, in the order of the ids, without labels. Channels that are missing are listed with the path
        where they were expected, so that reading that case fails and the others do not.

    Raises:
        InputError: Nothing is there, or it does not fit the channels.
    """
    if not os.path.lexists(path):
        raise InputError(f"input {path} does not exist; give a NIfTI file, a folder or a CSV manifest")
    if path.name.lower().endswith(".csv"):
        cases, names = read_manifest(path, with_label=False)
        order = _order(names, channels, path)
        cases = [replace(case, image_paths=tuple(case.image_paths[index] for index in order)) for case in cases]
        return tuple(sorted(cases, key=lambda case: case.case_id))
    if os.path.isdir(path) and not path.name.endswith(ENDINGS):
        return _inputs_of_folder(path, channels, bids)
    if path.name == "dataset.json":
        return _inputs_of_folder(path.parent, channels, bids)
    return _input_of_file(path, len(channels))


def _order(found: Sequence[str], expected: Sequence[str], where: Path) -> list[int]:
    """At which place of `found` each expected channel stands, whatever the case of the letters."""
    names = [name.casefold() for name in found]
    wanted = [name.casefold() for name in expected]
    if sorted(names) != sorted(wanted):
        raise InputError(
            f"{where}: expected the channels {', '.join(expected)} as the model takes, found {', '.join(found)}"
        )
    return [names.index(name) for name in wanted]


def _input_of_file(path: Path, channels: int) -> tuple[Case, ...]:
    if not path.name.endswith(ENDINGS):
        raise InputError(f"input {path}: expected .nii.gz, .nii, .csv or a folder, found a file with another ending")
    stem = scan_stem(path.name)
    if channels == 1:
        case_id = stem.removesuffix("_0000") or stem
        return (Case(case_id, case_id, (path,), None),)
    if not _is_4d(path):
        raise InputError(
            f"input {path} is one channel, the model takes {channels}; give a folder of CASE_0000.nii.gz files, a 4D "
            "file or a CSV"
        )
    return (_case_of_4d(path, channels),)


def _is_4d(path: Path) -> bool:
    """Whether the header can be read and gives several volumes."""
    try:
        return any(length > 1 for length in read_shape(path)[3:])
    except ScanError:
        return False


def _case_of_4d(path: Path, channels: int) -> Case:
    case_id = scan_stem(path.name)
    return Case(case_id, case_id, (path,) * channels, None, tuple(range(channels)))


def _inputs_of_folder(folder: Path, names: Sequence[str], bids: Mapping[str, Entities] | None) -> tuple[Case, ...]:
    table, channels = folder / "dataset.json", len(names)
    if os.path.isfile(table):
        if is_msd_form(table):
            return _inputs_of_msd(folder, names)
        _require_order(named_channels(table), names, table)
        folder = folder / ("imagesTs" if os.path.isdir(folder / "imagesTs") else "imagesTr")
    elif bids is not None and is_bids(folder):
        return bids_inputs(folder, bids)
    found_stems = stems(folder)
    if not found_stems:
        raise InputError(f"input {folder}: expected NIfTI files (.nii.gz or .nii), found none")
    if channels == 1 and not all(stem.endswith("_0000") for stem in found_stems):
        return tuple(Case(stem, stem, (folder / name,), None) for stem, name in sorted(found_stems.items()))
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for stem, name in found_stems.items():
        match = CHANNEL_FILE.fullmatch(stem)
        number = int(match["channel"]) if match else -1
        if number >= channels:
            raise InputError(
                f"input {folder / name}: is channel {number}, the model takes {channels}: 0000 to {channels - 1:04d}"
            )
        found[match["case"] if match else stem][number] = folder / name
    if all(list(numbers) == [-1] for numbers in found.values()):
        files = [folder / name for _, name in sorted(found_stems.items())]
        if any(_is_4d(file) for file in files):
            return tuple(_case_of_4d(file, channels) for file in files)
        raise InputError(
            f"input {folder}: the model takes {channels} channels, expected CASE_0000.nii.gz, found {name}"
        )
    return tuple(_input_case(folder, case_id, numbers, channels) for case_id, numbers in sorted(found.items()))


def _require_order(found: Sequence[str], expected: Sequence[str], where: Path) -> None:
    """Files are numbered, so channels that a table names otherwise would be taken for one another."""
    if found and _order(found, expected, where) != list(range(len(expected))):
        raise InputError(
            f"{where}: expected the channels in the order {', '.join(expected)} as the model takes, found "
            f"{', '.join(found)}; give a CSV manifest, whose columns may stand in any order"
        )


def _inputs_of_msd(folder: Path, names: Sequence[str]) -> tuple[Case, ...]:
    table = read_dataset_table(folder / "dataset.json", msd=True)
    _require_order(table.channel_names, names, folder / "dataset.json")
    cases = msd_cases(folder, table, test=bool(table.test))
    return tuple(Case(case.case_id, case.patient_id, case.image_paths, None, case.image_volumes) for case in cases)


def _input_case(folder: Path, case_id: str, found: dict[int, Path], channels: int) -> Case:
    ending = ".nii.gz" if all(path.name.endswith(".nii.gz") for path in found.values()) else ".nii"
    paths = (found.get(channel, folder / f"{case_id}_{channel:04d}{ending}") for channel in range(channels))
    return Case(case_id, case_id, tuple(paths), None)
