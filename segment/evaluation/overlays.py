"""Pictures of single slices with both outlines drawn in: a validation case over the steps of a training run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from nibabel import orientations

from segment.evaluation.drawing import encode_png
from segment.evaluation.pictures import PLANES, CasePictures, content_box, grey_image, grey_window

# The colours of the report's outlines (Okabe and Ito, 2008): the label and the prediction, as in page.css.
LABEL_RGB, PREDICTION_RGB = (86, 180, 233), (255, 176, 0)
SLICES = "slices"  # folder in a run folder
_NAME = re.compile(r"step_(\d+)_(.+)\.png", re.DOTALL)
_DASH = 3  # pixels on and off in the prediction's outline, so that both show where they run together


def overlay_rgb(pictures: CasePictures, *, pixels: int) -> np.ndarray:
    """The slice that holds the most of the label, with the outlines of label (solid) and prediction (dashed).

    The slice depends on the label alone, so that the pictures of a case can be compared over the steps of a run; a case
    without any label shows its middle. Axial, in the radiological convention; a 2D image shows its own plane. The
    scan's empty border is cut off, with what a prediction may have marked out there.

    Args:
        pictures: Image, masks and grid of the case; any value above 0 is foreground.
        pixels: The longest side is enlarged by whole factors to about so many pixels.

    Returns:
        uint8 [rows, columns, 3], distances true to the nearest pixel.
    """
    turn = orientations.io_orientation(pictures.grid.affine)
    image, label, prediction = (
        orientations.apply_orientation(array, turn) for array in (pictures.image, pictures.label, pictures.prediction)
    )
    spacing = np.asarray(pictures.grid.spacing_mm)[np.argsort(turn[:, 0])]
    normal, across, up = _plane(image.shape)
    held = (label > 0).sum(axis=(across, up))
    index: list[int | slice] = [slice(*limits) for limits in content_box(image, label, label)]
    index[normal] = int(held.argmax()) if held.any() else image.shape[normal] // 2
    grey, label_slice, prediction_slice = (
        # [across, up] -> rows from the top down, columns from the positive end (right, front) on.
        array[tuple(index)].T[::-1, ::-1]
        for array in (image, label > 0, prediction > 0)
    )
    factors = _factors(grey.shape, (spacing[up], spacing[across]), pixels)
    grey, label_slice, prediction_slice = (
        array.repeat(factors[0], axis=0).repeat(factors[1], axis=1) for array in (grey, label_slice, prediction_slice)
    )
    picture = np.repeat(grey_image(grey, *grey_window(image))[..., None], 3, axis=2)
    picture[_border(label_slice)] = LABEL_RGB
    rows, columns = np.indices(grey.shape)
    picture[_border(prediction_slice) & ((rows + columns) // _DASH % 2 == 0)] = PREDICTION_RGB
    return picture


def overlay_png(pictures: CasePictures, *, pixels: int) -> bytes:
    """`overlay_rgb` as the bytes of a PNG; the same case is the same bytes."""
    return encode_png(overlay_rgb(pictures, pixels=pixels))


def slice_path(run_dir: Path, step: int, case_id: str) -> Path:
    """Where the picture of a case at a step is kept, for the run's page."""
    return run_dir / SLICES / f"step_{step:07d}_{case_id}.png"


def find_slices(run_dir: Path) -> dict[str, dict[int, Path]]:
    """The pictures of a run folder by case and step, both rising; empty where it has none."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((run_dir / SLICES).glob("step_*.png")):
        match = _NAME.fullmatch(path.name)
        if match:
            found.setdefault(match[2], {})[int(match[1])] = path
    return {case_id: dict(sorted(found[case_id].items())) for case_id in sorted(found)}


def _plane(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The axes across the picture's plane, along it and up it: axial, or that of a 2D image."""
    flat = [axis for axis, size in enumerate(shape) if size == 1]
    return next((axes for axes in PLANES.values() if axes[0] in flat[:1]), PLANES["axial"])


def _factors(shape: tuple[int, ...], spacing: tuple[float, float], pixels: int) -> tuple[int, int]:
    """How often each row and each column is repeated."""
    finest = min(spacing)
    sides = [size * step / finest for size, step in zip(shape, spacing, strict=True)]
    scale = max(pixels / max(sides), 1.0)
    rows, columns = (max(round(scale * step / finest), 1) for step in spacing)
    return rows, columns


def _border(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask with a neighbour in the row or column that is outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
