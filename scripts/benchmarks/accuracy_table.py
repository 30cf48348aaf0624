"""From the runs of `accuracy.py` to its table and its plot. Nothing here trains or reads a file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.dot_plot import draw_dots
from benchmarks.scores import Scored, best_within, share_of
from benchmarks.timing import table

OURS = "segment"
BAR, GOAL = 1.25, 1.5  # times the better peer's recall of small lesions
PLAIN = 0.5
SUMS = ("small-lesion recall", "any recall", "false positives", "Dice", "IoU")


@dataclass(frozen=True)
class Row:
    """One run at one threshold.

    Attributes:
        tool, at: Who, and which threshold that is in words.
        which: Trained on, tested on, and the seed.
        scored: What it does there.
        beyond: A peer that has more false positives than ours at every threshold.
    """

    tool: str
    at: str
    which: str
    scored: Scored
    beyond: bool = False


def rows_of(runs: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Ours at the chosen point and at 0.5, the peers at the best threshold within our false positives and at 0.5."""
    rows = []
    ours = {_which(name, run["tool"]): run for name, run in runs.items() if run["tool"] == OURS}
    for name, run in sorted(runs.items(), key=_order):
        which, every = _which(name, run["tool"]), [Scored.from_json(one) for one in run["thresholds"]]
        if run["tool"] == OURS:
            rows.append(Row(OURS, "chosen", which, Scored.from_json(run["chosen"])))
        elif which in ours:
            limit = Scored.from_json(ours[which]["chosen"]).fp
            best = best_within(every, fp=limit)
            rows.append(Row(run["tool"], "best", which, best, beyond=best.fp > limit))
        rows.append(Row(run["tool"], f"{PLAIN}", which, next(one for one in every if one.threshold == PLAIN)))
    return rows


def accuracy_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Every run, the means of each tool, and how ours stands to the bars."""
    rows = rows_of(runs)
    if not rows:
        return "no run has ended yet"
    bins = list(rows[0].scored.bins)
    head = ["trained on, tested on", "tool", "threshold", *(f"{name} mm³" for name in bins), "≤ 50 mm³", "any"]
    head += ["false positives", "of them touching none", "Dice", "IoU"]
    cells = [[row.which, row.tool, _at(row), *_figures(row)] for row in rows]
    return f"{table(head, cells)}\n\n{means_table(rows)}\n\n{verdict(rows)}"


def means_table(rows: Sequence[Row]) -> str:
    """Means over directions and seeds."""
    cells = [[tool, at, len(group), *(mean(group) for mean in MEANS)] for (tool, at), group in _groups(rows)]
    return table(["mean of", "threshold", "runs", *SUMS], cells)


def verdict(rows: Sequence[Row]) -> str:
    """How ours at its chosen point stands to the better peer at its best threshold, in one line for each bar."""
    groups = dict(_groups(rows))
    ours = groups.get((OURS, "chosen"))
    peers = {tool: group for (tool, at), group in groups.items() if at == "best"}
    if ours is None or not peers:
        return "ours or the peer is missing"
    better = max(peers, key=lambda tool: _small(peers[tool]))
    ratio = _small(ours) / max(_small(peers[better]), 1e-9)
    lines = [f"small-lesion recall: {ratio:.2f} times that of {better}, the better peer (bar {BAR}, goal {GOAL})"]
    for name, mean in list(zip(SUMS, MEANS, strict=True))[1:4]:
        lines.append(f"{name}: {mean(ours):.3g}, {better} {mean(peers[better]):.3g}")
    return "\n".join(lines)


def draw_accuracy(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a tool and threshold, a panel a figure, a dot a run, as SVG."""
    groups = list(_groups(rows_of(runs)))
    bins = list(groups[0][1][0].scored.bins) if groups else []
    panels: dict[str, list[list[float]]] = {}
    for name in bins:
        panels[f"{name} mm³"] = [_defined(partial(_share_of_bin, name), group) for _, group in groups]
    for name, figure in zip(SUMS, FIGURES, strict=True):
        panels[name] = [_defined(figure, group) for _, group in groups]
    return draw_dots([f"{tool}, {at}" for (tool, at), _ in groups], panels, title="Small lesions on real patients")


def _share_of_bin(name: str, scored: Scored) -> float | None:
    return share_of(scored.bins[name])


def _order(item: tuple[str, Mapping[str, Any]]) -> tuple[str, bool, str]:
    """By direction and seed, and there ours first."""
    name, run = item
    return _which(name, run["tool"]), run["tool"] != OURS, name


def _which(name: str, tool: str) -> str:
    return name.removeprefix(f"{tool}-").replace("-", " ")


def _groups(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, str], list[Row]]]:
    names = dict.fromkeys((row.tool, row.at) for row in rows)
    return ((name, [row for row in rows if (row.tool, row.at) == name]) for name in names)


def _at(row: Row) -> str:
    if row.at == f"{PLAIN}":
        return row.at
    peak = f", peak {row.scored.least_peak:g}" if row.scored.least_peak else ""
    volume = f", from {row.scored.least_mm3:g} mm³" if row.scored.least_mm3 else ""
    return f"{row.at}: {row.scored.threshold:g}{peak}{volume}{', its fewest false positives' if row.beyond else ''}"


def _figures(row: Row) -> list[object]:
    one = row.scored
    counts = [f"{hit} of {n}" for hit, n in (*one.bins.values(), one.small, one.any)]
    return [*counts, one.fp, one.fp_any, one.dice, one.iou]


FIGURES: tuple[Callable[[Scored], float | None], ...] = (
    lambda one: one.small_recall,
    lambda one: one.any_recall,
    lambda one: float(one.fp),
    lambda one: one.dice,
    lambda one: one.iou,
)


def _mean_of(figure: Callable[[Scored], float | None]) -> Callable[[Sequence[Row]], float]:
    """Of the runs in which it is defined; NaN without any."""
    return lambda rows: _mean(_defined(figure, rows))


def _defined(figure: Callable[[Scored], float | None], rows: Sequence[Row]) -> list[float]:
    return [value for row in rows if (value := figure(row.scored)) is not None]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


MEANS = tuple(_mean_of(figure) for figure in FIGURES)
_small = MEANS[0]
