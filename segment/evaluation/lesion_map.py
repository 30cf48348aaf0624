"""The label map of found, missed and false-positive lesions, and its colours for ITK-SNAP and 3D Slicer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from segment.data.scan import Grid, write_mask
from segment.evaluation.lesions import look_up
from segment.evaluation.pairs import LesionPair
from segment.files import write_text

# Value, name, red, green, blue: colours that colour-blind readers can tell apart (Okabe and Ito, 2008), bright on grey.
CLASSES = (
    (1, "found", 86, 180, 233),
    (2, "missed", 213, 94, 0),
    (3, "false-positive", 240, 228, 66),
    (4, "ignored", 160, 160, 160),
)
_FOUND, _MISSED, _FALSE, _IGNORED = (entry[0] for entry in CLASSES)


def lesion_map(pair: LesionPair, shape: Sequence[int]) -> np.ndarray:
    """Uint8 [x, y, z]: label lesions as found, missed or ignored, and false positives where no label lesion is.

    Found and missed follow the one-to-one matching. What a matched prediction covers beyond its lesion stays 0.
    """
    of_gt = np.where(pair.gt_ignored, _IGNORED, np.where(pair.gt_matched(), _FOUND, _MISSED))
    false = ~pair.pred_matched() & ~pair.pred_ignored
    inside = look_up(np.append(0, np.where(false, _FALSE, 0)).astype(np.uint8), pair.pred.labels)
    gt = look_up(np.append(0, of_gt).astype(np.uint8), pair.gt.labels)
    np.copyto(inside, gt, where=gt != 0)
    values = np.zeros(tuple(shape), np.uint8, order="F")  # as files hold it
    values[tuple(slice(first, first + length) for first, length in zip(pair.origin, gt.shape, strict=True))] = inside
    return values


def write_lesion_map(path: Path, values: np.ndarray, grid: Grid) -> None:
    """Writes a lesion map on the grid of its label. Raises InputError when it cannot be written."""
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    # A qform cannot hold shear, so the sform, which holds any affine, is the one that counts.
    header.set_qform(grid.affine, code=1)
    header.set_sform(grid.affine, code=1)
    write_mask(path, values, Grid(grid.shape, np.asarray(header.get_best_affine(), np.float64)), header)


def write_colours(folder: Path) -> None:
    """Writes the names and colours of a lesion map's values beside it, once for each viewer."""
    write_text(folder / "itk-snap-labels.txt", itk_snap_table())
    write_text(folder / "slicer-colours.ctbl", slicer_table())


def itk_snap_table() -> str:
    """A label description file: ITK-SNAP, Segmentation > Import Label Descriptions."""
    lines: list[tuple[Any, ...]] = [(0, 0, 0, 0, 0, 0, 0, '"Clear Label"')]
    lines += [(value, red, green, blue, 1, 1, 1, f'"{name}"') for value, name, red, green, blue in CLASSES]
    rows = "\n".join("{:5d} {:4d} {:4d} {:4d} {:8d} {:2d} {:2d}    {}".format(*line) for line in lines)
    return f"# ITK-SnAP Label Description File\n# IDX -R- -G- -B- -A-- VIS MSH LABEL\n{rows}\n"


def slicer_table() -> str:
    """A colour table: 3D Slicer, Add Data, then choose it as the label map's colour table."""
    rows = "\n".join(f"{value} {name} {red} {green} {blue} 255" for value, name, red, green, blue in CLASSES)
    return f"# Color table file\n0 background 0 0 0 0\n{rows}\n"
