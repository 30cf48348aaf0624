"""Lesion copy-paste: further lesions in a patch, with the contrast that lesions have in these scans.

A lesion of the training cases is pasted as it looks, from its own scan; the shape of a mask without a scan takes its
contrast from a lesion of like size. Either goes where the tissue is like that which the lesion was found in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from segment.data.components import grown
from segment.data.lesion_shapes import LesionShape
from segment.data.planning import Plan
from segment.data.preprocessing import PreparedCase
from segment.data.sampling import read_patch, size_bins
from segment.data.spatial import axis_orders, draw_symmetry

MOST = 3  # lesions pasted into one patch
MARGIN = 2  # voxels around a lesion in which its tissue is measured and its edge fades; no other lesion may lie there
LEAST_TISSUE = 6  # voxels of tissue around a lesion; with fewer its contrast is not known
CONTRAST = (0.7, 1.2)  # the pasted contrast in parts of the original
DRAWS = 4  # lesions looked at for one that can be seen
PLACES = 16  # places tried for each lesion
LIKE_TISSUE = 1.0  # largest mean difference to the lesion's tissue in any channel, in standard deviations of the scan
LEAST_CONTRAST = 0.75  # in the channel that shows the lesion best: pasting what cannot be seen would teach to guess


@dataclass(frozen=True, eq=False)
class _Lesion:
    """A lesion ready to be pasted: mask bool [x, y, z] with a margin, and per channel what it looks like.

    Without an image (float32 [channels, x, y, z]) the tissue that it is pasted into shows through.
    """

    mask: np.ndarray
    value: int
    image: np.ndarray | None
    tissue: np.ndarray
    contrast: np.ndarray


class LesionPaster:
    """Pastes lesions of the training cases, or with their contrast the shapes of other masks.

    Args:
        prepared: The training cases; where they have no lesion, nothing is ever pasted.
        plan: Patch, spacing, classes.
        bin_edges_mm3: Rising edges of the lesion size bins.
        shapes: Lesions of masks without scans; half of what is pasted then has their shapes.
    """

    def __init__(
        self,
        prepared: Sequence[PreparedCase],
        plan: Plan,
        *,
        bin_edges_mm3: Sequence[float],
        shapes: Sequence[LesionShape],
    ) -> None:
        self._prepared = prepared
        self._plan = plan
        self._shapes = [shape for shape in shapes if self._fits(np.ptp(shape.voxels, axis=0) + 1)]
        case = np.repeat(np.arange(len(prepared)), [len(one.lesions) for one in prepared])
        number = np.concatenate([np.arange(len(one.lesions)) for one in prepared])
        volume = np.concatenate([one.lesions.volume_mm3 for one in prepared])
        extent = np.concatenate([np.diff(one.lesions.box, axis=2)[..., 0] for one in prepared])
        fitting = np.flatnonzero(self._fits(extent))
        self._own = np.stack([case, number], axis=1)[fitting]
        self._own_bins = size_bins(volume[fitting], bin_edges_mm3)
        self._unseen: set[int] = set()  # of `_own`, found out when they are drawn
        shape_mm3 = np.array([shape.volume_mm3 for shape in self._shapes])
        self._shape_bins = size_bins(shape_mm3, bin_edges_mm3) if self._shapes else {}
        size = list(plan.patch_size)
        if plan.slice_axis is not None:
            size[plan.slice_axis] = plan.slices
        self._orders = axis_orders(plan.spacing_mm, size)

    def _fits(self, extent: np.ndarray) -> np.ndarray:
        """Which lesions, [..., 3] voxels, take up at most half of a patch along every axis that the network sees."""
        seen = [axis for axis in range(3) if axis != self._plan.slice_axis]
        return np.all(extent[..., seen] <= np.array(self._plan.patch_size)[seen] // 2, axis=-1)

    def paste(self, channels: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> int:
        """Pastes 1 to 3 lesions, in place.

        Each is drawn from a size bin, every bin half as often as the one below it, and put where it lies whole inside
        the subject (any channel not 0), at least two voxels from other lesions, and in tissue like its own.

        Args:
            channels: float32 [channels, x, y, z], a view or not.
            label: uint8 [x, y, z]; pasted voxels get the lesion's label value.
            rng: All randomness comes from it.

        Returns:
            How many found a place.
        """
        if not self._own_bins:
            return 0
        subject = channels[0] != 0
        for channel in channels[1:]:
            subject |= channel != 0
        wanted = int(rng.integers(1, MOST + 1))
        return sum(self._paste_one(channels, label, subject, rng) for _ in range(wanted))

    def _paste_one(
        self, channels: np.ndarray, label: np.ndarray, subject: np.ndarray, rng: np.random.Generator
    ) -> bool:
        lesion = self._draw(rng)
        if lesion is None:
            return False
        halo = grown(lesion.mask, MARGIN)
        box = self._find_place(channels, label, subject, lesion, halo, rng)
        if box is None:
            return False
        target, ring = channels[(slice(None), *box)], (halo & ~lesion.mask & subject[box])
        strength = float(rng.uniform(*CONTRAST))
        edge = self._edge(lesion.mask)
        if lesion.image is None:
            change = edge * (strength * lesion.contrast)[:, None, None, None]
        else:
            tissue = np.median(target[:, ring], axis=1)[:, None, None, None]
            looks = tissue + strength * (lesion.image - lesion.tissue[:, None, None, None])
            change = np.maximum(edge, lesion.mask) * (looks - target)
        target += change * subject[box]
        label[box][lesion.mask] = lesion.value
        return True

    def _draw(self, rng: np.random.Generator) -> _Lesion | None:
        if not self._shapes or rng.random() < 0.5:
            lesion = self._own_lesion(rng, _draw_bin(rng, self._own_bins))
        else:
            number = _draw_bin(rng, self._shape_bins)
            members = self._shape_bins[number]
            shape = self._shapes[int(members[rng.integers(len(members))])]
            like = self._own_lesion(rng, min(self._own_bins, key=lambda own: abs(own - number)))
            start, size = self._frame(shape.voxels, rng)
            lesion = like and _Lesion(_mask(shape.voxels, start, size), shape.value, None, like.tissue, like.contrast)
        if lesion is None:
            return None
        turn = draw_symmetry(rng, self._orders, flip=True)
        image = None if lesion.image is None else np.stack([turn.apply(channel) for channel in lesion.image])
        return _Lesion(turn.apply(lesion.mask), lesion.value, image, lesion.tissue, lesion.contrast)

    def _own_lesion(self, rng: np.random.Generator, number: int) -> _Lesion | None:
        """A lesion of one size bin that can be seen in its scan; None where some draws find none."""
        members = self._own_bins[number]
        for _ in range(DRAWS):
            drawn = int(members[rng.integers(len(members))])
            lesion = None if drawn in self._unseen else self._look_at(rng, *self._own[drawn])
            if lesion is not None:
                return lesion
            if self._plan.slice_axis is None:  # in 2D another slice may show it
                self._unseen.add(drawn)
        return None

    def _look_at(self, rng: np.random.Generator, owner: int, index: int) -> _Lesion | None:
        """A lesion as its scan shows it; None where that is not known or hardly seen."""
        case = self._prepared[owner]
        voxels = np.stack(np.unravel_index(case.lesions.voxels(index), case.shape), axis=1)
        start, size = self._frame(voxels, rng)
        image = np.moveaxis(read_patch(case.image(), start, size), -1, 0)
        mask = _mask(voxels, start, size)
        tissue = grown(mask, MARGIN) & (read_patch(case.label(), start, size) == 0) & (image != 0).any(axis=0)
        if tissue.sum() < LEAST_TISSUE:
            return None
        # The median: what lies beside a lesion may be mostly its tissue and partly a ventricle.
        around = np.median(image[:, tissue], axis=1)
        contrast = image[:, mask].mean(axis=1) - around
        if np.abs(contrast).max() < LEAST_CONTRAST:
            return None
        return _Lesion(mask, int(case.lesions.value[index]), image, around, contrast)

    def _frame(self, voxels: np.ndarray, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Start and size of the box around a lesion with its margin; of a 2D model's slices, some that it lies in."""
        start = voxels.min(axis=0) - MARGIN
        size = np.ptp(voxels, axis=0) + 1 + 2 * MARGIN
        axis = self._plan.slice_axis
        if axis is not None:
            start[axis] = voxels[rng.integers(len(voxels)), axis] - self._plan.slices // 2
            size[axis] = self._plan.slices
        return start.tolist(), size.tolist()

    def _find_place(
        self,
        channels: np.ndarray,
        label: np.ndarray,
        subject: np.ndarray,
        lesion: _Lesion,
        halo: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[slice, ...] | None:
        """Of the places that are free and inside, the one whose tissue is most like the lesion's; None without any."""
        size = lesion.mask.shape
        room = np.subtract(label.shape, size)
        if (room < 0).any():
            return None
        best, found = LIKE_TISSUE, None
        starts = rng.integers(0, room + 1, (PLACES, 3))
        one = tuple((starts + np.argwhere(lesion.mask)[0]).T)  # most places fail for any voxel of the lesion
        for start in starts[subject[one] & (label[one] == 0)]:
            box = tuple(slice(first, first + count) for first, count in zip(start, size, strict=True))
            if (halo & (label[box] > 0)).any() or not subject[box][lesion.mask].all():
                continue
            if (halo & ~lesion.mask & subject[box]).sum() < LEAST_TISSUE:
                continue
            here = channels[(slice(None), *box)][:, halo & subject[box]]
            difference = float(np.abs(here - lesion.tissue[:, None]).mean(axis=1).max())
            if difference < best:
                best, found = difference, box
        return found

    def _edge(self, mask: np.ndarray) -> np.ndarray:
        """float32 weights: 1 deep inside, 3/4 and 1/4 in the voxels on either side of the edge, 0 two voxels out."""
        spacing = np.divide(self._plan.spacing_mm, min(self._plan.spacing_mm))
        inner = ndimage.distance_transform_edt(mask, spacing)  # the margin sees to an outside
        outer = ndimage.distance_transform_edt(~mask, spacing)
        return np.clip(0.5 + (inner - outer) / 4, 0.0, 1.0).astype(np.float32)


def _draw_bin(rng: np.random.Generator, bins: dict[int, np.ndarray]) -> int:
    weights = 0.5 ** np.array(list(bins), float)
    return int(rng.choice(list(bins), p=weights / weights.sum()))


def _mask(voxels: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    inside = voxels - start
    mask[tuple(inside[((inside >= 0) & (inside < size)).all(axis=1)].T)] = True
    return mask
