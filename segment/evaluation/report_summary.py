"""The report's head: the headline in words, the figures, and the charts, worked out of summary.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from segment.evaluation.bootstrap import FEW_SCANS, is_spread, wilson_interval
from segment.evaluation.charts import (
    CasePoint,
    FrocPoint,
    RecallBar,
    case_chart,
    froc_chart,
    histogram_chart,
    percent,
    recall_chart,
)
from segment.evaluation.page import DASH, bin_name, number
from segment.evaluation.pictures import WINDOW_PERCENTILES
from segment.evaluation.report_rows import CaseRow, LesionRow


@dataclass(frozen=True)
class Tile:
    """One figure of the head with what it is and, smaller, its interval and counts."""

    name: str
    figure: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Headline:
    """What the first screen says in words and in figures."""

    sentence: str
    lines: tuple[str, ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Chart:
    """A chart with its title, its caption and its figures as a table; the first cell of a row is its heading."""

    title: str
    caption: str
    svg: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def headline(summary: Mapping[str, Any], lesions: Sequence[LesionRow], labels: Mapping[str, str]) -> Headline:
    """The headline of the page. `lesions` are all rows of the lesion table, to say why lesions were missed."""
    micro, config = summary["micro"], summary["config"]
    small, fp = f"{config['small_mm3']:g}", number(micro["fp_per_scan"], 2)
    recall = micro["small_lesion_recall"]
    if recall is None:
        sentence = labels["sentence_none"].format(small=small, fp=fp)
    else:
        sentence = labels["sentence_small"].format(
            hit=micro["n_small_found"], n=micro["n_small"], small=small, recall=percent(recall)
        )
        hit, n = micro["n_small_found"], micro["n_small"]
        low, high, of_cases = _bounds(micro["intervals"].get("small_lesion_recall"), hit, n, summary["n_cases"])
        words = labels["sentence_interval" if of_cases else "sentence_wilson"]
        sentence += words.format(low=percent(low), high=percent(high), n=n)
        sentence += labels["sentence_fp"].format(fp=fp)
    counts = micro["iou10"]
    everything = labels["sentence_all"].format(n=counts["tp"] + counts["fn"], hit=counts["tp"], missed=counts["fn"])
    lines = (
        " ".join(part for part in (everything, _why_missed(lesions, labels)) if part),
        labels["found_means"].format(iou=f"{config['match_iou']:g}"),
    )
    return Headline(sentence, lines, tuple(_tiles(summary, labels)))


def _bounds(interval: Sequence[float] | None, hit: int, n: int, n_cases: int) -> tuple[float, float, bool]:
    """A share's interval by resampling cases or by Wilson, and whether it is the former.

    Wilson's stands in where resampling has no width, and where it has less of few scans: that lesions of one scan
    resemble each other can only make an interval wider.
    """
    wilson = wilson_interval(hit, n)
    if interval is None or not is_spread(interval):
        return *wilson, False
    if n_cases < FEW_SCANS and interval[1] - interval[0] < wilson[1] - wilson[0]:
        return *wilson, False
    return interval[0], interval[1], True


def _why_missed(lesions: Sequence[LesionRow], labels: Mapping[str, str]) -> str:
    missed = [row for row in lesions if row.outcome == "missed"]
    if not missed:
        return ""
    counts = Counter(row.reason.removeprefix("reason_") for row in missed)
    if all(row.score_max is None for row in missed):
        sentence = "sentence_overlap"
    else:
        sentence = "sentence_why_seen" if counts["seen"] else "sentence_why"
    names = ("unseen", "seen", "threshold", "removed", "overlap")
    return labels[sentence].format(**{name: counts[name] for name in names})


def _tiles(summary: Mapping[str, Any], labels: Mapping[str, str]) -> list[Tile]:
    micro = summary["micro"]
    one, intervals = micro["iou10"], micro["intervals"]
    small = micro["small_lesion_recall"], micro["n_small_found"], micro["n_small"]

    def share(key: str, name: str, value: float | None, hit: int, n: int) -> Tile:
        if not n:
            return Tile(labels[name], percent(value), (labels["n_of"].format(hit=hit, n=n),))
        low, high, of_cases = _bounds(intervals.get(key), hit, n, summary["n_cases"])
        words = labels["interval" if of_cases else "interval_wilson"]
        spread = words.format(low=percent(low), high=percent(high))
        return Tile(labels[name], percent(value), (labels["n_of"].format(hit=hit, n=n), spread))

    false_positives = _interval(intervals.get("fp_per_scan"), labels, lambda value: number(value, 2))
    return [
        share("small_lesion_recall", "small_recall", *small),
        Tile(labels["fp_per_scan"], number(micro["fp_per_scan"], 2), false_positives),
        share("recall", "recall_all", one["recall"], one["tp"], one["tp"] + one["fn"]),
        share("precision", "precision", one["precision"], one["tp"], one["tp"] + one["fp"]),
        _mean_tile(summary["macro"]["iou"], labels["iou_mean"], labels),
        _mean_tile(summary["macro"]["dice"], labels["dice_mean"], labels),
        _operating_tile(summary, labels),
        _count_tile(summary, labels),
    ]


def _mean_tile(figure: Mapping[str, Any], name: str, labels: Mapping[str, str]) -> Tile:
    details = _interval(figure["interval"], labels, lambda value: number(value, 2))
    if figure["n_undefined"]:
        details += (labels["undefined_n"].format(n=figure["n_undefined"]),)
    return Tile(name, number(figure["mean"], 3), details)


def _interval(
    interval: Sequence[float] | None, labels: Mapping[str, str], write: Callable[[float], str]
) -> tuple[str, ...]:
    if interval is None:
        return ()
    if not is_spread(interval):
        return (labels["interval_none"],)
    return (labels["interval"].format(low=write(interval[0]), high=write(interval[1])),)


def _operating_tile(summary: Mapping[str, Any], labels: Mapping[str, str]) -> Tile:
    point = summary.get("operating_point")
    if not point:
        return Tile(labels["operating_point"], DASH, (labels["masks_given"],))
    peak, volume = point.get("min_peak"), point.get("min_lesion_mm3")
    details = [labels["min_peak"].format(peak=f"{peak:g}")] if peak else []
    details += [labels["min_volume"].format(volume=f"{volume:g}")] if volume else []
    return Tile(labels["operating_point"], f"p ≥ {point['threshold']:g}", tuple(details))


def _count_tile(summary: Mapping[str, Any], labels: Mapping[str, str]) -> Tile:
    status, micro = summary["status"], summary["micro"]
    odd = [f"{labels[f'status_{name}']}: {count}" for name, count in sorted(status.items()) if count and name != "ok"]
    lesions = labels["n_lesions"].format(n=micro["n_gt"], pred=micro["n_pred"])
    return Tile(labels["cases_and_lesions"], labels["n_cases"].format(n=summary["n_cases"]), (lesions, *odd))


def charts(summary: Mapping[str, Any], cases: Sequence[CaseRow], labels: Mapping[str, str]) -> list[Chart]:
    """Recall by size, histogram of lesion IoU, FROC where the summary has one, IoU by case."""
    drawn = [_recall(summary, labels), _histogram(summary, labels)]
    if summary.get("froc"):
        drawn.append(_froc(summary, labels))
    name = "{} · {}" if len(summary["classes"]) > 1 else "{}"
    points = [CasePoint(name.format(row.case_id, row.class_name), row.iou, row.anchor) for row in cases]
    # Its figures stand in the table of cases right below.
    drawn.append(Chart(labels["iou_by_case"], labels["case_chart_caption"], case_chart(points, labels), (), ()))
    return drawn


def _recall(summary: Mapping[str, Any], labels: Mapping[str, str]) -> Chart:
    bins, either = (summary["micro"]["recall_by_bin"][way] for way in ("iou10", "any"))
    bars, by_wilson = [], False
    for name, entry in bins.items():
        low, high = None, None
        if entry["n"]:
            low, high, of_cases = _bounds(entry["interval"], entry["hit"], entry["n"], summary["n_cases"])
            by_wilson |= not of_cases
        under = summary["under_resolved"].get(name, 0) > 0
        shares = (entry["recall"], low, high, either[name]["recall"])
        bars.append(RecallBar(bin_name(name), entry["hit"], entry["n"], *shares, under_resolved=under))
    rows = [
        (
            bar.name,
            str(bar.n),
            str(bar.hit),
            percent(bar.recall),
            DASH if bar.low is None else f"{percent(bar.low)}{DASH}{percent(bar.high)}",
            percent(bar.recall_any),
        )
        for bar in bars
    ]
    caption = labels["recall_caption"]
    if any(bar.under_resolved for bar in bars):
        caption += " " + labels["under_resolved"]
    if by_wilson:
        caption += " " + labels["recall_wilson"]
    names = ("size_bin", "n_gt", "n_found", "recall", "interval_95", "recall_any")
    columns = tuple(labels[name] for name in names)
    return Chart(labels["recall_by_bin"], caption, recall_chart(bars, labels), columns, tuple(rows))


def _histogram(summary: Mapping[str, Any], labels: Mapping[str, str]) -> Chart:
    edges, counts = summary["iou_histogram"]["edges"], summary["iou_histogram"]["n"]
    missed = summary["micro"]["iou10"]["fn"]
    rows = tuple(
        (f"{low:.1f}{DASH}{high:.1f}", str(count))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )
    svg = histogram_chart(counts, missed, labels)
    caption = labels["histogram_caption"].format(missed=missed)
    return Chart(labels["iou_histogram"], caption, svg, (labels["lesion_iou"], labels["lesions"]), rows)


def _froc(summary: Mapping[str, Any], labels: Mapping[str, str]) -> Chart:
    points = [
        FrocPoint(point["threshold"], point["fp_per_scan"], point["recall"], point["small_lesion_recall"])
        for point in summary["froc"]["points"]
    ]
    micro, chosen = summary["micro"], None
    caption = labels["froc_caption"]
    if summary.get("operating_point"):
        # What the masks of this report did: with a minimum volume or peak they need not lie on the curve.
        recalls = micro["iou10"]["recall"], micro["small_lesion_recall"]
        chosen = FrocPoint(float(summary["operating_point"]["threshold"]), micro["fp_per_scan"], *recalls)
        caption += " " + labels["froc_ring"]
    rows = tuple(
        (f"{point.threshold:g}", percent(point.recall), percent(point.small_recall), number(point.fp_per_scan, 2))
        for point in points
    )
    columns = (labels["threshold"], labels["recall"], labels["small_recall"], labels["fp_per_scan"])
    return Chart(labels["froc"], caption, froc_chart(points, chosen, labels), columns, rows)


def class_table(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """With several classes, a line for each: lesions, small-lesion recall, recall, precision, FP a scan, IoU, Dice."""
    lines = []
    for name, figures in summary.get("by_class", {}).items():
        micro = figures["micro"]
        shares = (micro["small_lesion_recall"], micro["iou10"]["recall"], micro["iou10"]["precision"])
        means = (number(figures["macro"][key]["mean"], 3) for key in ("iou", "dice"))
        counts = (str(micro["n_gt"]), *(percent(share) for share in shares), number(micro["fp_per_scan"], 2))
        lines.append((name, *counts, *means))
    return lines


def conventions(summary: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """The conventions in the reader's language, one sentence each."""
    config, bootstrap = summary["config"], summary["bootstrap"]
    low, high = (f"{value:g}" for value in WINDOW_PERCENTILES)
    return [
        labels["convention_lesion"],
        labels["convention_small"].format(small=f"{config['small_mm3']:g}"),
        labels["found_means"].format(iou=f"{config['match_iou']:g}"),
        labels["convention_any"],
        labels["convention_interval"].format(draws=bootstrap["draws"], seed=bootstrap["seed"]),
        labels["convention_wilson"].format(few=FEW_SCANS),
        labels["convention_view"].format(low=low, high=high),
        labels["convention_world"],
    ]


def provenance(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The exact definitions, the versions, and the hashes of the inputs, as they stand in summary.json."""
    pairs = [(str(name), _plain(value)) for name, value in summary["definitions"].items()]
    pairs += [(f"version of {name}", _plain(value)) for name, value in summary["versions"].items()]
    return pairs + [(f"SHA-256 of {path}", _plain(digest)) for path, digest in summary["inputs"].items()]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
