"""Vessels and lesions of the made-up heads: the share of each voxel that they take, and where lesions fit."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from segment.data.phantom_anatomy import (
    DEEP_GREY,
    GREY,
    WHITE,
    Head,
    Points,
    Waves,
    capsule,
    length,
    soft,
    world_points,
)
from segment.data.scan import Grid

Place = tuple[slice, slice, slice]

MIN_LESION_VOXELS = 4
GAP_VOXELS = 2  # between lesions, so that each stays a component of its own
LOWEST_MM = -12.0  # no lesions in the brainstem and the cerebellum
HALF = 0.5 - 1e-6  # exactly half is common; rounding errors, which differ between machines, must not decide it
LESION_SUBSAMPLES = 4  # points per axis and voxel for a lesion's coverage
TRIES = 2000
VESSEL_SUBSAMPLES = 3
VESSEL_STEP_MM = 1.5
TOUCHING = np.ones((3, 3, 3), bool)  # 26 neighbours


def vessel_cover(rng: np.random.Generator, head: Head, grid: Grid) -> np.ndarray:
    """The share of each voxel that a bending tube takes, float64 [x, y, z]; it starts at the brain's surface."""
    outwards = rng.normal(size=3)
    outwards[2] = abs(outwards[2])
    outwards /= np.sqrt((outwards**2).sum())
    point = 0.97 * outwards * np.array(head.semi_axes_mm)
    heading = rng.normal(size=3) - rng.uniform(0.3, 2.5) * outwards
    radius = rng.uniform(0.75, 1.15)
    cover = np.zeros(grid.shape)
    for _ in range(int(rng.integers(10, 22))):
        heading = heading / np.sqrt((heading**2).sum()) + rng.normal(scale=0.22, size=3)
        end = point + VESSEL_STEP_MM * heading
        place = _box(grid, (point + end) / 2, VESSEL_STEP_MM + radius + 1)
        if place is not None:
            points = _sub_points(grid, place, VESSEL_SUBSAMPLES)
            share = _average(soft(capsule(points, tuple(point), tuple(end), radius, radius, 1.0)), VESSEL_SUBSAMPLES)
            cover[place] = np.maximum(cover[place], share)
        point = end
    return cover


class LesionSite:
    """Where lesions are put: white matter away from vessels and from each other."""

    def __init__(self, grid: Grid, shares: np.ndarray, vessels: np.ndarray, label: np.ndarray) -> None:
        self._grid = grid
        self._white = shares[..., WHITE]
        self._parenchyma = shares[..., [WHITE, GREY, DEEP_GREY]].sum(axis=-1)
        self._vessels = vessels
        self._label = label
        z = world_points(grid.affine, tuple(np.arange(size) for size in grid.shape))[2]
        home = (self._white > 0.6) & (vessels < 0.02) & (z > LOWEST_MM)
        self._depth = ndimage.distance_transform_edt(home, sampling=grid.spacing_mm)

    def add(self, rng: np.random.Generator, low_mm3: float, high_mm3: float) -> tuple[Place, np.ndarray]:
        """Adds one lesion to the label.

        Args:
            rng: Advanced by a number of draws that depends on how soon a place is found.
            low_mm3: Least volume of the lesion's voxels.
            high_mm3: Greatest volume.

        Returns:
            place: A box of voxels around it.
            cover: float64 of the box's shape, 0 to 1: the share of each voxel that it takes, for the signal.

        Raises:
            ValueError: No place for it was found.
        """
        radius = (3 * np.sqrt(low_mm3 * high_mm3) / (4 * np.pi)) ** (1 / 3)
        deepest = self._depth.max()
        for attempt in range(TRIES if deepest > 0 else 0):
            # Lesions lie well within white matter at first, then wherever there is room.
            enough = min(radius * rng.uniform(0.4, 1.0), 0.79 * deepest) * (1 - attempt / TRIES)
            candidates = np.argwhere(self._depth > enough)
            index = candidates[rng.integers(len(candidates))] + rng.uniform(-0.5, 0.5, size=3)
            centre = self._grid.affine[:3, :3] @ index + self._grid.affine[:3, 3]
            place = _box(self._grid, centre, 1.9 * radius + 1)
            if place is None:
                continue
            label, cover = self._shape(rng, place, centre, radius)
            if self._fits(place, label, low_mm3, high_mm3):
                self._label[place] |= label
                return place, cover
        raise ValueError(f"no room for a lesion of {low_mm3:.0f} to {high_mm3:.0f} mm3; ask for fewer or smaller ones")

    def _shape(
        self, rng: np.random.Generator, place: Place, centre: np.ndarray, radius: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """A bumpy ellipsoid that spares CSF: its voxels, bool, and its soft-edged share of each voxel, float64."""
        points = _sub_points(self._grid, place, LESION_SUBSAMPLES)
        offsets = [axis - c for axis, c in zip(points, centre, strict=True)]
        stretch = np.exp(rng.normal(scale=0.22, size=3))
        stretch /= stretch.prod() ** (1 / 3)
        along = rng.normal(size=3)
        along /= np.sqrt((along**2).sum())
        # An ellipsoid stretched along one random direction and, a little, along the axes: no eigenvectors are needed.
        run = sum(o * a for o, a in zip(offsets, along, strict=True))
        factor = rng.uniform(-0.35, 0.1)
        distance = length(*((o + factor * run * a) / s for o, a, s in zip(offsets, along, stretch, strict=True)))
        bumps = Waves.draw(rng, count=6, wavelength_mm=2.6 * radius)
        size = radius * (1 + factor) ** (1 / 3)  # the stretch along `along` changes the volume by 1 / (1 + factor)
        depth = size * (1 + 0.16 * bumps.value((offsets[0], offsets[1], offsets[2]))) - distance
        home = self._parenchyma[place]
        label = _average((depth > 0).astype(np.float64), LESION_SUBSAMPLES) * home >= HALF
        return label, _average(soft(depth), LESION_SUBSAMPLES) * home

    def _fits(self, place: Place, label: np.ndarray, low_mm3: float, high_mm3: float) -> bool:
        """Whether it has the volume asked for, is one piece, lies mostly in white matter, and keeps its distance."""
        count = int(label.sum())
        if count < MIN_LESION_VOXELS or not low_mm3 <= count * self._grid.voxel_mm3 <= high_mm3:
            return False
        if label.sum() > label[1:-1, 1:-1, 1:-1].sum():  # the box cuts it off
            return False
        around = ndimage.binary_dilation(np.pad(label, GAP_VOXELS), TOUCHING, iterations=GAP_VOXELS)
        wide = tuple(slice(p.start - GAP_VOXELS, p.stop + GAP_VOXELS) for p in place)
        if (self._label[wide][around] > 0).any() or (self._vessels[wide][around] > 0.1).any():
            return False
        pieces = ndimage.label(label, structure=TOUCHING)[1]
        return pieces == 1 and float(self._white[place][label].mean()) > 0.7


def _box(grid: Grid, centre: np.ndarray, radius: float) -> Place | None:
    """The voxels within `radius` mm of a world point along each axis; None where that leaves the volume."""
    index = (grid.affine[:3, :3].T / np.square(grid.spacing_mm)[:, None]) @ (centre - grid.affine[:3, 3])
    reach = radius / np.array(grid.spacing_mm)
    starts, stops = np.floor(index - reach).astype(int), np.ceil(index + reach).astype(int) + 1
    if (starts < GAP_VOXELS).any() or (stops > np.array(grid.shape) - GAP_VOXELS).any():
        return None
    i, j, k = (slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))
    return i, j, k


def _sub_points(grid: Grid, place: Place, subsamples: int) -> Points:
    steps = [p.start + (np.arange((p.stop - p.start) * subsamples) + 0.5) / subsamples - 0.5 for p in place]
    return world_points(grid.affine, tuple(steps))


def _average(values: np.ndarray, subsamples: int) -> np.ndarray:
    """The mean of each block of subsamples^3 values."""
    split = [part for size in values.shape for part in (size // subsamples, subsamples)]
    return values.reshape(split).mean(axis=(1, 3, 5))
