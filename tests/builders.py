"""Tiny NIfTI files and datasets for tests. Not a test module: `from builders import tiny_dataset`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (8, 7, 6)
# 1 x 1 x 2 mm, first axis flipped, far from the origin, as scanners write it.
AFFINE = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Writes an array through nibabel (qform and sform set to the affine) and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def oblique(degrees: float, spacing: tuple[float, float, float], origin: tuple[float, float, float]) -> np.ndarray:
    """An affine that turns about x, then y, by the same angle."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return nib.affines.from_matvec(about_y @ about_x @ np.diag(spacing), origin)


def scan_file(path: Path, affine: np.ndarray = AFFINE) -> Path:
    """An int16 scan of the values 0 to 335, and its path."""
    return write_nifti(path, np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine)


def write_case(
    folder: Path, case_id: str, image: np.ndarray, label: np.ndarray | None, affine: np.ndarray = AFFINE
) -> None:
    """Adds a case to the nnU-Net dataset in `folder`.

    Args:
        image: [x, y, z, channels], or [x, y, z] for one channel.
        label: [x, y, z], or None for no label file.
    """
    channels = image[..., None] if image.ndim == 3 else image
    for channel in range(channels.shape[-1]):
        write_nifti(folder / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz", channels[..., channel], affine)
    (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
    if label is not None:
        write_nifti(folder / "labelsTr" / f"{case_id}.nii.gz", label, affine)


def write_dataset_json(folder: Path, *, channels: Sequence[str] = ("FLAIR",), **keys: object) -> Path:
    """Writes dataset.json with one class, `lesion`: 1. Further keys replace or add; a value of None removes."""
    values: dict[str, object] = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".nii.gz",
    }
    values.update(keys)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.json"
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}), encoding="utf-8")
    return path


def tiny_dataset(
    folder: Path,
    *,
    cases: int = 3,
    channels: Sequence[str] = ("FLAIR",),
    shape: tuple[int, int, int] = SHAPE,
    affine: np.ndarray = AFFINE,
    patients: Mapping[str, str] | None = None,
) -> Path:
    """An nnU-Net dataset of cases `case0`, `case1`, ... in `folder`, which is returned.

    Images are float32 noise around 100, different in each case and channel; each label is one lesion of 2x2x2 voxels
    with its first corner at (1, 1, 1), 50 brighter in every channel.
    """
    write_dataset_json(folder, channels=channels, patients=None if patients is None else dict(patients))
    for index in range(cases):
        rng = np.random.default_rng([7, index])
        label = np.zeros(shape, np.uint8)
        label[1:3, 1:3, 1:3] = 1
        image = rng.normal(100, 10, (*shape, len(channels))) + 50 * label[..., None]
        write_case(folder, f"case{index}", image.astype(np.float32), label, affine)
    return folder
