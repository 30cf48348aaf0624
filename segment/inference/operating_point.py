"""The operating point: threshold, smallest predicted lesion and the peak that a predicted lesion must reach.

It is chosen on the validation cases, by the highest recall of small lesions among the points with at most the target of
false positives a scan, and kept with the model. Several classes share one point; each is binarised alone and their
counts are pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from segment.config import Config
from segment.config_inference import OperatingPointConfig
from segment.data.scan import Grid
from segment.errors import InputError
from segment.evaluation.froc import THRESHOLDS, Point, Rule, Sweep, choose_point, pool, sweep_case
from segment.evaluation.operating_chart import write_operating_plot
from segment.evaluation.page import page_labels
from segment.files import write_json
from segment.inference.calibration import Reliability

FILE, PLOT = "operating_point.json", "operating_point.svg"
# The least volumes that are tried for predicted lesions; beyond 20 mm3 the small lesions themselves would go.
MIN_VOLUMES_MM3 = (0.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
# The highest probability that a predicted lesion must reach; close to 1, where an overconfident network's values crowd.
MIN_PEAKS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
FEW_CASES = 5
COUNTED_BY = ("small_mm3", "min_lesion_mm3", "match_iou")  # of the section evaluation: what counts depend on


@dataclass(frozen=True)
class Choice:
    """What was chosen on some cases.

    Attributes:
        point: None where no point finds any lesion.
        chosen_by: `small_lesion_recall`, `recall`, or `fewest_fp` where the target cannot be met; "" without a point.
        notes: What a reader should know about it, one sentence each.
    """

    point: Point | None
    chosen_by: str
    notes: tuple[str, ...]


def choose(points: Sequence[Point], options: OperatingPointConfig, *, n_scans: int) -> Choice:
    """The point that the rule picks, or the nearest thing to it, said in a note.

    Where no point under the target finds a small lesion, or there is none, the recall of all lesions decides; where
    none under the target finds any, the fewest false positives among those that find one.

    Args:
        points: Of validation cases, all thresholds, minimum volumes and peaks.
        options: Rule and target.
        n_scans: How many cases they are of.
    """
    target = f"{options.max_fp_per_scan:g} false positives a scan"
    few = [f"chosen on {n_scans} validation case{'s' * (n_scans > 1)}: others may do worse"] * (n_scans < FEW_CASES)
    if points[0].recall is None:
        return Choice(None, "", ("the validation cases hold no lesion, so no operating point could be chosen",))
    rules: tuple[Rule, ...] = (options.rule,) if options.rule == "recall" else (options.rule, "recall")
    without = points[0].small_lesion_recall is None
    why = "the validation cases hold no small lesion" if without else f"no small lesion is found at up to {target}"
    for rule in rules:
        if getattr(points[0], rule) is None:
            continue
        point = choose_point(points, rule=rule, max_fp_per_scan=options.max_fp_per_scan)
        if point is not None and getattr(point, rule) > 0:
            instead = [f"{why}: chosen by the recall of all"] * (rule != rules[0])
            return Choice(point, rule, tuple(instead + few))
    finding = [point for point in points if point.recall]
    if not finding:
        return Choice(None, "", ("no threshold finds a lesion of the validation cases: no operating point was chosen",))
    nearest = min(
        finding, key=lambda point: (point.fp, -point.tp, -point.threshold, point.min_lesion_mm3, point.min_peak)
    )
    missed = f"no point with at most {target} finds a lesion: this is the nearest, with {nearest.fp_per_scan:.2f}"
    return Choice(nearest, "fewest_fp", (missed, *few))


def least_volume(config: Config) -> float:
    """Predicted lesions below so many mm3 are removed whatever the point is.

    What the evaluation does not count must not be in the masks either, for there nothing else removes it.
    """
    return max(config.inference.min_lesion_mm3, config.evaluation.min_lesion_mm3)


class PointSearch:
    """Counts validation cases over thresholds, minimum volumes and peaks, and voxels for the calibration."""

    def __init__(self, config: Config) -> None:
        options = config.inference
        self._config = config
        self.thresholds = tuple(sorted({*THRESHOLDS, options.threshold}))
        least = least_volume(config)
        self.min_volumes_mm3 = (least, *(volume for volume in MIN_VOLUMES_MM3 if volume > least))
        self.min_peaks = MIN_PEAKS if options.operating_point.peaks else MIN_PEAKS[:1]
        self._sweeps: list[Sweep] = []
        self._cases: set[str] = set()
        self._reliability = Reliability()

    def add(self, case_id: str, label: np.ndarray, probability: np.ndarray, grid: Grid) -> Sweep:
        """Adds one class of a case; call it once for each class.

        Args:
            label: Boolean [x, y, z].
            probability: float32 [x, y, z] in [0, 1].
            grid: Of both.

        Returns:
            The counts at the thresholds of a report, without a minimum volume beyond `least_volume` or a peak.
        """
        sweep = sweep_case(
            label,
            probability,
            voxel_mm3=grid.voxel_mm3,
            config=self._config.evaluation,
            thresholds=self.thresholds,
            min_volumes_mm3=self.min_volumes_mm3,
            min_peaks=self.min_peaks,
        )
        self._sweeps.append(sweep)
        self._cases.add(case_id)
        self._reliability.add(label, probability)
        rows = [self.thresholds.index(threshold) for threshold in THRESHOLDS]
        part = {name: getattr(sweep, name)[rows, :1, :1] for name in ("tp", "fp", "small_tp")}
        least, peak = self.min_volumes_mm3[:1], self.min_peaks[:1]
        return replace(sweep, thresholds=THRESHOLDS, min_volumes_mm3=least, min_peaks=peak, **part)

    def finish(self, *, model_sha256: str, inputs: Mapping[str, str]) -> dict[str, Any]:
        """The content of operating_point.json; at least one case was added.

        Args:
            model_sha256: Of the model file, which the point belongs to.
            inputs: SHA-256 by path of the cases' files.
        """
        options = self._config.inference
        counts = add_sweeps(self._sweeps)
        n_scans = len(self._cases)
        points = pool([counts], n_scans=n_scans)
        choice = choose(points, options.operating_point, n_scans=n_scans)
        configured = _at(points, options.threshold, self.min_volumes_mm3[0])
        point = choice.point or configured
        calibration = asdict(self._reliability.fit())
        temperature = calibration["temperature"]
        return {
            "threshold": point.threshold,
            "min_lesion_mm3": point.min_lesion_mm3,
            "min_peak": point.min_peak,
            "chosen": choice.point is not None,
            "chosen_by": choice.chosen_by,
            "notes": list(choice.notes),
            "rule": options.operating_point.rule,
            "max_fp_per_scan": options.operating_point.max_fp_per_scan,
            "flips": options.flips,
            "evaluation": self._config.evaluation.model_dump(mode="json", include=set(COUNTED_BY)),
            "at_point": asdict(point),
            "at_configured": asdict(configured),
            "calibration": calibration
            | {
                "threshold_calibrated": None if temperature is None else _scaled(point.threshold, temperature),
                "applied": False,
                "meaning": "p' = sigmoid(logit(p) / temperature) on voxels of p >= 0.01; monotone, so no mask changes "
                "with it, and the threshold and the written probabilities are the network's own",
            },
            "model_sha256": model_sha256,
            "cases": sorted(self._cases),
            "inputs": dict(inputs),
            "counts": counts_json(counts, n_scans=n_scans),
        }


def write_operating_point(run_dir: Path, values: Mapping[str, Any]) -> None:
    """Writes operating_point.json and its plot, operating_point.svg. Raises InputError when it cannot."""
    write_json(run_dir / FILE, values)
    write_operating_plot(run_dir / PLOT, values, page_labels("en"))


def point_in_words(threshold: float, min_lesion_mm3: float, min_peak: float) -> str:
    """What masks are made with, for the terminal; nothing is said of a peak of 0, which removes nothing."""
    peak = f" in lesions that reach {min_peak:g}" if min_peak > 0 else ""
    return f"threshold {threshold:g}{peak}, predictions from {min_lesion_mm3:g} mm3"


def describe(values: Mapping[str, Any]) -> list[str]:
    """The chosen point in one line, and its notes, for the terminal."""
    point = values["at_point"]
    n_scans = values["counts"]["n_scans"]
    recall = point["small_lesion_recall"]
    small = "no small lesions" if recall is None else f"small-lesion recall {recall:.2f}"
    what = "operating point" if values["chosen"] else "as configured"
    words = point_in_words(point["threshold"], point["min_lesion_mm3"], point["min_peak"])
    line = f"{what}: {words}: {small}, "
    line += f"{point['fp_per_scan']:.2f} false positives a scan on {n_scans} validation case{'s' * (n_scans != 1)}"
    return [line, *values["notes"]]


def add_sweeps(sweeps: Sequence[Sweep]) -> Sweep:
    """The sum of counts over cases, classes or runs, at the thresholds, volumes and peaks that all of them have."""

    def shared(axis: str) -> tuple[float, ...]:
        return tuple(value for value in getattr(sweeps[0], axis) if all(value in getattr(one, axis) for one in sweeps))

    thresholds, volumes, peaks = shared("thresholds"), shared("min_volumes_mm3"), shared("min_peaks")
    if not (thresholds and volumes and peaks):
        raise InputError("the runs' operating points share no threshold, minimum volume or peak; pass --threshold")

    def total(name: str) -> np.ndarray:
        parts = (
            getattr(one, name)[
                np.ix_(
                    [one.thresholds.index(value) for value in thresholds],
                    [one.min_volumes_mm3.index(value) for value in volumes],
                    [one.min_peaks.index(value) for value in peaks],
                )
            ]
            for one in sweeps
        )
        return np.sum(list(parts), axis=0)

    n_gt, n_small = sum(one.n_gt for one in sweeps), sum(one.n_small for one in sweeps)
    return Sweep(thresholds, volumes, peaks, n_gt, n_small, total("tp"), total("fp"), total("small_tp"))


def counts_json(counts: Sweep, *, n_scans: int) -> dict[str, Any]:
    """Counts as plain values; `counts_from` reads them back."""
    return {
        "thresholds": list(counts.thresholds),
        "min_volumes_mm3": list(counts.min_volumes_mm3),
        "min_peaks": list(counts.min_peaks),
        "n_scans": n_scans,
        "n_lesions": counts.n_gt,
        "n_small": counts.n_small,
        **{name: getattr(counts, name).tolist() for name in ("tp", "fp", "small_tp")},
    }


def counts_from(values: Mapping[str, Any]) -> Sweep:
    """Counts from plain values; those of before peaks, without `min_peaks`, are read as with a peak of 0.

    Raises KeyError, TypeError or ValueError for broken ones.
    """
    thresholds = tuple(float(value) for value in values["thresholds"])
    volumes = tuple(float(value) for value in values["min_volumes_mm3"])
    peaks = tuple(float(value) for value in values.get("min_peaks", (0.0,)))
    tables = {name: np.array(values[name], np.int64) for name in ("tp", "fp", "small_tp")}
    if "min_peaks" not in values:
        tables = {name: table[..., np.newaxis] for name, table in tables.items()}
    if any(table.shape != (len(thresholds), len(volumes), len(peaks)) for table in tables.values()):
        raise ValueError(f"expected tables of {len(thresholds)} by {len(volumes)} by {len(peaks)} counts")
    return Sweep(thresholds, volumes, peaks, int(values["n_lesions"]), int(values["n_small"]), **tables)


def _at(points: Sequence[Point], threshold: float, min_lesion_mm3: float) -> Point:
    """The point without a peak, for the configuration has none."""
    wanted = (threshold, min_lesion_mm3, 0.0)
    return next(point for point in points if (point.threshold, point.min_lesion_mm3, point.min_peak) == wanted)


def _scaled(probability: float, temperature: float) -> float:
    return float(expit(logit(probability) / temperature))
