"""Which operating point a prediction uses: the command line's, the run's own, or one chosen for an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segment.config import Config
from segment.errors import InputError
from segment.evaluation.froc import Sweep, pool
from segment.files import read_json
from segment.inference.operating_point import FILE, add_sweeps, choose, counts_from

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


def point_in_use(
    runs: Sequence[Path], model_hashes: Sequence[str], config: Config, *, threshold: float | None
) -> PointInUse:
    """The operating point for one run or an ensemble.

    A threshold from the command line is used with the configured minimum volume and no peak. Else one run's
    operating_point.json is used as it is. The mean of several networks is another network than each of them: for an
    ensemble the counts of all its validation cases, which in cross-validation are each predicted by the network that
    has not seen them, are pooled and one point is chosen on them by the first run's rule and target. Without any file
    the configuration holds.

    Args:
        runs: The run folders.
        model_hashes: SHA-256 of each run's model.keras.
        config: The first run's.
        threshold: From the command line, or None.

    Raises:
        InputError: A file is broken or belongs to another model than the one beside it; names the file.
    """
    options = config.inference
    if threshold is not None:
        return PointInUse(threshold, options.min_lesion_mm3, "--threshold")
    paths = [(run / FILE, digest) for run, digest in zip(runs, model_hashes, strict=True)]
    stored = [read_point(path, model_sha256=digest) for path, digest in paths if path.exists()]
    configured = PointInUse(options.threshold, options.min_lesion_mm3, f"configuration: the run has no {FILE}")
    if not stored:
        return configured
    seen = frozenset(digest for one in stored for digest in one.seen)
    if len(runs) == 1:
        (one,) = stored
        source = f"{FILE}, chosen on {_cases(one.n_scans)}" if one.chosen else "configuration"
        return PointInUse(one.threshold, one.min_lesion_mm3, source, one.notes, seen, one.min_peak)
    n_scans = sum(one.n_scans for one in stored)
    points = pool([add_sweeps([one.counts for one in stored])], n_scans=n_scans)
    choice = choose(points, options.operating_point, n_scans=n_scans)
    without = len(runs) - len(stored)
    notes = (*choice.notes, *[f"{without} of {len(runs)} runs have no {FILE}: chosen without them"][: bool(without)])
    if choice.point is None:
        return PointInUse(options.threshold, options.min_lesion_mm3, "configuration", notes, seen)
    source = f"chosen on {_cases(n_scans)} of {len(stored)} runs together"
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
    )


def _cases(count: int) -> str:
    return f"{count} validation case{'s' * (count != 1)}"
