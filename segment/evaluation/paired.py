"""Two results of the same cases, paired: the difference of each figure, and the lesions that only one finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segment.config import EvaluationConfig
from segment.errors import InputError
from segment.evaluation.bootstrap import FEW_SCANS, LEVEL, interval, is_spread, resampled_sums
from segment.evaluation.counts import MACRO, case_counts, case_value, rates
from segment.evaluation.definitions import definitions, versions
from segment.evaluation.lesions import at_most, bin_names
from segment.evaluation.metrics import CaseResult

SIDES = ("first", "second")
LESION_COLUMNS = (
    "case_id",
    "class",
    "lesion_id",
    "volume_mm3",
    "size_bin",
    "centroid_world_mm",
    "found_first",
    "found_second",
    "iou_first",
    "iou_second",
    "score_max_first",
    "score_max_second",
)
_OUTCOMES = {(True, True): "both", (True, False): "first_only", (False, True): "second_only", (False, False): "neither"}


def compare_results(
    first: Sequence[CaseResult],
    second: Sequence[CaseResult],
    *,
    names: tuple[str, str],
    config: EvaluationConfig,
    seed: int,
) -> dict[str, Any]:
    """The content of comparison.json.

    Args:
        first, second: Results of the same cases and classes.
        names: What the two are called.
        config: As both were made with.
        seed: Of the resampling of cases; both sides are resampled together.

    Raises:
        InputError: The cases or classes differ, or there are none.
    """
    pairs = _paired(first, second)
    bins = bin_names(config.bin_edges_mm3)
    found = [_paired_counts(one.case, other.case, bins) for one, other in pairs]
    scans = {case_id: row for row, case_id in enumerate(dict.fromkeys(one.case["case_id"] for one, _ in pairs))}
    columns = list(found[0][0])
    tables = np.zeros((len(scans), 2, len(columns)))
    rows = [scans[one.case["case_id"]] for one, _ in pairs]
    np.add.at(tables, rows, [[list(side.values()) for side in both] for both in found])
    lesions = compared_lesions(first, second)
    return {
        "first": names[0],
        "second": names[1],
        "n_cases": len(scans),
        "figures": _figures(tables, columns, bins, config, seed, len(pairs)),
        "lesions": _lesion_counts(lesions, bins, config),
        "found_by_first_only": [row for row in lesions if row["found_first"] and not row["found_second"]],
        "found_by_second_only": [row for row in lesions if row["found_second"] and not row["found_first"]],
        "bootstrap": {"draws": config.bootstrap_draws, "seed": seed, "level": LEVEL, "unit": "case"},
        "config": config.model_dump(mode="json"),
        "definitions": definitions(config)
        | {"difference": "second minus first; means over cases take the cases where both are defined"},
        "versions": versions(),
    }


def _paired(first: Sequence[CaseResult], second: Sequence[CaseResult]) -> list[tuple[CaseResult, CaseResult]]:
    sides = [{(result.case["case_id"], result.case["class"]): result for result in side} for side in (first, second)]
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    if alone:
        case_id, class_name = alone[0]
        raise InputError(
            f"case {case_id}, class {class_name}: expected it in both results, found it in one; compare the same cases"
        )
    if not sides[0]:
        raise InputError("nothing to compare: expected at least one case, found none")
    return [(sides[0][key], sides[1][key]) for key in sorted(sides[0])]


def _paired_counts(
    first: Mapping[str, Any], second: Mapping[str, Any], bins: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Both sides' sums; a mean over cases counts a case only where both sides define it, or it would not be paired."""
    counts = case_counts(first, bins), case_counts(second, bins)
    for name in MACRO:
        if case_value(first, name) is None or case_value(second, name) is None:
            for side in counts:
                side[f"{name}.sum"] = side[f"{name}.defined"] = 0.0
    return counts


def _figures(
    tables: np.ndarray, columns: Sequence[str], bins: Sequence[str], config: EvaluationConfig, seed: int, n_pairs: int
) -> dict[str, Any]:
    """Each figure of both sides with its difference and the interval of that; `tables` is [scans, 2, columns].

    Means over cases, where a scan counts once for each class, also have `n`, how many both define, of `n_pairs`.
    """
    n_scans = len(tables)
    whole = [_rates_of(tables[:, side].sum(axis=0), columns, bins, n_scans) for side in (0, 1)]
    samples = None
    if n_scans > 1:
        sums = resampled_sums(tables.reshape(n_scans, -1), draws=config.bootstrap_draws, seed=seed)
        samples = [_rates_of(part, columns, bins, n_scans) for part in np.split(sums, 2, axis=1)]
    figures = {}
    for name in whole[0]:
        first, second = (float(side[name]) for side in whole)
        figures[name] = {
            "first": None if np.isnan(first) else first,
            "second": None if np.isnan(second) else second,
            "difference": None if np.isnan(second - first) else second - first,
            "interval": None if samples is None else interval(samples[1][name] - samples[0][name]),
        }
        if name.startswith("macro."):
            column = columns.index(f"{name.removeprefix('macro.')}.defined")
            figures[name] |= {"n": int(tables[:, 0, column].sum()), "of": n_pairs}
    return figures


def _rates_of(sums: np.ndarray, columns: Sequence[str], bins: Sequence[str], n_scans: int) -> dict[str, np.ndarray]:
    values = dict(zip(columns, np.moveaxis(sums, -1, 0), strict=True))
    return rates(values | {"scans": np.full(sums.shape[:-1], float(n_scans))}, bins)


def compared_lesions(first: Sequence[CaseResult], second: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """A row for each label lesion that counts, and how each side did on it, by case, class and lesion."""
    rows = []
    for one, other in _paired(first, second):
        # The label is the same file, so its lesions and their numbers are too.
        sides = ([row for row in result.lesions if row["side"] == "gt"] for result in (one, other))
        for here, there in zip(*sides, strict=True):
            if here["detected_iou10"] is None:
                continue
            row = {name: here[name] for name in LESION_COLUMNS[:6]}
            for name, lesion in zip(SIDES, (here, there), strict=True):
                row[f"found_{name}"] = lesion["detected_iou10"]
                row[f"iou_{name}"] = lesion["matched_iou"]
                row[f"score_max_{name}"] = lesion["score_max"]
            rows.append({name: row[name] for name in LESION_COLUMNS})
    return rows


def _lesion_counts(
    lesions: Sequence[Mapping[str, Any]], bins: Sequence[str], config: EvaluationConfig
) -> dict[str, Any]:
    """How many lesions both, only one or neither finds: of all, of the small ones and of each size bin."""
    groups = {
        "all": lesions,
        "small": [row for row in lesions if at_most(row["volume_mm3"], config.small_mm3)],
        **{name: [row for row in lesions if row["size_bin"] == name] for name in bins},
    }
    return {
        name: {
            outcome: sum((row["found_first"], row["found_second"]) == found for row in group)
            for found, outcome in _OUTCOMES.items()
        }
        for name, group in groups.items()
    }


def headline(comparison: Mapping[str, Any]) -> str:
    """The comparison in one line."""
    figure = comparison["figures"]["small_lesion_recall"]
    counts = comparison["lesions"]["all"]
    if figure["difference"] is None:
        small = "no small lesions"
    else:
        bounds = " ({:+.3f} to {:+.3f})".format(*figure["interval"]) if is_spread(figure["interval"]) else ""
        few = ", too few cases to say" if comparison["n_cases"] < FEW_SCANS else ""
        small = f"small-lesion recall {figure['difference']:+.3f}{bounds}{few}"
    return (
        f"{comparison['n_cases']} cases, second minus first: {small}; "
        f"lesions that only the first finds: {counts['first_only']}, only the second: {counts['second_only']}"
    )
