"""What a dataset looks like: the figures that the plan is derived from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segment.data.cases import Case, Dataset
from segment.data.geometry import canonical_spacing, nonzero_box
from segment.data.scan import read_scan, to_canonical
from segment.progress import progress_bar


@dataclass(frozen=True)
class Fingerprint:
    """Figures of a dataset on canonical (RAS) axes.

    Attributes:
        cases: Number of cases measured.
        channels: Channels per case.
        spacing_mm: Median voxel spacing per axis.
        shape: Median shape per axis of the non-zero box, in voxels of `spacing_mm`.
        foreground_share: Foreground voxels of any class over all voxels of the non-zero boxes, pooled over cases, in
            [0, 1].
    """

    cases: int
    channels: int
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    foreground_share: float


@dataclass(frozen=True)
class _Measure:
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, ...]
    foreground: int


def _measure(case: Case, values: tuple[int, ...]) -> _Measure:
    scan = read_scan(case, with_label=True)
    image = to_canonical(scan.image, scan.grid.affine)
    box = nonzero_box(image)
    foreground = 0
    if scan.label is not None:
        label = to_canonical(scan.label, scan.grid.affine)[tuple(slice(*ends) for ends in box)]
        foreground = int(np.isin(label, values).sum())
    return _Measure(canonical_spacing(scan.grid), tuple(stop - start for start, stop in box), foreground)


def fingerprint(dataset: Dataset, *, workers: int) -> Fingerprint:
    """Reads every case once, `workers` at a time, and takes medians over the cases.

    Args:
        dataset: A checked dataset with at least one case.
        workers: Threads; each holds one case in memory.

    Raises:
        InputError: A file cannot be read; names the case and the file.
    """
    values = tuple(dataset.label_values.values())
    measures = []
    with progress_bar("Measuring cases", len(dataset.cases)) as bar, ThreadPoolExecutor(workers) as pool:
        for measure in pool.map(lambda case: _measure(case, values), dataset.cases):
            measures.append(measure)
            bar.advance()
    spacing = np.median([measure.spacing_mm for measure in measures], axis=0)
    # Shapes are compared in mm: a scan of half the spacing has twice the voxels of the same head.
    extent_mm = np.median([np.multiply(measure.shape, measure.spacing_mm) for measure in measures], axis=0)
    x, y, z = (max(1, round(float(count))) for count in extent_mm / spacing)
    return Fingerprint(
        cases=len(measures),
        channels=len(dataset.channel_names),
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        shape=(x, y, z),
        foreground_share=sum(m.foreground for m in measures) / sum(int(np.prod(m.shape)) for m in measures),
    )
