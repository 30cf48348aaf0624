"""What spacing and shape ask of a network along each axis: patch edges, strides and kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CLOSE_RATIO = 2.0  # axes whose spacing is below this many times the finest are treated as that fine (as in nnU-Net)
TOLERANCE = 1e-3  # by which spacings may differ and be the same
SMALLEST_MAP = 4  # a feature map is not strided below this many voxels


def plan_patch(spacing_mm: Sequence[float], shape: Sequence[float], *, voxels: int) -> list[int]:
    """A patch of about so many voxels, of equal edges in mm as far as the median shape allows.

    Args:
        spacing_mm: Per network axis, 2 or 3 values.
        shape: Median shape in voxels of that spacing.
        voxels: About how many the patch has, if the shape has as many.

    Returns:
        Voxels per network axis, before rounding to the strides; never more than the shape, rounded up.
    """
    steps, largest = np.asarray(spacing_mm, float), np.ceil(np.asarray(shape, float))
    if largest.prod() <= voxels:
        return [int(count) for count in largest]
    low, high = 0.0, float((steps * largest).max())
    for _ in range(60):  # bisection on the edge in mm: the voxel count rises with it
        edge = (low + high) / 2
        if np.minimum(edge / steps, largest).prod() < voxels:
            low = edge
        else:
            high = edge
    return [max(1, round(float(count))) for count in np.minimum(high / steps, largest)]


def coarsest_axis(spacing_mm: Sequence[float]) -> int:
    """The axis of the largest spacing, the last of equals; headers hold float32, so 0.1% less is as large."""
    largest = max(spacing_mm)
    return max(axis for axis, step in enumerate(spacing_mm) if step >= largest * (1 - TOLERANCE))


def plan_strides(spacing_mm: Sequence[float], patch: Sequence[int], levels: int) -> tuple[tuple[int, ...], ...]:
    """Stride 2 along each axis whose spacing is below twice the finest and whose feature map stays at 4 voxels or more.

    Axes that can shrink no further do not hold the others back. Same idea as nnU-Net (Isensee et al. 2021).

    Returns:
        `levels - 1` strides, each with one value per network axis.
    """
    spacing, size = np.array(spacing_mm, float), np.array(patch, float)
    strides = []
    for _ in range(levels - 1):
        roomy = size / 2 >= SMALLEST_MAP
        finest = spacing[roomy].min() if roomy.any() else 0.0
        stride = np.where(roomy & _close(spacing, finest), 2, 1)
        spacing, size = spacing * stride, size / stride
        strides.append(tuple(int(step) for step in stride))
    return tuple(strides)


def plan_kernels(spacing_mm: Sequence[float], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Kernel 3, but 1 across an axis at the levels where its spacing is still twice the finest or more.

    A level that is reached by a stride along an axis has 3 there: of kernel 1 a stride would leave slices unseen.

    Returns:
        One kernel per level, `len(strides) + 1` of them, each with one value per network axis.
    """
    spacing = np.array(spacing_mm, float)
    kernels = []
    for stride in [np.ones(len(spacing)), *strides]:
        spacing = spacing * stride
        kernels.append(
            tuple(int(size) for size in np.where(_close(spacing, spacing.min()) | (np.array(stride) > 1), 3, 1))
        )
    return tuple(kernels)


def _close(spacing: np.ndarray, finest: float) -> np.ndarray:
    return spacing < CLOSE_RATIO * finest * (1 - TOLERANCE)  # headers hold float32: 1.9999 mm is 2 mm
