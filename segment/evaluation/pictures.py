"""Three orthogonal views of a case with the outlines of its label and prediction, drawn right for any affine.

Views are in the radiological convention: the patient's right is on the picture's left, the front is up in axial
views and left in sagittal ones. Distances are true: a voxel of 1 x 1 x 3 mm is three times as high as it is wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from nibabel import orientations

from segment.data.scan import Grid
from segment.evaluation.drawing import encode_png, outline

# The grey window, in percentiles of the voxels that differ from the background.
WINDOW_PERCENTILES = (1.0, 99.8)
GREY_LEVELS = 64
# Plane -> (axis across it, axis from right to left, axis from bottom to top) of the canonical (RAS) grid.
PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
_POSITIVE, _NEGATIVE = "RAS", "LPI"
# A direction names a second letter from about 20 degrees off its main axis, as viewers do for oblique slices.
_OBLIQUE = 0.35
_WINDOW_SAMPLES = 500_000
_MARGIN = 4  # voxels kept around the content of whole slices


@dataclass(frozen=True, eq=False)
class CasePictures:
    """What a case's pictures are drawn from, on the label's own grid.

    Attributes:
        image: float32 [x, y, z], one channel in its file's units; NaN is drawn black.
        label: uint8 [x, y, z], 0 is background.
        prediction: uint8 [x, y, z], 0 is background.
        grid: the grid of all three.
    """

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    grid: Grid


@dataclass(frozen=True)
class Spot:
    """What a view goes through.

    Attributes:
        point_mm: world coordinates, such as a lesion's centroid.
        side: `gt` or `pred`: the mask whose voxel nearest to the point is taken, for a bent lesion's centroid may lie
            outside it.
        bbox: x0, y0, z0, x1, y1, z1 in voxels of the file, one past the last: where that voxel is looked for; None
            takes the point itself.
    """

    point_mm: tuple[float, float, float]
    side: Literal["gt", "pred"]
    bbox: tuple[int, ...] | None


@dataclass(frozen=True)
class View:
    """One slice ready to be placed in a page.

    Attributes:
        plane: axial, coronal or sagittal.
        png: the grey slice, bytes of a PNG; its pixels may be fewer than the voxels.
        columns, rows: voxels across and down, the units of the two paths.
        png_columns, png_rows: voxels that the PNG covers: whole blocks, so up to a block more than the slice.
        width_mm, height_mm: the size of the slice.
        label_path, prediction_path: outlines as SVG path data in voxel units, "" where there is none.
        left, right, top, bottom: orientation letters at the picture's sides, such as "R" or, oblique, "RA".
        focus_mm: where the lesion is, in mm from the picture's top left corner.
    """

    plane: str
    png: bytes
    columns: int
    rows: int
    png_columns: int
    png_rows: int
    width_mm: float
    height_mm: float
    label_path: str
    prediction_path: str
    left: str
    right: str
    top: str
    bottom: str
    focus_mm: tuple[float, float]

    @property
    def cross(self) -> str:
        """Path data, in voxel units, of four short strokes around the lesion that leave it and the edges free."""
        x = self.focus_mm[0] / self.width_mm * self.columns
        y = self.focus_mm[1] / self.height_mm * self.rows
        strokes = ""
        for start, end in ((0.12, 0.20), (0.80, 0.88)):
            strokes += f"M{start * self.columns:.1f} {y:.1f}H{end * self.columns:.1f}"
            strokes += f"M{x:.1f} {start * self.rows:.1f}V{end * self.rows:.1f}"
        return strokes


class CaseViewer:
    """Draws views of one case. Holds no copies of its arrays, only reoriented looks at them."""

    def __init__(self, pictures: CasePictures) -> None:
        self._pictures = pictures
        turn = orientations.io_orientation(pictures.grid.affine)
        self._image, self._label, self._prediction = (
            orientations.apply_orientation(array, turn)
            for array in (pictures.image, pictures.label, pictures.prediction)
        )
        self._affine = pictures.grid.affine @ orientations.inv_ornt_aff(turn, pictures.image.shape)
        self._spacing_mm = np.linalg.norm(self._affine[:3, :3], axis=0)
        self._low, self._high = grey_window(self._image)
        self._box = content_box(self._image, self._label, self._prediction)

    def middle(self) -> Spot:
        """The middle of the scan, for a case without any lesion."""
        x, y, z = _to_world(self._affine, (np.array(self._image.shape) - 1) / 2)
        return Spot((float(x), float(y), float(z)), "gt", None)

    def extent_mm(self, spot: Spot) -> float:
        """The longest side of the spot's box; 0 without a box."""
        if spot.bbox is None:
            return 0.0
        sides = np.subtract(spot.bbox[3:], spot.bbox[:3]) * np.asarray(self._pictures.grid.spacing_mm)
        return float(sides.max())

    def views(self, spot: Spot, *, pixels: int) -> list[View]:
        """Whole slices through a spot, without an empty border, one for each plane that has more than a row of voxels.

        Args:
            spot: where.
            pixels: the grey picture is averaged down to at most so many pixels a side.
        """
        return [self._view(plane, self._voxel(spot), self._box, pixels) for plane in self.planes]

    def locator(self, spot: Spot, *, pixels: int) -> View:
        """The first of `views` alone, to show where in the scan a lesion is."""
        return self._view(self.planes[0], self._voxel(spot), self._box, pixels)

    def close_ups(self, spot: Spot, *, field_mm: float) -> list[View]:
        """As `views`, zoomed to a field of `field_mm` around the spot, moved inward where the scan ends."""
        voxel = self._voxel(spot)
        box = tuple(
            _window(int(centre), math.ceil(field_mm / spacing), size)
            for centre, spacing, size in zip(voxel, self._spacing_mm, self._image.shape, strict=True)
        )
        return [self._view(plane, voxel, box, max(self._image.shape)) for plane in self.planes]

    @property
    def planes(self) -> list[str]:
        """The planes of the scan: a 2D image has one, a single line of voxels none."""
        flat = [axis for axis, size in enumerate(self._image.shape) if size == 1]
        return [plane for plane, (_, across, up) in PLANES.items() if across not in flat and up not in flat]

    def _voxel(self, spot: Spot) -> np.ndarray:
        """The canonical voxel (int [3]) that a spot stands for."""
        point = np.asarray(spot.point_mm, float)
        if spot.bbox is not None:
            grid, mask = self._pictures.grid, self._pictures.label if spot.side == "gt" else self._pictures.prediction
            start, stop = spot.bbox[:3], spot.bbox[3:]
            voxels = np.argwhere(mask[tuple(slice(*limits) for limits in zip(start, stop, strict=True))]) + start
            if len(voxels):
                places = voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]
                point = places[int(((places - point) ** 2).sum(axis=1).argmin())]
        index = np.rint(np.linalg.solve(self._affine[:3, :3], point - self._affine[:3, 3]))
        return np.clip(index, 0, np.array(self._image.shape) - 1).astype(int)

    def _view(self, plane: str, voxel: np.ndarray, box: tuple[tuple[int, int], ...], pixels: int) -> View:
        normal, across, up = PLANES[plane]
        index: list[int | slice] = [slice(*limits) for limits in box]
        index[normal] = int(voxel[normal])
        # [across, up] -> rows from the top down, columns from the positive end (right, front) on.
        image, label, prediction = (
            array[tuple(index)].T[::-1, ::-1] for array in (self._image, self._label, self._prediction)
        )
        rows, columns = image.shape
        grey, (png_rows, png_columns) = _shrink(image, pixels)
        width_mm, height_mm = columns * float(self._spacing_mm[across]), rows * float(self._spacing_mm[up])
        return View(
            plane=plane,
            png=encode_png(grey_image(grey, self._low, self._high)),
            columns=columns,
            rows=rows,
            png_columns=png_columns,
            png_rows=png_rows,
            width_mm=width_mm,
            height_mm=height_mm,
            label_path=outline(label),
            prediction_path=outline(prediction),
            left=direction_letters(self._affine[:3, across]),
            right=direction_letters(-self._affine[:3, across]),
            top=direction_letters(self._affine[:3, up]),
            bottom=direction_letters(-self._affine[:3, up]),
            focus_mm=(
                (box[across][1] - voxel[across] - 0.5) * float(self._spacing_mm[across]),
                (box[up][1] - voxel[up] - 0.5) * float(self._spacing_mm[up]),
            ),
        )


def _to_world(affine: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ voxel + affine[:3, 3]


def direction_letters(direction: np.ndarray) -> str:
    """The letters of the body side that a world direction (RAS+) points to: "R", or "RA" for an oblique one.

    Args:
        direction: float [3], any length above 0.
    """
    unit = np.asarray(direction, float) / np.linalg.norm(direction)
    order = np.argsort(-np.abs(unit), kind="stable")
    named = [axis for place, axis in enumerate(order) if place == 0 or abs(unit[axis]) >= _OBLIQUE]
    return "".join(_POSITIVE[axis] if unit[axis] > 0 else _NEGATIVE[axis] for axis in named)


def grey_window(image: np.ndarray) -> tuple[float, float]:
    """The values drawn black and white: percentiles of the voxels that differ from the background.

    Computed from every k-th voxel of each axis of large scans. A scan without any contrast gets a window of width 1.

    Args:
        image: float [x, y, z]; NaN and infinity are left out.
    """
    sample = _sample(image)
    if sample.size == 0:
        return 0.0, 1.0
    inside = sample[sample != background_value(image)]
    low, high = (float(value) for value in np.percentile(inside if inside.size else sample, WINDOW_PERCENTILES))
    return low, high if high > low else low + 1.0


def background_value(image: np.ndarray) -> float:
    """The commonest value of a scan: what surrounds an extracted brain or pads a field. NaN where all is NaN."""
    values, counts = np.unique(_sample(image), return_counts=True)
    return float(values[counts.argmax()]) if values.size else math.nan


def _sample(image: np.ndarray) -> np.ndarray:
    step = max(1, math.ceil((image.size / _WINDOW_SAMPLES) ** (1 / 3)))
    sample = image[::step, ::step, ::step]
    return sample[np.isfinite(sample)]


def content_box(image: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> tuple[tuple[int, int], ...]:
    """First and one past the last voxel per axis of what is not background in any of the three, with a small margin."""
    filled = (image != background_value(image)) | (label > 0) | (prediction > 0)
    box = []
    for axis, size in enumerate(filled.shape):
        places = np.flatnonzero(filled.any(axis=tuple(other for other in range(3) if other != axis)))
        first, last = (int(places[0]), int(places[-1])) if len(places) else (0, size - 1)
        box.append((max(first - _MARGIN, 0), min(last + 1 + _MARGIN, size)))
    return tuple(box)


def grey_image(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """The values as greys, uint8 of the same shape: `low` is black, `high` white, NaN black."""
    share = np.clip((np.nan_to_num(image, nan=low, posinf=high, neginf=low) - low) / (high - low), 0.0, 1.0)
    # Fewer levels than a byte holds: no eye tells them apart on a screen, and the picture packs to half.
    level = np.rint(share * (GREY_LEVELS - 1))
    return np.rint(level * (255 / (GREY_LEVELS - 1))).astype(np.uint8)


def _shrink(image: np.ndarray, pixels: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The slice averaged over blocks so that no side is longer than `pixels`, and the voxels that the blocks cover."""
    factors = [math.ceil(size / pixels) for size in image.shape]
    padding = [(0, -size % factor) for size, factor in zip(image.shape, factors, strict=True)]
    padded = np.pad(image, padding, mode="edge")
    rows, columns = (size // factor for size, factor in zip(padded.shape, factors, strict=True))
    return padded.reshape(rows, factors[0], columns, factors[1]).mean(axis=(1, 3)), padded.shape


def _window(centre: int, length: int, size: int) -> tuple[int, int]:
    length = min(length, size)
    start = min(max(centre - length // 2, 0), size - length)
    return start, start + length
