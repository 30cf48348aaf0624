"""Connected components of a mask, and what lies around them."""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np
from scipy import ndimage

THIN = 4  # voxels; a shorter axis is where cc3d runs out of labels


def label_components(mask: np.ndarray, *, connectivity: int) -> tuple[np.ndarray, int]:
    """Numbers the connected components of a mask.

    cc3d (4.1) reserves one label too few for the densest packing of single voxels in a thin box, such as [1, 0, 1], and
    raises RuntimeError; an empty layer at the end of each axis makes room.

    Args:
        mask: bool, 2 or 3 axes; it may be empty.
        connectivity: Neighbours of a voxel: 4 or 8 in 2D, 6, 18 or 26 in 3D.

    Returns:
        Unsigned integers of the mask's shape and memory layout, 0 outside and 1..n inside the components, and n.
    """
    if min(mask.shape, default=0) >= THIN:
        return cc3d.connected_components(mask, connectivity=connectivity, return_N=True)
    roomy = np.zeros(tuple(length + 1 for length in mask.shape), bool)
    inner = tuple(slice(0, length) for length in mask.shape)
    roomy[inner] = mask
    labels, count = cc3d.connected_components(roomy, connectivity=connectivity, return_N=True)
    return np.copy(labels[inner], order="F" if mask.flags.f_contiguous else "C"), count


def grown(mask: np.ndarray, voxels: int | Sequence[int]) -> np.ndarray:
    """The mask and all within so many voxels of it, diagonals too; bool, 3 axes. An empty mask stays empty.

    `voxels` may be given for each axis.
    """
    reach = [voxels] * 3 if isinstance(voxels, int) else voxels
    sides = [2 * count + 1 for count in reach]
    return ndimage.maximum_filter(mask.view(np.uint8), sides, mode="constant").view(bool)
