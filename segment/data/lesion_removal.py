"""Lesion removal: patches of patients with many lesions as if they had fewer.

Where a network's norms take statistics over the patch, what it calls bright depends on the lesions that are there. A
heavy patient alone teaches it that much is; seen with and without its large lesions, the rest looks the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from segment.data.components import grown, label_components

LEAST_MM3 = 50.0  # smaller lesions stay: they hardly move any statistics, and they are what is looked for
# In voxels of the finest axis, and across thick slices as many as are as far.
MARGIN = 2  # around a lesion, which go with it, for its edge is brighter than tissue too
RING = 2  # beyond those, whose tissue takes its place
LEAST_TISSUE = 20  # voxels in the ring; with fewer it is not known what tissue is there
TEXTURE = 0.6  # standard deviation in voxels of the noise that is painted


def remove_lesions(
    channels: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, spacing_mm: Sequence[float]
) -> int:
    """Paints over some of the lesions above 50 mm3 in the patch with tissue like that around each, in place.

    Each goes with the same chance, which is drawn first, evenly between 0 and 1: from patch to patch between none and
    nearly all of them.

    Args:
        channels: float32 [channels, x, y, z], a view or not, 0 outside the subject.
        label: uint8 [x, y, z]; lesions that go become 0.
        rng: All randomness comes from it.
        spacing_mm: Of the three axes.

    Returns:
        How many went; a patch without large lesions stays as it is.
    """
    components, count = label_components(np.ascontiguousarray(label > 0), connectivity=26)
    large = (
        np.flatnonzero(np.bincount(components.ravel(), minlength=count + 1)[1:] * math.prod(spacing_mm) > LEAST_MM3) + 1
    )
    going = large[rng.random(len(large)) < rng.random()]
    boxes = ndimage.find_objects(components) if len(going) else []
    fine = min(spacing_mm) / np.asarray(spacing_mm)
    return sum(_remove(channels, label, components, int(number), boxes[number - 1], fine, rng) for number in going)


def _remove(
    channels: np.ndarray,
    label: np.ndarray,
    components: np.ndarray,
    number: int,
    box: tuple[slice, ...],
    fine: np.ndarray,
    rng: np.random.Generator,
) -> bool:
    """Removes one component; False where too little tissue is around it. `fine`: finest spacing over each axis's."""
    margin, reach = (np.round(fine * far).astype(int).tolist() for far in (MARGIN, MARGIN + RING))
    wide = tuple(slice(max(0, side.start - far), side.stop + far) for side, far in zip(box, reach, strict=True))
    image, mask = channels[(slice(None), *wide)], components[wide] == number
    subject = (image != 0).any(axis=0)
    going = grown(mask, margin) & subject & ((components[wide] == 0) | mask)
    ring = grown(mask, reach) & ~grown(mask, margin) & subject & (components[wide] == 0)
    if ring.sum() < LEAST_TISSUE:
        return False
    for channel in image:
        around = channel[ring]
        middle = np.median(around)
        width = 1.4826 * np.median(np.abs(around - middle))  # a standard deviation, whatever fluid is among it
        texture = ndimage.gaussian_filter(rng.standard_normal(mask.shape, np.float32), TEXTURE)
        channel[going] = (middle + texture * np.float32(width / max(texture.std(), 1e-6)))[going]
    label[wide][mask] = 0
    return True
