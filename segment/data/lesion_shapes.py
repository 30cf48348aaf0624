"""Lesion shapes from a folder of masks that need no scans, for copy-paste."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segment.data.geometry import canonical_spacing, network_shape, resample_nearest
from segment.data.lesion_table import find_lesions
from segment.data.nifti import ENDINGS
from segment.data.planning import Plan
from segment.data.scan import read_mask, to_canonical
from segment.errors import InputError
from segment.progress import in_threads


@dataclass(frozen=True, eq=False)
class LesionShape:
    """One lesion without a scan.

    Attributes:
        voxels: int16 [voxels, 3] on the network's spacing, from 0 along each axis.
        value: Label value of its class.
        volume_mm3: On the network's spacing.
    """

    voxels: np.ndarray
    value: int
    volume_mm3: float


def read_shapes(folder: Path, plan: Plan, *, workers: int) -> list[LesionShape]:
    """Every lesion (26-connected component of a class) of every mask in a folder, on the network's spacing.

    Args:
        folder: Holds .nii or .nii.gz masks on any grids.
        plan: Spacing and label values.
        workers: Threads; each holds one mask in memory.

    Returns:
        The lesions in order of the file names; 6 bytes a voxel.

    Raises:
        InputError: The folder holds no NIfTI file, a file cannot be read, a mask holds a value that is no class of the
            plan, or no mask holds a lesion; names the folder or file.
    """
    found = in_threads(
        "Reading lesion shapes", lambda path: _shapes_of(path, plan), shape_files(folder), workers=workers
    )
    shapes = [shape for part in found for shape in part]
    if not shapes:
        raise InputError(f"augmentation.copy_paste_shapes: expected lesions, found empty masks only in {folder}")
    return shapes


def shape_files(folder: Path) -> list[Path]:
    """The .nii and .nii.gz files of a folder, sorted. Raises InputError where it holds none."""
    paths = sorted(path for path in folder.glob("*") if path.name.endswith(ENDINGS))
    if not paths:
        raise InputError(
            f"augmentation.copy_paste_shapes: expected a folder with .nii or .nii.gz masks, found {folder}"
        )
    return paths


def _shapes_of(path: Path, plan: Plan) -> list[LesionShape]:
    mask, grid = read_mask(path)
    values = tuple(plan.label_values.values())
    unknown = sorted(set(np.unique(mask).tolist()) - {0, *values})
    if unknown:
        raise InputError(
            f"{path}: expected 0 and the label values {list(values)} of the dataset, found {unknown[0]}; "
            "change the masks in augmentation.copy_paste_shapes"
        )
    canonical = to_canonical(mask, grid.affine)
    shape = network_shape(canonical.shape, canonical_spacing(grid), plan.spacing_mm)
    value, box, offset, voxels = find_lesions(np.ascontiguousarray(resample_nearest(canonical, shape)), values)
    voxel_mm3 = float(np.prod(plan.spacing_mm))
    lesions = []
    for number in range(len(value)):
        own = np.stack(np.unravel_index(voxels[offset[number] : offset[number + 1]], shape), axis=1)
        own = (own - box[number, :, 0]).astype(np.int16)
        lesions.append(LesionShape(own, int(value[number]), len(own) * voxel_mm3))
    return lesions
