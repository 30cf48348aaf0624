"""The tables of `ablation.py`: what each change finds within a budget of false positives, and at which point."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.timing import table
from segment.evaluation.froc import Point, Sweep, pool
from segment.inference.operating_point import counts_from

BUDGETS = (3, 7, 15)  # false positives in a half
RECIPE = "the recipe"


def best_point(counts: Sweep, budget: int, *, volumes: bool = True, peaks: bool = True) -> Point | None:
    """The point of one case that finds most small lesions with at most so many false positives; None: all have more.

    Args:
        counts: Of the case.
        budget: False positives.
        volumes: Whether points with a least volume above the configured one count.
        peaks: Whether points with a least peak count.
    """
    plain = counts.min_volumes_mm3[0]
    points = [
        point
        for point in pool([counts], n_scans=1)
        if point.fp <= budget and (volumes or point.min_lesion_mm3 == plain) and (peaks or not point.min_peak)
    ]
    return max(points, key=lambda point: (_small(point, counts), -point.fp), default=None)


def found_within(counts: Sweep, budget: int, *, volumes: bool = True, peaks: bool = True) -> int:
    """Small lesions that `best_point` finds; 0 where there is none."""
    point = best_point(counts, budget, volumes=volumes, peaks=peaks)
    return 0 if point is None else _small(point, counts)


def _small(point: Point, counts: Sweep) -> int:
    return round((point.small_lesion_recall or 0.0) * counts.n_small)


def ablation_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a variant, then what threshold, volume and peak are worth to the recipe; sums over its runs."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs.values():
        groups.setdefault(run["variant"], []).append(run)
    if not groups:
        return "no run has ended yet"
    rows = [_row(variant, group, volumes=True, peaks=True) for variant, group in groups.items()]
    if RECIPE in groups:
        own = groups[RECIPE]
        rows.append(_row(f"{RECIPE}, threshold and least volume", own, volumes=True, peaks=False))
        rows.append(_row(f"{RECIPE}, threshold alone", own, volumes=False, peaks=False))
    head = ["change", "runs", "steps", *(f"small lesions at {budget} false positives" for budget in BUDGETS)]
    return table([*head, "Dice at 0.5", "false positives by load at 0.5"], rows)


def point_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """What the recipe's networks find at 0.5, and at the best point within each budget; sums over the runs."""
    counts = [counts_from(run["counts"]) for run in runs.values() if run["variant"] == RECIPE]
    if not counts:
        return "the recipe has not been run yet"
    choices = {"0.5": [_at_half(one) for one in counts]}
    choices |= {f"best within {budget}": [best_point(one, budget) for one in counts] for budget in BUDGETS}
    rows = []
    for name, points in choices.items():
        chosen = [(point, one) for point, one in zip(points, counts, strict=True) if point is not None]
        small, false = sum(_small(*pair) for pair in chosen), sum(point.fp for point, _ in chosen)
        rows.append([name, f"{small} of {sum(one.n_small for one in counts)}", false])
    return table(["operating point", "small lesions", f"false positives in {len(counts)} halves"], rows)


def _at_half(counts: Sweep) -> Point:
    plain = (0.5, counts.min_volumes_mm3[0], 0.0)
    return next(one for one in pool([counts], n_scans=1) if (one.threshold, one.min_lesion_mm3, one.min_peak) == plain)


def _row(name: str, runs: Sequence[Mapping[str, Any]], *, volumes: bool, peaks: bool) -> list[object]:
    counts = [counts_from(run["counts"]) for run in runs]
    n_small = sum(one.n_small for one in counts)
    found = (sum(found_within(one, budget, volumes=volumes, peaks=peaks) for one in counts) for budget in BUDGETS)
    steps = round(statistics.fmean(run["steps"] for run in runs))
    dice = _mean(run["dice"] for run in runs)
    return [name, len(runs), steps, *(f"{hits} of {n_small}" for hits in found), dice, _by_load(runs)]


def _by_load(runs: Sequence[Mapping[str, Any]]) -> str:
    """Sums over the runs: with and without large lesions; "" where they were not counted."""
    if not all("load" in run for run in runs):
        return ""
    as_it_is, painted = (sum(run["load"][name][0] for run in runs) for name in ("as it is", "painted over"))
    return f"{as_it_is} to {painted}"


def _mean(values: Iterable[float | None]) -> float:
    return statistics.fmean(0.0 if value is None else float(value) for value in values)
