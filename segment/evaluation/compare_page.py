"""The page of a comparison of two results on the same cases, from the content of comparison.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from segment.evaluation.bootstrap import FEW_SCANS, is_spread
from segment.evaluation.charts import draw_dot, draw_svg, draw_text, percent
from segment.evaluation.page import DASH, bin_name, page_labels, write_page

Verdict = Literal["better", "worse", "unclear", "no_spread", "few"]
LOWER_IS_BETTER = ("fp_per_scan", "macro.hd95_mm")
BEFORE_BINS = ("small_lesion_recall", "recall", "precision", "f1", "fp_per_scan")
AFTER_BINS = ("macro.iou", "macro.dice", "macro.hd95_mm", "macro.surface_dice_1mm")
OUTCOMES = ("both", "first_only", "second_only", "neither")
_WIDTH, _ROW, _TOP, _LEFT, _RIGHT = 640, 22, 8, 266, 16


@dataclass(frozen=True)
class Line:
    """One figure of both sides; `verdict` is about the second, unclear where the interval holds 0 or is missing.

    With fewer than FEW_SCANS cases it is neither better nor worse.

    `name` says over how many cases a mean is where that is not all; `short` does not, for the chart.
    """

    key: str
    name: str
    short: str
    first: float | None
    second: float | None
    difference: float | None
    interval: tuple[float, float] | None
    verdict: Verdict

    @property
    def bounds(self) -> str:
        """The interval as it is printed."""
        return " … ".join(f"{bound:+.3f}" for bound in self.interval) if self.interval else DASH

    @property
    def change(self) -> str:
        """The difference as it is printed."""
        return DASH if self.difference is None else f"{self.difference:+.3f}"


def write_comparison(path: Path, *, comparison: Mapping[str, Any], language: str) -> None:
    """Writes a comparison as one HTML file, with links to `first/report.html` and `second/report.html` beside it.

    The same comparison gives the same bytes.

    Args:
        path: the file, written atomically.
        comparison: the content of comparison.json.
        language: `en` or `zh`, for labels.

    Raises:
        InputError: The language is unknown or the file cannot be written.
    """
    labels = page_labels(language)
    lines = figure_lines(comparison, labels)
    shares = [line for line in lines if line.key not in LOWER_IS_BETTER]
    only = [("first", row) for row in comparison["found_by_first_only"]]
    only += [("second", row) for row in comparison["found_by_second_only"]]
    values = {
        "title": labels["compare_title"],
        "few": FEW_SCANS,
        "sentence": _sentence(lines[0], labels),
        "comparison": comparison,
        "lines": lines,
        "chart": difference_chart(shares, labels["compare_chart"]),
        "groups": [(_group_name(name, labels), counts) for name, counts in comparison["lesions"].items()],
        "outcomes": OUTCOMES,
        "only": sorted(only, key=lambda item: (-item[1]["volume_mm3"], item[1]["case_id"], item[1]["lesion_id"])),
        "size_bins": [bin_name(name) for name in comparison["lesions"] if name not in ("all", "small")],
        "left_out": ", ".join(comparison.get("left_out", [])),
        "several_classes": len({row["class"] for _, row in only}) > 1,
    }
    write_page(path, "comparison.html", language=language, values=values)


def figure_lines(comparison: Mapping[str, Any], labels: Mapping[str, str]) -> list[Line]:
    """The figures that are shown, in reading order: lesions first, then by size, then the masks."""
    figures = comparison["figures"]
    bins = [f"iou10.{name}" for name in comparison["lesions"] if name not in ("all", "small")]
    keys = [key for key in (*BEFORE_BINS, *bins, *AFTER_BINS) if key in figures]
    return [_line(key, figures[key], labels, n_cases=comparison["n_cases"]) for key in keys]


def _line(key: str, figure: Mapping[str, Any], labels: Mapping[str, str], *, n_cases: int) -> Line:
    if key.startswith("iou10."):
        name = labels["figure_bin"].format(bin=bin_name(key.removeprefix("iou10.")))
    else:
        name = labels["figure_" + key.replace(".", "_")]
    short = name
    if "n" in figure and figure["n"] < figure["of"]:
        # Left unsaid, the case that only one side gets wrong would vanish from its mean.
        name = labels["compare_both_defined"].format(name=name, n=figure["n"], all=figure["of"])
    interval = tuple(figure["interval"]) if figure["interval"] else None
    verdict = _verdict(interval, lower_is_better=key in LOWER_IS_BETTER, n_cases=min(figure.get("n", n_cases), n_cases))
    return Line(key, name, short, figure["first"], figure["second"], figure["difference"], interval, verdict)


def _verdict(interval: tuple[float, ...] | None, *, lower_is_better: bool, n_cases: int) -> Verdict:
    if interval is None:
        return "unclear"
    low, high = interval
    if not is_spread(interval):
        return "no_spread"
    if low <= 0 <= high:
        return "unclear"
    if n_cases < FEW_SCANS:
        return "few"
    return "better" if (low > 0) != lower_is_better else "worse"


def _sentence(line: Line, labels: Mapping[str, str]) -> str:
    if line.difference is None:
        return labels["compare_none"]
    sentence = labels["compare_sentence"].format(
        first=percent(line.first), second=percent(line.second), difference=f"{100 * line.difference:+.1f}"
    )
    if line.interval is not None and not is_spread(line.interval):
        return f"{sentence} ({labels['interval_none']})"
    if line.interval is not None:
        low, high = (f"{100 * bound:+.1f}" for bound in line.interval)
        sentence += labels["sentence_interval"].format(low=low, high=high)
    return f"{sentence}: {labels['compare_few']}" if line.verdict == "few" else sentence


def _group_name(name: str, labels: Mapping[str, str]) -> str:
    known = {"all": labels["all"], "small": labels["compare_small"]}
    return known.get(name) or f"{bin_name(name)} mm³"


def difference_chart(lines: Sequence[Line], name: str) -> Markup:
    """Differences of shares as points with their intervals, one under the other, around a line at zero."""
    drawn = [line for line in lines if line.difference is not None]
    ends = [abs(bound) for line in drawn for bound in (line.interval or (line.difference or 0.0,))]
    reach = max(math.ceil(max(ends, default=0.0) * 10) / 10, 0.1)
    bottom = _TOP + _ROW * len(drawn)
    parts = []
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        x = _place(share * reach, reach)
        css = "axis" if share == 0 else "grid"
        parts.append(f'<line class="{css}" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(draw_text(x, bottom + 16, f"{share * reach:+.2g}" if share else "0"))
    for row, line in enumerate(drawn):
        y = _TOP + _ROW * (row + 0.5)
        parts.append(draw_text(_LEFT - 8, y + 4, line.short, css="tick end"))
        if line.interval is not None:
            low, high = (_place(bound, reach) for bound in line.interval)
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 4}v8M{high:.1f} {y - 4}v8"/>'
            )
        title = f"{line.name}: {line.change} ({line.bounds})"
        parts.append(draw_dot(_place(line.difference or 0.0, reach), y, 4.5, f"point {line.verdict}", title))
    return draw_svg(parts, name, width=_WIDTH, height=bottom + 24)


def _place(difference: float, reach: float) -> float:
    return _LEFT + (difference / reach + 1) / 2 * (_WIDTH - _LEFT - _RIGHT)
