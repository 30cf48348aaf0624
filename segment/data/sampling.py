"""Where the training patches lie: every lesion is seen, however small.

A lesion patch draws a size bin, then a lesion of that bin over all cases, then a place that holds it. Drawing by
voxel would show a lesion as often as it is large; drawing by bin shows 5-voxel lesions as often as 5,000-voxel ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from segment.data.preprocessing import PreparedCase

EDGE_TOLERANCE = 1e-6  # volumes come from float32 headers; the same tolerance as in the evaluation's size bins


@dataclass(frozen=True)
class PatchLocation:
    """One patch.

    Attributes:
        case: Index of the prepared case.
        start: Network voxel of the patch's first corner; negative where the patch is larger than the volume.
        held: Start and stop per axis of what the patch was placed to hold: the box of a lesion, or one voxel of a
            lesion that is too large; None for a random place.
    """

    case: int
    start: tuple[int, int, int]
    held: tuple[tuple[int, int], ...] | None


def size_bins(volume_mm3: np.ndarray, bin_edges_mm3: Sequence[float]) -> dict[int, np.ndarray]:
    """Groups lesions by size: number of the bin, 0 for the smallest -> rising indices; bins without any are left out.

    Args:
        volume_mm3: float64 [lesions].
        bin_edges_mm3: Rising edges; (10, 50) makes (0, 10], (10, 50] and above.
    """
    bins = np.searchsorted(np.asarray(bin_edges_mm3, float) * (1 + EDGE_TOLERANCE), volume_mm3)
    return {int(number): np.flatnonzero(bins == number) for number in np.unique(bins)}


class PatchSampler:
    """Draws patch locations over prepared cases; holds a few bytes per lesion.

    Args:
        prepared: At least one case.
        patch_size: Voxels per canonical axis, 3 values (a 1 on the slice axis of a 2D plan).
        bin_edges_mm3: Rising edges of the lesion size bins; (10, 50) makes (0, 10], (10, 50] and above.
    """

    def __init__(
        self, prepared: Sequence[PreparedCase], patch_size: tuple[int, int, int], *, bin_edges_mm3: Sequence[float]
    ) -> None:
        self._prepared = prepared
        self._patch = np.array(patch_size, np.int64)
        sizes = [len(case.lesions) for case in prepared]
        self._case = np.repeat(np.arange(len(prepared)), sizes)
        self._lesion = np.concatenate([np.arange(size) for size in sizes])
        volumes = np.concatenate([case.lesions.volume_mm3 for case in prepared])
        self._bins = list(size_bins(volumes, bin_edges_mm3).values())

    @property
    def has_lesions(self) -> bool:
        """Whether any case has a lesion."""
        return bool(self._bins)

    def draw(self, rng: np.random.Generator, *, lesion: bool) -> PatchLocation:
        """Draws one location.

        Args:
            rng: All randomness comes from it.
            lesion: True for a patch that holds a lesion (a random place when no case has any), False for a random
                place in a random case, which avoids nothing.

        Returns:
            A patch inside the volume wherever the volume is at least as large as the patch; else one that holds the
            whole volume on that axis. A lesion that fits is held whole; of a larger one, a voxel drawn uniformly
            from it lies in the middle half of the patch.
        """
        if lesion and self._bins:
            members = self._bins[rng.integers(len(self._bins))]
            drawn = members[rng.integers(len(members))]
            case = int(self._case[drawn])
            low, high, held = self._around(rng, self._prepared[case], int(self._lesion[drawn]))
        else:
            held = None
            case = int(rng.integers(len(self._prepared)))
            low, high = np.full(3, np.iinfo(np.int64).min), np.full(3, np.iinfo(np.int64).max)
        room = np.array(self._prepared[case].shape, np.int64) - self._patch
        # A patch that fits does not reach out of the volume; a larger one (room < 0) holds all of it.
        first, last = np.minimum(room, 0), np.maximum(room, 0)
        x, y, z = (int(start) for start in rng.integers(np.clip(low, first, last), np.clip(high, first, last) + 1))
        return PatchLocation(case, (x, y, z), held)

    def _around(
        self, rng: np.random.Generator, case: PreparedCase, lesion: int
    ) -> tuple[np.ndarray, np.ndarray, tuple[tuple[int, int], ...]]:
        """First and last start per axis of patches that hold a lesion, or a voxel of it where it does not fit."""
        start, stop = case.lesions.box[lesion].T
        low, high = stop - self._patch, start
        if (low > high).any():
            voxels = case.lesions.voxels(lesion)
            voxel = np.array(np.unravel_index(voxels[rng.integers(len(voxels))], case.shape))
            margin = self._patch // 4
            too_large = low > high
            low = np.where(too_large, voxel - self._patch + 1 + margin, low)
            high = np.where(too_large, voxel - margin, high)
            start, stop = np.where(too_large, voxel, start), np.where(too_large, voxel + 1, stop)
        return low, high, tuple(zip(start.tolist(), stop.tolist(), strict=True))


def read_channels(volume: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Copies a patch out of an image, 0 outside it, channel by channel: each can then be worked on in one piece.

    Args:
        volume: float32 [x, y, z, channels], memory-mapped or not.
        start: Voxel of the first corner, which may lie outside.
        size: Voxels per axis.

    Returns:
        A new C-ordered array [channels, *size].
    """
    patch = np.zeros((volume.shape[3], *size), np.float32)
    source, target = _overlap(start, size, volume.shape)
    inside = [channel[target] for channel in patch]
    if len(inside) == 1:
        inside[0][...] = volume[source][..., 0]
    elif inside[0].size:
        for slab, parts in zip(np.asarray(volume)[source], zip(*inside, strict=True), strict=True):
            cv2.split(slab, parts)
    return patch


def read_patch(volume: np.ndarray, start: Sequence[int], patch_size: Sequence[int]) -> np.ndarray:
    """Copies a patch out of a volume, 0 outside it.

    Args:
        volume: [x, y, z] or [x, y, z, channels] of any dtype, memory-mapped or not.
        start: Voxel of the first corner, which may lie outside.
        patch_size: Voxels per axis.

    Returns:
        A new contiguous array [*patch_size] or [*patch_size, channels] of the same dtype.
    """
    patch = np.zeros((*patch_size, *volume.shape[3:]), volume.dtype)
    source, target = _overlap(start, patch_size, volume.shape)
    patch[target] = volume[source]
    return patch


def _overlap(
    start: Sequence[int], size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What a patch and a volume share: as an index into the volume, and into the patch."""
    source, target = [], []
    for first, count, extent in zip(start, size, shape[:3], strict=True):
        low = min(max(first, 0), extent)
        high = max(min(first + count, extent), low)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first) if high > low else slice(0, 0))
    return tuple(source), tuple(target)
