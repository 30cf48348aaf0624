"""Which operating point a prediction uses: the command line's, the run's own, or one chosen for an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segment.config import Config
from segment.config_inference import InferenceConfig
from segment.errors import InputError
from segment.evaluation.froc import Sweep, pool
from segment.files import read_json
from segment.inference.operating_point import FILE, add_sweeps, choose, counts_from, least_volume

ADVICE = "pass --threshold, or train the run again"


@dataclass(frozen=True)
class PointInUse:
    """What masks are made with.

    Attributes:
        threshold: Probability from which a voxel is foreground, in (0, 1).
        min_lesion_mm3: Smaller components are removed.
        source: Where they come from, in words.
        notes: What a reader should know, one sentence each.
        seen: SHA-256 of every file of the validation cases that chose it.
        min_peak: Components whose highest probability is below it are removed, in [0, 1); 0 removes none.
    """

    threshold: float
    min_lesion_mm3: float
    source: str
    notes: tuple[str, ...] = ()
    seen: frozenset[str] = frozenset()
    min_peak: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What the manifest and the report keep of it."""
        return {
            "threshold": self.threshold,
            "min_lesion_mm3": self.min_lesion_mm3,
            "min_peak": self.min_peak,
            "source": self.source,
        }


@dataclass(frozen=True)
class _Stored:
    threshold: float
    min_lesion_mm3: float
    min_peak: float
    chosen: bool
    notes: tuple[str, ...]
    n_scans: int
    counts: Sweep
    seen: frozenset[str]
    flips: bool | None  # None in files of before it was kept
    evaluation: dict[str, float] | None


def point_in_use(
    runs: Sequence[Path],
    model_hashes: Sequence[str],
    config: Config,
    *,
    threshold: float | None,
    max_fp_per_scan: float | None = None,
) -> PointInUse:
    """The operating point for one run or an ensemble.

    A threshold from the command line is used with the configured minimum volume and no peak. Else one run's
    operating_point.json is used as it is. The mean of several networks is another network than each of them: for an
    ensemble the counts of all its validation cases, which in cross-validation are each predicted by the network that
    has not seen them, are pooled and one point is chosen on them by the first run's rule and target. Without any file
    the configuration holds. With another target than a run's own, one run's point is chosen on its counts again.

    Args:
        runs: The run folders.
        model_hashes: SHA-256 of each run's model.keras.
        config: The first run's.
        threshold: From the command line, or None.
        max_fp_per_scan: False positives a scan that replace the first run's target, or None.

    Raises:
        InputError: A file is broken or belongs to another model than the one beside it, or there is a target and no
            file; names the file.
    """
    options = config.inference.model_copy(update={"min_lesion_mm3": least_volume(config)})
    if threshold is not None:
        return PointInUse(threshold, options.min_lesion_mm3, "--threshold")
    paths = [(run / FILE, digest) for run, digest in zip(runs, model_hashes, strict=True)]
    stored = [read_point(path, model_sha256=digest) for path, digest in paths if path.exists()]
    if not stored:
        if max_fp_per_scan is not None:
            raise InputError(f"--max-fp-per-scan: expected {paths[0][0]} to choose on, found none; {ADVICE}")
        return PointInUse(options.threshold, options.min_lesion_mm3, f"configuration: the run has no {FILE}")
    if len(runs) == 1 and max_fp_per_scan is None:
        (one,) = stored
        source = f"{FILE}, chosen on {_cases(one.n_scans)}" if one.chosen else "configuration"
        notes = (*one.notes, *_other_flips(stored, options))
        least = max(one.min_lesion_mm3, options.min_lesion_mm3)
        return PointInUse(one.threshold, least, source, notes, one.seen, one.min_peak)
    if max_fp_per_scan is not None:
        rule = options.operating_point.model_copy(update={"max_fp_per_scan": max_fp_per_scan})
        options = options.model_copy(update={"operating_point": rule})
    return _chosen(stored, options, n_runs=len(runs))


def _chosen(stored: Sequence[_Stored], options: InferenceConfig, *, n_runs: int) -> PointInUse:
    """One point for the validation cases of all runs together. Raises InputError where they count differently."""
    ways = [one.evaluation for one in stored if one.evaluation is not None]
    for other in ways[1:]:
        if other != ways[0]:
            raise InputError(f"the runs' lesions were counted with {ways[0]} and with {other}; {ADVICE} alike")
    n_scans = sum(one.n_scans for one in stored)
    points = pool([add_sweeps([one.counts for one in stored])], n_scans=n_scans)
    choice = choose(points, options.operating_point, n_scans=n_scans)
    without = n_runs - len(stored)
    notes = (*choice.notes, *[f"{without} of {n_runs} runs have no {FILE}: chosen without them"][: bool(without)])
    notes += _other_flips(stored, options)
    seen = frozenset(digest for one in stored for digest in one.seen)
    if choice.point is None:
        return PointInUse(options.threshold, options.min_lesion_mm3, "configuration", notes, seen)
    together = f" of {len(stored)} runs together" if n_runs > 1 else ""
    target = f"at most {options.operating_point.max_fp_per_scan:g} false positives a scan"
    source = f"chosen for {target} on {_cases(n_scans)}{together}"
    point = choice.point
    return PointInUse(point.threshold, point.min_lesion_mm3, source, notes, seen, point.min_peak)


def read_point(path: Path, *, model_sha256: str) -> _Stored:
    """Reads an operating_point.json. Raises InputError when it is broken or belongs to another model."""
    values = read_json(path)
    try:
        stored = _stored(values)
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise InputError(f"{path}: expected an operating point, found a fault: {cause!r}; {ADVICE}") from cause
    if values.get("model_sha256") != model_sha256:
        raise InputError(f"{path}: was chosen for another model than the model.keras beside it; {ADVICE}")
    return stored


def _stored(values: Mapping[str, Any]) -> _Stored:
    threshold, least = float(values["threshold"]), float(values["min_lesion_mm3"])
    peak = float(values.get("min_peak", 0.0))  # files of before peaks have none
    n_scans = int(values["counts"]["n_scans"])
    if not 0.0 < threshold < 1.0 or not least >= 0.0 or not 0.0 <= peak < 1.0 or n_scans < 1:
        raise ValueError(f"threshold {threshold}, min_lesion_mm3 {least}, min_peak {peak}, {n_scans} scans")
    return _Stored(
        threshold,
        least,
        peak,
        bool(values["chosen"]),
        tuple(str(note) for note in values["notes"]),
        n_scans,
        counts_from(values["counts"]),
        frozenset(str(digest) for digest in values["inputs"].values()),
        values.get("flips"),
        values.get("evaluation"),
    )


def _other_flips(stored: Sequence[_Stored], options: InferenceConfig) -> tuple[str, ...]:
    """A note where the mean over mirrored copies is another predictor than the one that the point was chosen for."""
    others = sum(one.flips is not None and one.flips != options.flips for one in stored)
    if not others:
        return ()
    words = ("without", "with") if options.flips else ("with", "without")
    return (f"chosen {words[0]} flips and used {words[1]} them: recall and false positives will be others",)


def _cases(count: int) -> str:
    return f"{count} validation case{'s' * (count != 1)}"
