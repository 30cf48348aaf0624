"""Which training cases a dataset holds, and which channels and labels they have.

Layouts: nnU-Net v2 (`dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`), the Medical Segmentation
Decathlon (`dataset.json` that lists its files, 4D with the channels last), BIDS, and a CSV manifest (columns `case`,
`patient` (optional), one a channel, and `label`; paths relative to the manifest). Nothing is read but names and tables:
a file that is missing becomes a finding of `segment.data.checks`, so that the other cases can be used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from segment.config_data import BidsConfig
from segment.data.bids import bids_cases, is_bids
from segment.data.dataset_json import is_msd_form, read_dataset_table
from segment.data.folder_names import CHANNEL_FILE, nearest, stems
from segment.data.inputs import find_inputs
from segment.data.manifest import read_manifest
from segment.data.msd import msd_cases
from segment.data.nifti import ENDINGS
from segment.data.scan import Case
from segment.errors import InputError

__all__ = ["Case", "Dataset", "find_dataset", "find_inputs"]

# A manifest and BIDS have no place for names of classes; more classes need a dataset.json.
ONE_CLASS = {"lesion": 1}


@dataclass(frozen=True)
class Dataset:
    """A training dataset.

    Attributes:
        root: The dataset's folder, or its CSV manifest.
        cases: In the order of their ids; never empty.
        channel_names: In the order of `Case.image_paths`.
        label_values: Foreground name -> value in the label files, for example {"lesion": 1}; background is left out.
        layout: "nnunet", "msd", "bids" or "csv".
    """

    root: Path
    cases: tuple[Case, ...]
    channel_names: tuple[str, ...]
    label_values: dict[str, int]
    layout: str = "nnunet"


def find_dataset(root: Path, *, layout: str, bids: BidsConfig | None = None) -> Dataset:
    """Finds the training cases of a dataset.

    Args:
        root: A folder with dataset.json (or that file), a BIDS folder, or a CSV manifest.
        layout: "nnunet", "msd", "bids", "csv", or "auto", which tells them apart: a file is a manifest, a folder with
            dataset.json is of the form that this has, and one with sub-* folders is BIDS.
        bids: Which files a BIDS dataset is made of; None takes the defaults.

    Raises:
        InputError: The root or one of its parts is missing or broken, or there is no case. Missing images and labels of
            single cases are left to `segment.data.checks`.
    """
    if not os.path.exists(root):
        raise InputError(
            f"dataset {root} does not exist; give a folder with dataset.json, a BIDS folder or a CSV manifest"
        )
    if root.name == "dataset.json" and layout != "csv":
        root = root.parent
    found = _layout_of(root) if layout == "auto" else layout
    if found == "csv":
        cases, channels = read_manifest(root, with_label=True)
        return Dataset(root, tuple(sorted(cases, key=lambda case: case.case_id)), channels, dict(ONE_CLASS), "csv")
    if found == "bids":
        own, channels = bids_cases(root, bids or BidsConfig())
        return Dataset(root, own, channels, dict(ONE_CLASS), "bids")
    if not os.path.isfile(root / "dataset.json"):
        raise InputError(f"dataset {root}: expected dataset.json in it (data.layout is {found}), found none")
    return _msd_dataset(root) if found == "msd" else _nnunet_dataset(root)


def _layout_of(root: Path) -> str:
    table = root / "dataset.json"
    if os.path.isfile(root):
        if root.name.endswith((*ENDINGS, ".json")):
            raise InputError(
                f"dataset {root}: expected a folder or a CSV manifest, found another file; give its folder"
            )
        return "csv"
    if os.path.isfile(table):
        return "msd" if is_msd_form(table) else "nnunet"
    if is_bids(root):
        return "bids"
    raise InputError(
        f"dataset {root}: expected dataset.json in it (nnU-Net v2 or MSD) or sub-* folders (BIDS), found neither; "
        "scans without labels are for segment infer"
    )


def _msd_dataset(root: Path) -> Dataset:
    table = read_dataset_table(root / "dataset.json", msd=True)
    return Dataset(root, msd_cases(root, table, test=False), table.channel_names, table.label_values, "msd")


def _nnunet_dataset(root: Path) -> Dataset:
    path = root / "dataset.json"
    table = read_dataset_table(path)
    ending = table.file_ending
    images, labels = root / "imagesTr", root / "labelsTr"
    ids = sorted(_images_of(images, ending, len(table.channel_names)) | stems(labels, (ending,)).keys())
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


def _images_of(folder: Path, ending: str, channels: int) -> set[str]:
    """The case ids of a folder of CASE_0000 files."""
    ids = set()
    for stem, name in stems(folder, (ending,)).items():
        match = CHANNEL_FILE.fullmatch(stem)
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
