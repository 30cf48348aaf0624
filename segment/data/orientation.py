"""Turning arrays from a file's axis order to the canonical one (RAS) and back, without resampling."""

from __future__ import annotations

import nibabel as nib
import numpy as np


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
