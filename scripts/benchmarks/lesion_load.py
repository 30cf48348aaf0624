"""Whether what a network marks depends on how many lesions a patient has: large ones are painted over.

For a run that was trained on one half of each patient (`data.validation_half`) and whose last channel is T1, which
tells where normal white matter is. In the half that it has not seen, lesions above 200 mm³ are replaced by normal
tissue of the same scan, and false positives elsewhere are counted before and after. A network that judges each place
by itself gives about the same number; one whose norms take statistics of the whole patch need not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from benchmarks.options import benchmark_parser
from benchmarks.timing import table
from segment.commands.arguments import import_tensorflow
from segment.config import load_config
from segment.data.cases import find_dataset
from segment.data.orientation import Half, keep_half
from segment.data.scan import Scan, read_scan
from segment.errors import InputError
from segment.evaluation.lesions import find_components, find_overlaps
from segment.progress import progress_bar

if TYPE_CHECKING:
    from segment.inference.predictor import Predictor

THRESHOLDS = (0.5, 0.9)
LARGE_MM3 = 200.0
MARGIN = 2  # voxels around a lesion that go with it: its edge is brighter than tissue too
AWAY = 3  # voxels: tissue at least so far from any lesion is normal
TISSUE = (65.0, 90.0)  # percentiles of the last channel, T1: white matter
TEXTURE = 0.6  # standard deviation in voxels of the noise that is painted
_CUBE = np.ones((3, 3, 3), bool)


def main(arguments: Sequence[str]) -> int:
    """Prints two rows for each case."""
    options = _parser().parse_args(arguments)
    half = load_config(options.run / "config.yaml").data.validation_half
    if half is None:
        raise InputError(f"{options.run}: expected a run with data.validation_half, found one without")
    cases = find_dataset(options.data, layout="auto").cases
    import_tensorflow()
    from segment.inference.predictor import Predictor

    predictor = Predictor.load([options.run])
    rows = []
    with progress_bar("scans", len(cases)) as bar:
        for case in cases:
            scan = read_scan(case, with_label=True)
            for name, counts in false_positives_by_load(predictor, scan, half).items():
                rows.append([case.case_id, name, *counts])
            bar.advance()
    heads = [f"false positives at {threshold}" for threshold in THRESHOLDS]
    print(table(["case", "large lesions", *heads], rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("lesion_load", __doc__, "--run runs/ms --data DATASET")
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--data", type=Path, required=True, help="the dataset that it was trained on")
    return parser


def false_positives_by_load(predictor: Predictor, scan: Scan, half: Half) -> dict[str, list[int]]:
    """False positives that touch no lesion, in one half of a scan as it is and with its large lesions painted over.

    Args:
        predictor: One class.
        scan: With its label.
        half: Which the predictor has not seen.

    Returns:
        "as it is" and "painted over" -> their number at each of THRESHOLDS.

    Raises:
        InputError: The scan has no label, or cannot be predicted.
    """
    label = _label(scan)
    painted, where = paint_over(scan.image, label, voxel_mm3=scan.grid.voxel_mm3)
    counts = {}
    for name, whole in (("as it is", scan.image), ("painted over", painted)):
        image = whole.copy()
        keep_half(image, None, scan.grid.affine, half)
        found = predictor.predict(replace(scan, image=image))[..., 0]
        counts[name] = [strange(found >= threshold, label | where) for threshold in THRESHOLDS]
    return counts


def _label(scan: Scan) -> np.ndarray:
    if scan.label is None:
        raise InputError(f"case {scan.case_id}: expected a label, found none")
    return np.asarray(scan.label) > 0


def paint_over(image: np.ndarray, label: np.ndarray, *, voxel_mm3: float) -> tuple[np.ndarray, np.ndarray]:
    """The scan without its large lesions, and where they were.

    Args:
        image: float32 [x, y, z, channels], 0 outside the subject; the last channel tells tissues apart.
        label: Boolean [x, y, z].
        voxel_mm3: Volume of a voxel.

    Returns:
        A new image whose painted voxels have mean and 0.7 of the standard deviation of normal tissue in every channel,
        and boolean [x, y, z] of these voxels; the same image and none where no lesion is large.
    """
    lesions = find_components(label)
    large = np.append(False, lesions.n_voxels * voxel_mm3 > LARGE_MM3)[lesions.labels]
    where = ndimage.binary_dilation(large, _CUBE, iterations=MARGIN) & (image != 0).all(axis=-1)
    if not where.any():
        return image, where
    last = image[..., -1]
    low, high = np.percentile(last[last != 0], TISSUE)
    normal = (last > low) & (last < high) & ~ndimage.binary_dilation(label, _CUBE, iterations=AWAY)
    rng, result = np.random.default_rng(0), image.copy()
    for channel in range(image.shape[-1]):
        texture = ndimage.gaussian_filter(rng.normal(size=label.shape), TEXTURE)
        values = image[..., channel][normal]
        painted = values.mean() + 0.7 * values.std() * texture / texture.std()
        result[..., channel][where] = painted[where]
    return result, where


def strange(found: np.ndarray, known: np.ndarray) -> int:
    """How many components of a mask touch no known voxel."""
    predicted, there = find_components(found), find_components(known)
    return len(predicted) - len(np.unique(find_overlaps(there, predicted).pred))
