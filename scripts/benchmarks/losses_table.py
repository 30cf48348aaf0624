"""From the validations of each run to the tables of `losses.py`. Nothing here trains or reads a file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.timing import table
from segment.evaluation.page import DASH

# Loss -> what tells its runs apart (seed, or patients) -> {"curve": one mapping a validation, "seconds": ...}.
Results = Mapping[str, Mapping[str, Any]]
Curve = Sequence[Mapping[str, float | None]]
PUBLISHED = "published for another network and data: IoU +18%, 40% fewer epochs"
SHOWN = {"iou": "IoU", "small_lesion_recall": "small-lesion recall", "fp_per_scan": "false positives a scan"}


@dataclass(frozen=True)
class Row:
    """One loss over all seeds; values are those of the last validation, in the order of the seeds.

    Attributes:
        loss: Its name.
        values: Figure -> one value a seed; an undefined figure counts as 0.
        steps: The first validation with an IoU of at least the base loss' best with that seed; None where it never is.
        seeds: Their names.
    """

    loss: str
    values: dict[str, list[float]]
    steps: list[float | None]
    seeds: list[str]

    def mean(self, figure: str) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values[figure])


def rows_of(results: Results, *, base: str) -> list[Row]:
    """One row a loss, over the seeds that the base loss has been trained with too."""
    goals = {which: best_iou(run["curve"]) for which, run in results[base].items()}
    rows = []
    for loss, runs in results.items():
        seeds = [which for which in sorted(runs) if which in goals]
        last = [runs[which]["curve"][-1] for which in seeds]
        figures = [name for name in last[0] if name != "step"]
        values = {name: [float(figure[name] or 0.0) for figure in last] for name in figures}
        steps = [first_step(runs[which]["curve"], goals[which]) for which in seeds]
        rows.append(Row(loss, values, steps, seeds))
    return rows


def best_iou(curve: Curve) -> float:
    """The highest IoU of a run's validations."""
    return max(float(point["iou"] or 0.0) for point in curve)


def first_step(curve: Curve, goal: float) -> float | None:
    """The step of the first validation whose IoU is at least `goal`; None without any."""
    return next((point["step"] for point in curve if float(point["iou"] or 0.0) >= goal), None)


def best_of(results: Results, *, leave_out: Sequence[str] = ()) -> str:
    """The loss with the highest mean lesion F1 at the end; of equals the one with the higher mean IoU."""
    means = {
        loss: tuple(
            statistics.fmean(float(run["curve"][-1][name] or 0.0) for run in runs.values())
            for name in ("lesion_f1", "iou")
        )
        for loss, runs in results.items()
        if loss not in leave_out
    }
    return max(means, key=means.__getitem__)


def sample_table(results: Results, *, base: str, hybrid: str) -> str:
    """Mean ± standard deviation over the seeds, the best loss in bold; below it, what the hybrid adds to the base."""
    rows, best = rows_of(results, base=base), best_of(results)
    cells = []
    for row in rows:
        name = f"**{row.loss}**" if row.loss == best else row.loss
        figures = [spread(row.values[figure], 2 if figure == "fp_per_scan" else 3) for figure in SHOWN]
        cells.append([name, spread(row.values["lesion_f1"], 3), *figures, steps_in_words(row.steps)])
    columns = ["loss", "lesion F1", *SHOWN.values(), f"steps to {base}'s best IoU"]
    named = {row.loss: row for row in rows}
    return f"{table(columns, cells)}\n\n{comparison(named[base], named[hybrid])}"


def comparison(base: Row, other: Row) -> str:
    """How much higher the other loss' IoU is and how many fewer steps it needs, in one line."""
    gain = 100.0 * (other.mean("iou") / base.mean("iou") - 1.0) if base.mean("iou") else float("nan")
    text = f"{other.loss} over {base.loss}: IoU {gain:+.1f}%"
    # Seed by seed: a seed that is slow, or never gets there, is so for both.
    firsts = dict(zip(base.seeds, base.steps, strict=True))
    paired = [(step, firsts.get(seed)) for seed, step in zip(other.seeds, other.steps, strict=True)]
    pairs = [(step, first) for step, first in paired if step and first]
    if pairs:
        fewer = 100.0 * (sum(step for step, _ in pairs) / sum(first for _, first in pairs) - 1.0)
        text += f", steps to {base.loss}'s best IoU {fewer:+.0f}% (in {len(pairs)} of {len(other.steps)} seeds)"
    else:
        text += f", {base.loss}'s best IoU reached with none of {len(other.steps)} seeds"
    return f"{text}; {PUBLISHED}."


def real_table(results: Results) -> str:
    """One row a loss and direction."""
    shown = {"dice": "Dice", **SHOWN, "lesion_recall": "lesions found", "lesion_f1": "lesion F1"}
    cells = []
    for loss, runs in results.items():
        for which, run in runs.items():
            last = run["curve"][-1]
            cells.append([loss, which, *(number(last[name], 0 if name == "fp_per_scan" else 3) for name in shown)])
    return table(["loss", "trained on, tested on", *shown.values()], cells)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation; the value alone when there is one."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def steps_in_words(steps: Sequence[float | None]) -> str:
    """Mean ± deviation over those that reach it, and how many do where not all of them."""
    reached = [step for step in steps if step is not None]
    if not reached:
        return "never"
    text = spread(reached, 0)
    return text if len(reached) == len(steps) else f"{text} ({len(reached)} of {len(steps)})"


def number(value: float | None, digits: int) -> str:
    """A figure, or a dash where it is undefined."""
    return DASH if value is None else f"{value:.{digits}f}"
