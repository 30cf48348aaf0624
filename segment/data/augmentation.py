"""Cuts training patches and changes them at random; what can be changed stands in the modules this one puts together.

2D models go through albumentations. Its 3D transforms (2.0.8) turn cubes and cut holes; all others work slice by slice
or fail on volumes, so 3D has arithmetic of its own, channel by channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from segment.config import AugmentationConfig
from segment.data.intensity import change_intensities
from segment.data.lesion_paste import LesionPaster
from segment.data.lesion_removal import remove_lesions
from segment.data.planning import Plan, network_input
from segment.data.preprocessing import PreparedCase
from segment.data.sampling import PatchLocation, read_channels, read_patch
from segment.data.slice_augmentation import SliceAugmenter
from segment.data.spatial import IDENTITY, Warp, axis_orders, draw_matrix, draw_symmetry

# Patches are made by several threads already, on cores that the network needs too.
cv2.setNumThreads(1)

_MOVE, _PASTE, _CHANGE = range(3)  # streams of random numbers


class Augmenter:
    """Cuts and changes patches; safe to call from several threads at once.

    Args:
        config: Which changes, and to what share of the patches.
        plan: Patch, slices and spacing.
        paster: Where pasted lesions come from; None pastes none.
    """

    def __init__(self, config: AugmentationConfig, plan: Plan, paster: LesionPaster | None) -> None:
        self._config = config
        self._plan = plan
        self._paster = paster
        self._orders = axis_orders(plan.spacing_mm, plan.patch_size) if config.turn else (IDENTITY.order,)
        seen = [axis for axis in range(3) if axis != plan.slice_axis]
        self._slices = None
        if plan.slice_axis is not None:
            self._slices = SliceAugmenter(
                config, [plan.spacing_mm[axis] for axis in seen], [plan.patch_size[axis] for axis in seen]
            )

    def cut(
        self, case: PreparedCase, location: PatchLocation, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray]:
        """Makes one patch, a pure function of the arguments.

        Args:
            case: Read from its files, no more than the patch needs.
            location: Of the patch without augmentation. A lesion that it was placed to hold stays in it.
            seed: Source of all randomness.

        Returns:
            The image as the network takes it, float32 [*patch, channels] with 2 or 3 axes in the patch, 0 outside the
            subject; and the label values uint8 [*patch]. Where no change is drawn, both are the case's own values bit
            for bit. Both are new, C-ordered arrays.
        """
        # Not seed.spawn, which counts its calls: the same seed would give something else the second time.
        streams = [np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, index)) for index in range(3)]
        cut = self._cut_volume if self._slices is None else self._cut_slices
        return cut(case, location, streams)

    def _cut_volume(
        self, case: PreparedCase, location: PatchLocation, streams: Sequence[np.random.SeedSequence]
    ) -> tuple[np.ndarray, np.ndarray]:
        config, plan = self._config, self._plan
        rng = np.random.default_rng(streams[_MOVE])
        symmetry = draw_symmetry(rng, self._orders, flip=config.flip)
        if rng.random() < config.affine_share:
            matrix = draw_matrix(rng, plan.spacing_mm, degrees=config.rotation_degrees, scale=config.scale)
            warp = Warp.around(location.start, plan.patch_size, matrix, location.held)
            channels = warp.image(read_channels(case.image(), warp.first, warp.box))
            label = warp.label(read_patch(case.label(), warp.first, warp.box))
        else:
            channels = read_channels(case.image(), location.start, plan.patch_size)
            label = read_patch(case.label(), location.start, plan.patch_size)
        self._change_lesions(channels, label, streams)
        change_intensities(channels, config, plan.spacing_mm, np.random.default_rng(streams[_CHANGE]))
        image = np.empty((*plan.patch_size, len(channels)), np.float32)
        for index, channel in enumerate(channels):
            image[..., index] = symmetry.apply(channel)
        return image, np.ascontiguousarray(symmetry.apply(label))

    def _cut_slices(
        self, case: PreparedCase, location: PatchLocation, streams: Sequence[np.random.SeedSequence]
    ) -> tuple[np.ndarray, np.ndarray]:
        plan, axis, slices = self._plan, self._plan.slice_axis, self._slices
        if axis is None or slices is None:
            raise ValueError("expected a plan of a 2D model")
        seen = [own for own in range(3) if own != axis]
        size, first = list(slices.source_size), [location.start[own] for own in seen]
        for place, own in enumerate(seen):
            first[place] -= (size[place] - plan.patch_size[own]) // 2
        size.insert(axis, plan.slices)
        first.insert(axis, location.start[axis] - plan.slices // 2)
        image = np.moveaxis(read_patch(case.image(), first, size), axis, 2)  # [rows, columns, slices, channels]
        label = np.ascontiguousarray(np.moveaxis(read_patch(case.label(), first, size), axis, 2))
        flat = np.ascontiguousarray(image.reshape(*image.shape[:2], -1))
        flat, label = slices.move(flat, label, streams[_MOVE], keep=location.held is not None)
        image = flat.reshape(*flat.shape[:2], plan.slices, plan.channels)
        # The paster works on the scan's own axes; both are views, so it writes to these arrays.
        self._change_lesions(np.moveaxis(np.moveaxis(image, 2, axis), -1, 0), np.moveaxis(label, 2, axis), streams)
        seeds = [
            np.random.SeedSequence(streams[_CHANGE].entropy, spawn_key=(*streams[_CHANGE].spawn_key, index))
            for index in range(plan.channels)
        ]
        for index, seed in enumerate(seeds):
            image[..., index] = slices.change(np.ascontiguousarray(image[..., index]), seed)
        image = network_input(np.moveaxis(image, 2, axis), plan)
        return np.ascontiguousarray(image), np.ascontiguousarray(label[..., plan.slices // 2])

    def _change_lesions(
        self, channels: np.ndarray, label: np.ndarray, streams: Sequence[np.random.SeedSequence]
    ) -> None:
        rng = np.random.default_rng(streams[_PASTE])
        share = self._config.lesion_removal_share
        if share and rng.random() < share:
            remove_lesions(channels, label, rng, spacing_mm=self._plan.spacing_mm)
        if self._paster is not None and rng.random() < self._config.copy_paste_share:
            self._paster.paste(channels, label, rng)
