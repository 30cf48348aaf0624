"""Intensities of one channel: which voxels belong to the subject, and mean 0 and standard deviation 1 within them."""

from __future__ import annotations

import numpy as np

from segment.data.components import label_components

PERCENTILES = (0.5, 99.5)


def inside_mask(channel: np.ndarray) -> np.ndarray:
    """bool [x, y, z]: all but the zeros that reach the border of the box, so zeros enclosed by tissue are inside."""
    zero = channel == 0
    if not zero.any():
        return ~zero
    components, count = label_components(zero, connectivity=6)
    faces = [
        components[side] for side in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1])
    ]
    reaching = np.zeros(count + 1, bool)
    for face in faces:
        reaching[np.unique(face)] = True
    reaching[0] = False  # component 0 is all that is not zero
    return ~reaching[components]


def normalise(channel: np.ndarray, inside: np.ndarray, how: str) -> np.ndarray:
    """float32 [x, y, z] with mean 0 and standard deviation 1 inside, 0 outside; all 0 for a constant channel."""
    result = np.zeros(channel.shape, np.float32)
    values = channel[inside].astype(np.float64)
    if how == "percentile" and values.size:
        values = np.clip(values, *np.percentile(values, PERCENTILES))
    if values.size and values.min() < values.max():
        result[inside] = (values - values.mean()) / values.std()
    return result
