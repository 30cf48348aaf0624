"""Plans, scans and prepared cases for the tests of the data rooms. Not a test module."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from segment.data.cases import Case
from segment.data.geometry import Placement
from segment.data.lesion_table import LesionTable, find_lesions
from segment.data.planning import Plan
from segment.data.preprocessing import PreparedCase
from segment.data.scan import Grid, Scan


def make_test_plan(
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    patch_size: tuple[int, int, int] = (8, 8, 8),
    channels: int = 1,
    normalization: str = "zscore",
    dimensions: int = 3,
    label_values: dict[str, int] | None = None,
    slices: int = 1,
) -> Plan:
    """A plan of two levels with stride 2."""
    return Plan(
        channel_names=tuple(f"channel{index}" for index in range(channels)),
        label_values=label_values or {"lesion": 1},
        spacing_mm=spacing_mm,
        normalization=normalization,
        patch_size=patch_size,
        filters=(4, 8),
        strides=((2,) * dimensions,),
        kernels=((3,) * dimensions,) * 2,
        residual=False,
        deep_supervision=False,
        foreground_share=0.01,
        slices=slices,
    )


def make_scan(image: np.ndarray, affine: np.ndarray, label: np.ndarray | None = None) -> Scan:
    """A scan in memory from [x, y, z] or [x, y, z, channels]."""
    channels = (image[..., None] if image.ndim == 3 else image).astype(np.float32)
    x, y, z = channels.shape[:3]
    return Scan("case0", channels, label, Grid((x, y, z), np.asarray(affine, float)), nib.Nifti1Header())


def axis_orders() -> list[np.ndarray]:
    """All 48 ways of permuting and flipping three axes, as 4x4 matrices."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((4, 4))
            matrix[3, 3] = 1
            for axis, (target, sign) in enumerate(zip(order, signs, strict=True)):
                matrix[target, axis] = sign
            found.append(matrix)
    return found


def store_case(folder: Path, image: np.ndarray, label: np.ndarray, *, values: Sequence[int] = (1,)) -> PreparedCase:
    """A prepared case of 1 mm voxels from arrays that are on the network's grid already."""
    folder.mkdir(parents=True)
    x, y, z = label.shape
    value, box, offset, voxels = find_lesions(label, values)
    for name, array in (("image", image.astype(np.float32)), ("label", label.astype(np.uint8)), ("voxels", voxels)):
        np.save(folder / f"{name}.npy", array)
    table = LesionTable(value, np.diff(offset).astype(float), box, offset, folder / "voxels.npy")
    placement = Placement(Grid((x, y, z), np.eye(4)), ((0, x), (0, y), (0, z)), (x, y, z))
    channels = 1 if image.ndim == 3 else image.shape[-1]
    case = Case(folder.name, folder.name, (folder / "image.npy",) * channels, None)
    return PreparedCase(case, folder / "image.npy", folder / "label.npy", table, placement, (x, y, z))
