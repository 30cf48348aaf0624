"""Turning arrays from a file's axis order to the canonical one (RAS) and back, without resampling; halves."""

from __future__ import annotations

from typing import Literal

import nibabel as nib
import numpy as np

Half = Literal["left", "right"]


def to_canonical(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Permutes and flips the first three axes to point right, front and up (RAS), as near as the affine allows.

    Args:
        array: [x, y, z, ...] in the file's axis order; further axes stay.
        affine: float [4, 4], invertible, of the file.

    Returns:
        A view of the array.
    """
    return nib.orientations.apply_orientation(array, nib.io_orientation(affine))


def from_canonical(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The exact inverse of `to_canonical`: back to the axis order of the file with this affine."""
    orientation = nib.io_orientation(affine)
    back = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], orientation)
    return nib.orientations.apply_orientation(array, back)


def keep_half(image: np.ndarray, label: np.ndarray | None, affine: np.ndarray, half: Half) -> None:
    """Sets image and label to 0 outside one half of the subject, in place.

    The halves meet in the middle of the box around all voxels that are not 0, so a head that is cut off on one side is
    not cut in its middle. A voxel layer in the middle belongs to the right.

    Args:
        image: [x, y, z, channels] in the file's axis order.
        label: [x, y, z], or None.
        affine: float [4, 4], invertible, of the file.
        half: Of the patient, not of the picture.
    """
    canonical = to_canonical(image, affine)
    hits = np.flatnonzero((canonical != 0).any(axis=(1, 2, 3)))
    middle = (int(hits[0]) + int(hits[-1]) + 1) // 2 if hits.size else 0
    other = slice(None, middle) if half == "right" else slice(middle, None)
    canonical[other] = 0
    if label is not None:
        to_canonical(label, affine)[other] = 0
