"""Made-up pairs of a label and a prediction with lesions of mixed sizes, for the benchmarks of the evaluation."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

REACH = 20  # voxels from a lesion's centre, which no lesion exceeds


def make_pair(shape: tuple[int, int, int], lesions: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks, uint8 [x, y, z], column by column as NIfTI files hold them.

    Lesions are ellipsoids with radii of 0.7 to 18 voxels, log-normal as lesion loads are. About 65 % are in both masks,
    shifted by up to a voxel and of another size in the prediction; 20 % in the label only, 15 % in the prediction.

    Args:
        shape: Voxels along each axis, more than 2 * REACH each.
        lesions: How many are drawn; some touch and become one.
        seed: The same seed gives the same masks.
    """
    random = np.random.default_rng(seed)
    label, prediction = (np.zeros(shape, np.uint8, order="F") for _ in range(2))
    places = np.indices((2 * REACH + 1,) * 3) - REACH
    for _ in range(lesions):
        radius = float(np.clip(random.lognormal(0.9, 0.7), 0.7, 18))
        centre = [int(random.integers(REACH, size - REACH)) for size in shape]
        axes = random.uniform(0.7, 1.1, 3)
        box = tuple(slice(place - REACH, place + REACH + 1) for place in centre)
        kind = random.random()
        if kind < 0.85:
            label[box] |= _ellipsoid(places, np.zeros(3), radius * axes)
        if kind < 0.65 or kind >= 0.85:
            shift = random.integers(-1, 2, 3)
            prediction[box] |= _ellipsoid(places, shift, radius * axes * random.uniform(0.7, 1.2))
    return label, prediction


def _ellipsoid(places: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    parts = ((places[axis] - centre[axis]) / radii[axis] for axis in range(3))
    return (sum(part**2 for part in parts) <= 1).astype(np.uint8)


def write_cases(folder: Path, cases: int, shape: tuple[int, int, int], lesions: int) -> None:
    """Writes `labels`, `predictions` and `images` of so many cases; the scan is one file with a link for each case."""
    for name in ("labels", "predictions", "images"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    scan = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(random.integers(0, 400, shape).astype(np.int16), np.eye(4)), scan)
    for number in range(cases):
        name = f"case{number:03d}.nii.gz"
        for kind, mask in zip(("labels", "predictions"), make_pair(shape, lesions, seed=number), strict=True):
            nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / kind / name)
        (folder / "images" / name).symlink_to(scan)
