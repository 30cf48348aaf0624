"""Augmentation options with everything off, and cutting patches from arrays. Not a test module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from data_helpers import make_test_plan, store_case

from segment.config import AugmentationConfig
from segment.data.augmentation import Augmenter
from segment.data.preprocessing import PreparedCase
from segment.data.sampling import PatchLocation

OFF: dict[str, object] = {"flip": False} | {
    name: 0 for name in AugmentationConfig.model_fields if name.endswith("_share")
}


def options(**changes: object) -> AugmentationConfig:
    """Everything off but for the changes."""
    return AugmentationConfig.model_validate({**OFF, **changes})


def augmenter(size: tuple[int, int, int], *, channels: int = 1, slices: int = 1, **changes: object) -> Augmenter:
    """For patches of 1 mm voxels; 2D with `size` of 1 along the last axis."""
    return Augmenter(options(**changes), plan_of(size, channels=channels, slices=slices), None)


def plan_of(size: tuple[int, int, int], *, channels: int = 1, slices: int = 1):  # type: ignore[no-untyped-def]
    """A 3D plan, or a 2D one where the last axis has one voxel."""
    return make_test_plan(patch_size=size, channels=channels, dimensions=2 if size[2] == 1 else 3, slices=slices)


def stored(folder: Path, image: np.ndarray, label: np.ndarray) -> PreparedCase:
    """A prepared case of class values 1 to 3."""
    return store_case(folder, image, label, values=(1, 2, 3))


def at(*start: int, held: tuple[tuple[int, int], ...] | None = None) -> PatchLocation:
    """A patch location in the only case."""
    x, y, z = start
    return PatchLocation(0, (x, y, z), held)


def seed(index: int) -> np.random.SeedSequence:
    """The seed of sample `index`."""
    return np.random.SeedSequence([5, index])
