"""Cases that a dataset.json of the Medical Segmentation Decathlon lists, with one 4D file or one 3D file a channel."""

from __future__ import annotations

import os
from pathlib import Path

from segment.data.dataset_json import DatasetTable
from segment.data.folder_names import nearest, scan_stem
from segment.data.nifti import ENDINGS
from segment.data.scan import Case
from segment.errors import InputError


def msd_cases(root: Path, table: DatasetTable, *, test: bool) -> tuple[Case, ...]:
    """The listed cases in the order of their ids.

    A listed image that is there is one file of all channels (channels last, 4D; 3D where there is one channel). Where
    CASE_0000 stands in its place, as nnU-Net v1 wrote it, there is one file a channel. Files that are missing are left
    to `segment.data.checks`.

    Args:
        root: The folder of dataset.json; listed paths are relative to it.
        table: With `training` and `test`.
        test: Give the test images, without labels, instead of the training cases.

    Raises:
        InputError: A listed name is no NIfTI file, stands twice, or a patient is named for a case that is not listed.
    """
    json_path = root / "dataset.json"
    listed: list[tuple[str, str | None]] = [(image, None) for image in table.test] if test else [*table.training]
    cases: dict[str, Case] = {}
    for image, label in listed:
        path = root / image
        if not path.name.endswith(ENDINGS):
            raise InputError(f"{json_path}: expected a listed image that ends in .nii.gz or .nii, found {image!r}")
        case_id = scan_stem(path.name)
        if case_id in cases:
            raise InputError(f"{json_path}: case {case_id!r} stands twice; case ids must differ")
        patient = table.patients.get(case_id, case_id)
        label_path = None if label is None else root / label
        paths, volumes = channel_files(path, len(table.channel_names))
        cases[case_id] = Case(case_id, patient, paths, label_path, volumes)
    for case_id in [] if test else table.patients:
        if case_id not in cases:
            raise InputError(f"{json_path}: patients: case {case_id!r} is not listed{nearest(case_id, list(cases))}")
    return tuple(cases[case_id] for case_id in sorted(cases))


def channel_files(path: Path, channels: int) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    """`Case.image_paths` and `Case.image_volumes` of a listed image: one 4D file, or one 3D file a channel."""
    stem = scan_stem(path.name)
    ending = path.name.removeprefix(stem)
    apart = tuple(path.with_name(f"{stem}_{channel:04d}{ending}") for channel in range(channels))
    if not os.path.lexists(path) and any(os.path.lexists(file) for file in apart):
        return apart, ()
    return (path,) * channels, tuple(range(channels)) if channels > 1 else ()
