"""Scans and masks with their place in the world: reading, writing, and turning arrays to the canonical axis order.

A file's grid is nibabel's: the sform where its code is above 0, else the qform, else the voxel size alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from segment.data.case import Case as Case
from segment.data.grid import Grid as Grid
from segment.data.nifti import ScanError, read_header, read_nifti, read_shape, write_nifti
from segment.data.orientation import from_canonical as from_canonical
from segment.data.orientation import keep_half
from segment.data.orientation import to_canonical as to_canonical

SPACING_RANGE_MM = (1e-6, 1e6)  # a nanometre to a kilometre: outside it, the bytes are no voxel size
LABEL_TOLERANCE = 1e-3  # a label stored through slope and intercept may miss its integer by rounding


@dataclass(frozen=True, eq=False)
class Scan:
    """A case in memory, on the file's own grid.

    Attributes:
        case_id: The case's id.
        image: float32 [x, y, z, channels], finite, slope and intercept applied; column-major where it was read.
        label: uint8 [x, y, z], or None.
        grid: The grid of all channels and the label.
        header: Of the first channel; carries qform, sform, their codes and the units into the files that are written.
    """

    case_id: str
    image: np.ndarray
    label: np.ndarray | None
    grid: Grid
    header: nib.Nifti1Header


def load_volume(path: Path) -> tuple[np.ndarray, Grid, nib.Nifti1Header]:
    """As `read_volume`, but the values may hold NaN and infinity: for those who report them."""
    values, header = read_nifti(path)
    return _as_3d(values, path), _grid_of(header, values.shape, path), header


def read_volume(path: Path) -> tuple[np.ndarray, Grid, nib.Nifti1Header]:
    """Reads one channel.

    Args:
        path: A .nii or .nii.gz file of any integer or float type and byte order, 3D; trailing axes of 1 are dropped,
            and a single slice (2D) is taken as [x, y, 1].

    Returns:
        Float32 [x, y, z] in the file's axis order (column-major in memory), its grid, and its header.

    Raises:
        ScanError: As `read_nifti`, and for other dimensions, an affine that is singular or not finite, and NaN or
            infinity.
    """
    values, grid, header = load_volume(path)
    _require_finite(values, path)
    return values, grid, header


def read_grid(path: Path) -> Grid:
    """The grid that a file's header gives. Raises ScanError as `read_volume` for the header; voxels are not read."""
    return _grid_of(read_header(path), read_shape(path), path)


class ChannelReader:
    """Reads the channels of one case. A file that several channels lie in is read once and kept until the next file."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._path: Path | None = None
        self._volumes = np.zeros(0, np.float32)
        self._header = nib.Nifti1Header()

    def load(self, index: int) -> tuple[np.ndarray, Grid, nib.Nifti1Header]:
        """As `load_volume`, of one channel by its number; ScanError `channels` for a wrong number of volumes."""
        case = self._case
        path = case.image_paths[index]
        if not case.image_volumes:
            return load_volume(path)
        volume, sharing = case.image_volumes[index], case.image_paths.count(path)
        if sharing == 1:
            values, header = read_nifti(path, volume=volume)
            return values, _grid_of(header, values.shape, path), header
        if self._path != path:
            self._path, self._volumes = None, np.zeros(0, np.float32)  # the last file goes before the next comes
            values, self._header = read_nifti(path)
            found = (*values.shape, 1, 1)
            count = math.prod(found[3:])
            if count != sharing:
                shape = "x".join(map(str, values.shape))
                raise ScanError(
                    "channels", f"{path}: expected {sharing} channels as the last axis (4D), found shape {shape}"
                )
            self._volumes, self._path = values.reshape((*found[:3], count), order="F"), path
        values = self._volumes[..., volume]
        return values, _grid_of(self._header, values.shape, path), self._header


def _require_finite(values: np.ndarray, path: Path) -> None:
    unusable = values.size - int(np.count_nonzero(np.isfinite(values)))
    if unusable:
        found = f"NaN or infinity in {unusable} of {values.size} voxels"
        raise ScanError("non_finite", f"{path}: expected finite values, found {found}; repair or leave out the case")


def read_scan(case: Case, *, with_label: bool) -> Scan:
    """Reads all channels of a case and, with `with_label`, its label.

    Raises:
        ScanError: A file cannot be used or lies on another grid than the first channel; starts with the case.
    """
    try:
        return _read_scan(case, with_label)
    except ScanError as cause:
        raise ScanError(cause.kind, f"case {case.case_id}: {cause}") from cause


def _read_scan(case: Case, with_label: bool) -> Scan:
    reader = ChannelReader(case)
    values, grid, header = reader.load(0)
    image = np.empty((*grid.shape, len(case.image_paths)), np.float32)
    found = grid
    for index, path in enumerate(case.image_paths):
        if index:
            del values  # one channel at a time beside the image
            values, found, _ = reader.load(index)
        _require_finite(values, path)
        require_same_grid(grid, case.image_paths[0], found, path)
        image[..., index] = values
    del reader, values
    label = None
    if with_label:
        if case.label_path is None:
            raise ScanError("missing", "expected a label, found none; name one or leave the case out")
        label, found = read_mask(case.label_path)
        require_same_grid(grid, case.image_paths[0], found, case.label_path)
    if case.half is not None:
        keep_half(image, label, grid.affine, case.half)
    return Scan(case.case_id, image, label, grid, header)


def require_same_grid(expected: Grid, expected_path: Path, found: Grid, path: Path) -> None:
    """Raises ScanError (kind `grid`) that shows both grids unless they match."""
    if not found.matches(expected):
        difference = float(np.abs(expected.affine - found.affine).max())
        raise ScanError(
            "grid",
            f"{path}: expected the grid of {expected_path.name}, {expected.describe()}; found {found.describe()} "
            f"(affines differ by up to {difference:.3g}); resample it onto that grid",
        )


def read_mask(path: Path) -> tuple[np.ndarray, Grid]:
    """Reads a label or a mask.

    Returns:
        Uint8 [x, y, z] in the file's axis order, and its grid. A file of zeros is fine.

    Raises:
        ScanError: As `read_volume`, and for values that are no integers from 0 to 255 (kind `label_values`).
    """
    values, grid, _ = read_volume(path)
    rounded = np.rint(values)
    strange = (rounded < 0) | (rounded > 255)
    difference = np.subtract(values, rounded)
    strange |= np.abs(difference, out=difference) > LABEL_TOLERANCE
    if strange.any():
        example = float(values[strange][0])
        raise ScanError(
            "label_values",
            f"{path}: expected label values that are integers from 0 to 255, found {example:g} "
            f"({int(strange.sum())} such voxels); export the label as integers",
        )
    return rounded.astype(np.uint8), grid


def read_probability(path: Path) -> tuple[np.ndarray, Grid]:
    """Reads a file of `write_probability`: float32 [x, y, z, k] from 0 to 1 and its grid (k is 1 for a 3D file).

    Raises:
        ScanError: As `read_volume`, for more than 4 dimensions, and for values outside 0 to 1.
    """
    values, header = read_nifti(path)
    if values.ndim > 4 and values.shape[4:] == (1,) * (values.ndim - 4):
        values = values.reshape(values.shape[:4], order="F")
    if values.ndim not in (3, 4):
        raise ScanError(
            "dimensions", f"{path}: expected probabilities [x, y, z] or [x, y, z, class], found shape {values.shape}"
        )
    values = values.reshape((*values.shape[:3], -1), order="F")
    # Written so that NaN fails too.
    if not (values.min() >= 0.0 and values.max() <= 1.0):
        raise ScanError(
            "non_finite", f"{path}: expected probabilities from 0 to 1, found {values.min():g} to {values.max():g}"
        )
    return values, _grid_of(header, values.shape, path)


def write_mask(path: Path, mask: np.ndarray, grid: Grid, header: nib.Nifti1Header) -> None:
    """Writes a mask on the grid of the scan that it belongs to, reads it back and compares.

    Args:
        path: .nii.gz or .nii; replaced when it is there.
        mask: uint8 or bool [x, y, z], in the axis order of the scan's file.
        grid: The scan's grid.
        header: The scan's header; its qform, sform, their codes, and its units are kept bit for bit.

    Raises:
        InputError: It cannot be written, or what is read back differs.
        ValueError: Mask, grid and header do not belong together, or the mask is of another type.
    """
    if not np.can_cast(mask.dtype, np.uint8) or mask.shape != grid.shape:
        raise ValueError(f"expected a uint8 mask of shape {grid.shape}, found {mask.dtype} {mask.shape}")
    _require_own_grid(grid, header, path)
    write_nifti(path, mask.astype(np.uint8), header)


def write_probability(path: Path, probability: np.ndarray, grid: Grid, header: nib.Nifti1Header) -> None:
    """Writes probabilities as a float32 file whose values are rounded to float16 (11 bits, which compress well).

    Args:
        path: .nii.gz or .nii; replaced when it is there.
        probability: float [x, y, z] or [x, y, z, k], from 0 to 1. One class is written as a 3D file.
        grid: The scan's grid.
        header: The scan's header.

    Raises:
        InputError: It cannot be written, or what is read back differs.
        ValueError: Probability, grid and header do not belong together, or values are outside 0 to 1.
    """
    if probability.shape[:3] != grid.shape or probability.ndim not in (3, 4):
        raise ValueError(f"expected probabilities of shape {grid.shape} and classes, found {probability.shape}")
    if not (probability.min() >= 0.0 and probability.max() <= 1.0):
        raise ValueError(f"expected probabilities from 0 to 1, found {probability.min()} to {probability.max()}")
    _require_own_grid(grid, header, path)
    values = probability.astype(np.float16).astype(np.float32)
    write_nifti(path, values[..., 0] if values.shape[3:] == (1,) else values, header)


def _require_own_grid(grid: Grid, header: nib.Nifti1Header, path: Path) -> None:
    affine = _grid_of(header, grid.shape, path).affine
    if not np.array_equal(affine, grid.affine):
        raise ValueError(f"expected a header with the grid's affine {grid.affine.tolist()}, found {affine.tolist()}")


def _as_3d(values: np.ndarray, path: Path) -> np.ndarray:
    """The array without trailing axes of 1, as 3D."""
    if any(length != 1 for length in values.shape[3:]) or values.ndim < 2:
        advice = "write one file a channel or time point"
        raise ScanError("dimensions", f"{path}: expected one 3D volume, found shape {values.shape}; {advice}")
    return values.reshape((*values.shape[:3], 1)[:3], order="F")


def _grid_of(header: nib.Nifti1Header, shape: tuple[int, ...], path: Path) -> Grid:
    x, y, z = (*shape[:3], 1)[:3]
    header = header.copy()
    header.set_data_shape((x, y, z))  # without any form code, nibabel centres the affine on the shape
    # Hostile headers overflow on the way; what comes out is judged below.
    with np.errstate(all="ignore"):
        try:
            affine = np.asarray(header.get_best_affine(), np.float64)
        except (ValueError, nib.spatialimages.HeaderDataError) as cause:
            raise ScanError("affine", f"{path}: the qform is not valid ({cause}); repair the header") from cause
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        possible = bool(
            np.isfinite(affine).all() and ((sides > SPACING_RANGE_MM[0]) & (sides < SPACING_RANGE_MM[1])).all()
        )
        # Relative to its sides: a voxel of less than a millionth of its box is flat, whatever its size.
        solid = possible and abs(np.linalg.det(affine[:3, :3])) > 1e-6 * sides.prod()
    if not solid:
        found = affine[:3].tolist()
        raise ScanError("affine", f"{path}: expected an invertible affine, found {found}; repair the header")
    return Grid((x, y, z), affine)
