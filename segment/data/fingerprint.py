"""What a dataset looks like: the figures that the plan is derived from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segment.data.cases import Case, Dataset
from segment.data.census import lesion_load
from segment.data.geometry import canonical_spacing, nonzero_box
from segment.data.scan import read_scan, to_canonical
from segment.progress import in_threads

PERCENTILES = (0.5, 50.0, 99.5)
AIR = -500.0  # a channel with darker voxels than this holds Hounsfield units
CT_NAMES = {"ct", "cta", "ctp", "ncct", "nect", "cect", "cbct", "hu"}
VOXELS_A_CASE = 5000  # of each channel inside and as many outside lesions: percentiles of a dataset need no more


@dataclass(frozen=True)
class Intensities:
    """Percentiles of one channel over all cases, each counting alike, in the files' own units.

    Attributes:
        lesions: The 0.5th, 50th and 99.5th percentile inside lesions; None where no case has one.
        elsewhere: Of the voxels outside lesions that are not 0; None where there are none.
        window: The outer two of `lesions`, and mean and standard deviation inside lesions after clipping at them; None
            where that deviation is 0 or no case has a lesion.
    """

    lesions: tuple[float, ...] | None
    elsewhere: tuple[float, ...] | None
    window: tuple[float, float, float, float] | None = None

    def is_ct(self, name: str) -> bool:
        """Whether a channel is CT: its name says so (CT, CTA, NCCT ...), or it holds values as low as air's -1000."""
        return bool(set(re.split(r"[^a-z0-9]+", name.lower())) & CT_NAMES) or self.has_air

    @property
    def has_air(self) -> bool:
        """Whether there are values as low as air's -1000."""
        return self.elsewhere is not None and self.elsewhere[0] <= AIR


@dataclass(frozen=True)
class Fingerprint:
    """Figures of a dataset on canonical (RAS) axes.

    Attributes:
        cases: Number of cases measured.
        channels: Channels per case.
        spacing_mm: Median voxel spacing per axis.
        spacing_range_mm: Smallest and largest voxel spacing per axis.
        shape: Median shape per axis of the non-zero box, in voxels of `spacing_mm`.
        voxels: Of all non-zero boxes together, in voxels of `spacing_mm`.
        foreground_share: Foreground voxels of any class over all voxels of the non-zero boxes, pooled over cases, in
            [0, 1].
        lesion_mm3: Volume of each 26-connected component of each class in any case, smallest first.
        intensities: Of each channel.
    """

    cases: int
    channels: int
    spacing_mm: tuple[float, float, float]
    spacing_range_mm: tuple[tuple[float, float], ...]
    shape: tuple[int, int, int]
    voxels: int
    foreground_share: float
    lesion_mm3: tuple[float, ...]
    intensities: tuple[Intensities, ...]


@dataclass(frozen=True)
class _Measure:
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, ...]
    foreground: int
    lesion_mm3: tuple[float, ...]
    samples: list[tuple[np.ndarray, np.ndarray]]  # of each channel: values inside lesions and elsewhere


def target_spacing(spacing_mm: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The spacing of the network's grid: the median per canonical axis.

    So the coarse axis of thick slices keeps its spacing: finer voxels across them would hold nothing that was measured,
    and coarser ones within them would lose lesions.

    Args:
        spacing_mm: Of each case, per canonical axis; at least one.
    """
    x, y, z = np.median(np.asarray(spacing_mm, float), axis=0)
    return float(x), float(y), float(z)


def _measure(case: Case, values: tuple[int, ...]) -> _Measure:
    scan = read_scan(case, with_label=True)
    image = to_canonical(scan.image, scan.grid.affine)
    box = nonzero_box(image)
    inside = tuple(slice(*ends) for ends in box)
    label = np.zeros([stop - start for start, stop in box], np.uint8)
    if scan.label is not None:
        label = to_canonical(scan.label, scan.grid.affine)[inside]
    lesions = np.isin(label, values)
    image = image[inside]
    samples = [
        (_sample(channel[lesions]), _sample(channel[~lesions & (channel != 0)]))
        for channel in np.moveaxis(image, -1, 0)
    ]
    return _Measure(
        spacing_mm=canonical_spacing(scan.grid),
        shape=label.shape,
        foreground=int(np.count_nonzero(lesions)),
        lesion_mm3=lesion_load(label, values, voxel_mm3=scan.grid.voxel_mm3).volumes_mm3,
        samples=samples,
    )


def _sample(values: np.ndarray) -> np.ndarray:
    """Evenly spaced values, so that the same case always gives the same ones."""
    return values[:: max(1, -(-values.size // VOXELS_A_CASE))].copy()


def fingerprint(dataset: Dataset, *, workers: int) -> Fingerprint:
    """Reads every case once, `workers` at a time, and takes medians over the cases.

    Args:
        dataset: A checked dataset with at least one case.
        workers: Threads; each holds one case in memory.

    Raises:
        InputError: A file cannot be read; names the case and the file.
    """
    values = tuple(dataset.label_values.values())
    measures = in_threads("Measuring cases", lambda case: _measure(case, values), dataset.cases, workers=workers)
    return _summary(measures, len(dataset.channel_names))


def _summary(measures: Sequence[_Measure], channels: int) -> Fingerprint:
    spacings = np.array([measure.spacing_mm for measure in measures])
    spacing = target_spacing(spacings.tolist())
    # Shapes are compared in mm: a scan of half the spacing has twice the voxels of the same head.
    extents_mm = np.array([np.multiply(measure.shape, measure.spacing_mm) for measure in measures])
    x, y, z = (max(1, round(float(count))) for count in np.median(extents_mm, axis=0) / spacing)
    voxels = sum(int(np.prod(measure.shape)) for measure in measures)
    return Fingerprint(
        cases=len(measures),
        channels=channels,
        spacing_mm=spacing,
        spacing_range_mm=tuple((float(axis.min()), float(axis.max())) for axis in spacings.T),
        shape=(x, y, z),
        voxels=round(float(extents_mm.prod(axis=1).sum() / np.prod(spacing))),
        foreground_share=sum(measure.foreground for measure in measures) / voxels,
        lesion_mm3=tuple(sorted(volume for measure in measures for volume in measure.lesion_mm3)),
        intensities=tuple(
            _intensities(*(np.concatenate([m.samples[channel][part] for m in measures]) for part in (0, 1)))
            for channel in range(channels)
        ),
    )


def _intensities(lesions: np.ndarray, elsewhere: np.ndarray) -> Intensities:
    inner, outer = (
        tuple(float(value) for value in np.percentile(values, PERCENTILES)) if values.size else None
        for values in (lesions, elsewhere)
    )
    if inner is None:
        return Intensities(None, outer)
    clipped = np.clip(lesions.astype(np.float64), inner[0], inner[-1])
    deviation = float(clipped.std())
    return Intensities(inner, outer, (inner[0], inner[-1], float(clipped.mean()), deviation) if deviation else None)
