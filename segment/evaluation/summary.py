"""Cases pooled over lesions (micro) and averaged over cases (macro), with intervals: the content of summary.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segment.config import EvaluationConfig
from segment.errors import InputError
from segment.evaluation.bootstrap import LEVEL, interval, resampled_sums
from segment.evaluation.counts import MACRO, SUMMED, WAYS, case_counts, case_value, rates
from segment.evaluation.definitions import definitions, versions
from segment.evaluation.froc import froc_summary, pool
from segment.evaluation.lesions import bin_names
from segment.evaluation.metrics import CaseResult, detection, ratio

STATUSES = ("ok", "gt_empty", "pred_empty", "both_empty")
_ANY_RATES = ("any.recall", "any.precision", "any.fp_per_scan")


def summarise(
    results: Sequence[CaseResult],
    *,
    config: EvaluationConfig,
    seed: int,
    inputs: Mapping[str, str],
    operating_point: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of summary.json.

    With several classes the figures at the top are over all of them, and `by_class` has those of each.

    Args:
        results: At least one; the cases may come in any order, which changes nothing.
        config: As the results were made with.
        seed: Of the resampling.
        inputs: SHA-256 by path of what was read; stored as it is.
        operating_point: What the masks were made with (`threshold`, `min_lesion_mm3`, `min_peak`), stored as it is.
        notes: What a reader should know about all cases; they come before those of single cases.

    Raises:
        InputError: There is no result.
    """
    if not results:
        raise InputError("nothing to summarise: expected at least one evaluated case, found none")
    ordered = sorted(results, key=lambda result: (result.case["case_id"], result.case["class"]))
    classes = sorted({result.case["class"] for result in ordered})
    summary: dict[str, Any] = {
        "n_cases": len({result.case["case_id"] for result in ordered}),
        "classes": classes,
        **_figures(ordered, config, seed),
    }
    if len(classes) > 1:
        summary["by_class"] = {
            name: _figures([result for result in ordered if result.case["class"] == name], config, seed)
            for name in classes
        }
    if operating_point is not None:
        summary["operating_point"] = dict(operating_point)
    return summary | {
        "bootstrap": {"draws": config.bootstrap_draws, "seed": seed, "level": LEVEL, "unit": "case"},
        "notes": [*notes, *_notes(ordered)],
        "definitions": definitions(config),
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "inputs": dict(sorted(inputs.items())),
    }


def _notes(results: Sequence[CaseResult]) -> list[str]:
    notes = [f"{result.case['case_id']}: {note}" for result in results for note in result.notes]
    swept = sum(result.sweep is not None for result in results)
    if 0 < swept < len(results):
        notes.append(f"no FROC: {len(results) - swept} of {len(results)} results come without probabilities")
    return notes


def _figures(results: Sequence[CaseResult], config: EvaluationConfig, seed: int) -> dict[str, Any]:
    cases = [result.case for result in results]
    names = bin_names(config.bin_edges_mm3)
    counts = [case_counts(case, names) for case in cases]
    columns = list(counts[0])
    scans = {name: row for row, name in enumerate(dict.fromkeys(case["case_id"] for case in cases))}
    table = np.zeros((len(scans), len(columns)))
    # A scan is resampled whole, with all its classes.
    np.add.at(table, [scans[case["case_id"]] for case in cases], [list(count.values()) for count in counts])
    totals = dict(zip(columns, table.sum(axis=0), strict=True)) | {"scans": float(len(scans))}
    intervals: dict[str, list[float] | None] = {}
    if len(scans) > 1:
        sums = resampled_sums(table, draws=config.bootstrap_draws, seed=seed)
        samples = dict(zip(columns, sums.T, strict=True)) | {"scans": np.full(len(sums), float(len(scans)))}
        intervals = {name: interval(values) for name, values in rates(samples, names).items()}
    return {
        "status": {status: Counter(case["status"] for case in cases)[status] for status in STATUSES},
        "micro": _micro(totals, names, intervals, cases),
        "macro": _macro(cases, intervals),
        "iou_histogram": iou_histogram(results),
        "under_resolved": {name: sum(name in case["under_resolved"] for case in cases) for name in names[:-1]},
    } | _froc(results, len(scans))


def _froc(results: Sequence[CaseResult], n_scans: int) -> dict[str, Any]:
    """The FROC, where every case was swept: with some left out it would be of other scans than the rest."""
    sweeps = [result.sweep for result in results if result.sweep is not None]
    if len(sweeps) < len(results):
        return {}
    n_lesions = sum(sweep.n_gt for sweep in sweeps)
    return {"froc": froc_summary(pool(sweeps, n_scans=n_scans), n_lesions=n_lesions, n_scans=n_scans)}


def _micro(
    totals: Mapping[str, float],
    names: Sequence[str],
    intervals: Mapping[str, list[float] | None],
    cases: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    whole = {name: int(totals[name]) for name in SUMMED if not name.endswith("_mm3")}
    scans = int(totals["scans"])
    one = {key: int(totals[f"iou10.{key}"]) for key in ("tp", "fp", "fn")}
    either = {key: int(totals[f"any.{key}"]) for key in ("tp_gt", "fn", "tp_pred", "fp")}
    shares = {name: None if np.isnan(value) else float(value) for name, value in rates(totals, names).items()}
    return {
        "n_scans": scans,
        **whole,
        "gt_mm3": totals["gt_mm3"],
        "pred_mm3": totals["pred_mm3"],
        "small_lesion_recall": shares["small_lesion_recall"],
        "fp_per_scan": shares["fp_per_scan"],
        "iou10": detection(**one),
        "any": either | {name: shares[f"any.{name}"] for name in ("recall", "precision", "fp_per_scan")},
        "mean_matched_iou": shares["mean_matched_iou"],
        "dice": shares["dice"],
        "iou": shares["iou"],
        "recall_by_bin": {way: {name: _bin(totals, way, name, intervals) for name in names} for way in WAYS},
        "fp_by_bin": {way: {name: int(totals[f"{way}.{name}.fp"]) for name in names} for way in WAYS},
        "intervals": {name: intervals.get(name) for name in shares if "." not in name or name in _ANY_RATES},
    }


def _bin(
    totals: Mapping[str, float], way: str, name: str, intervals: Mapping[str, list[float] | None]
) -> dict[str, Any]:
    hit, n = int(totals[f"{way}.{name}.hit"]), int(totals[f"{way}.{name}.n"])
    return {"hit": hit, "n": n, "recall": ratio(hit, n), "interval": intervals.get(f"{way}.{name}")}


def _macro(cases: Sequence[Mapping[str, Any]], intervals: Mapping[str, list[float] | None]) -> dict[str, Any]:
    """Means and medians over the cases where a figure is defined, and in how many it is not."""
    figures = {}
    for name in MACRO:
        values = [value for value in (case_value(case, name) for case in cases) if value is not None]
        figures[name] = {
            "mean": float(np.mean(values)) if values else None,
            "median": float(np.median(values)) if values else None,
            "n": len(values),
            "n_undefined": len(cases) - len(values),
            "interval": intervals.get(f"macro.{name}"),
        }
    return figures


def iou_histogram(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Label lesions by the IoU of their match in 10 bins of 0.1; misses are in the first, ignored lesions in none."""
    counted = [
        row for result in results for row in result.lesions if row["side"] == "gt" and row["detected_any"] is not None
    ]
    matched = np.array([row["matched_iou"] or 0.0 for row in counted])
    # 1e-9: an IoU of exactly a tenth belongs to the bin that starts there, whatever rounding made of it.
    index = np.clip(np.floor(matched * 10 + 1e-8), 0, 9).astype(int)
    return {"edges": [tenth / 10 for tenth in range(11)], "n": np.bincount(index, minlength=10).tolist()}
