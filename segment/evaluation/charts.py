"""The report's charts as inline SVG, written out by hand: coloured by the page's style sheet in light and dark.

Every number in a chart also stands as text in the page, so a chart is one labelled picture to a screen reader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from segment.evaluation.page import DASH, number

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 32, 50
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class RecallBar:
    """One size bin: `hit` of `n` label lesions found, with shares from 0 to 1 or None where they are undefined."""

    name: str
    hit: int
    n: int
    recall: float | None
    low: float | None
    high: float | None
    recall_any: float | None
    under_resolved: bool


@dataclass(frozen=True)
class FrocPoint:
    """False positives a scan and recall, of all and of small lesions, of all cases binarised at `threshold`.

    Recalls are 0 to 1, None where there are no such lesions.
    """

    threshold: float
    fp_per_scan: float
    recall: float | None
    small_recall: float | None


@dataclass(frozen=True)
class CasePoint:
    """A case's voxel IoU (0 to 1, None where both masks are empty) and the page's anchor of the case."""

    name: str
    iou: float | None
    anchor: str


def recall_chart(bars: Sequence[RecallBar], labels: Mapping[str, str]) -> Markup:
    """Bars of recall by size bin with 95% intervals as whiskers, found and n on each; recall by `any` as a tick."""
    parts = [draw_frame(labels["size_axis"], labels["recall"], _percent_ticks())]
    slot = PLOT_WIDTH / max(len(bars), 1)
    for place, bar in enumerate(bars):
        middle = LEFT + slot * (place + 0.5)
        parts.append(draw_text(middle, HEIGHT - BOTTOM + 16, bar.name + (" †" if bar.under_resolved else "")))
        if bar.recall is None:
            parts.append(draw_text(middle, _height(0) - 6, labels["no_lesions"], css="value"))
            continue
        parts.append(_bar(middle - slot * 0.3, slot * 0.6, bar.recall, "bar", f"{bar.name} mm³: {bar.hit}/{bar.n}"))
        if bar.recall_any is not None:
            parts.append(_line(middle - slot * 0.36, _height(bar.recall_any), middle + slot * 0.36, None, "tick-any"))
        if bar.low is not None and bar.high is not None:
            parts.append(_whisker(middle, bar.low, bar.high))
        # Beside the whisker's top and never on it; a full bar has its figure above the plot.
        top = max(bar.recall, bar.high or 0.0, bar.recall_any or 0.0)
        # One above the other: thousands of lesions would run into the next bar's figures.
        parts.append(draw_text(middle, _height(top) - 19, percent(bar.recall), css="value"))
        parts.append(draw_text(middle, _height(top) - 6, f"{bar.hit}/{bar.n}", css="value"))
    return draw_svg(parts, labels["recall_by_bin"])


def histogram_chart(counts: Sequence[int], misses: int, labels: Mapping[str, str]) -> Markup:
    """Label lesions by lesion IoU in equal bins from 0 to 1; `misses` of the first bin are drawn in another colour."""
    most = max([*counts, 1])
    step = _round_step(most)
    ceiling = math.ceil(most / step) * step
    ticks = [(value / ceiling, str(value)) for value in range(0, ceiling + 1, step)]
    parts = [draw_frame(labels["lesion_iou"], labels["lesions"], ticks)]
    slot = PLOT_WIDTH / max(len(counts), 1)
    for place, count in enumerate(counts):
        low, high = place / len(counts), (place + 1) / len(counts)
        x, title = LEFT + slot * place, f"IoU {low:.1f}{DASH}{high:.1f}: {count}"
        parts.append(draw_text(x, HEIGHT - BOTTOM + 16, f"{low:.1f}"))
        parts.append(_bar(x + 1, slot - 2, count / ceiling, "bar", title))
        if place == 0 and misses:
            parts.append(_bar(x + 1, slot - 2, misses / ceiling, "bar miss", f"{labels['missed']}: {misses}"))
        if count:
            parts.append(draw_text(x + slot / 2, _height(count / ceiling) - 5, str(count), css="value"))
    parts.append(draw_text(WIDTH - RIGHT, HEIGHT - BOTTOM + 16, "1.0", css="tick end"))
    return draw_svg(parts, labels["iou_histogram"])


def froc_chart(points: Sequence[FrocPoint], operating: FrocPoint | None, labels: Mapping[str, str]) -> Markup:
    """Recall against false positives a scan (logarithmic from 1/8 to 8), with the operating point marked."""
    ticks = [(_rate_share(rate), f"1/{round(1 / rate)}" if rate < 1 else f"{rate:g}") for rate in FROC_RATES]
    parts = [draw_frame(labels["fp_per_scan"], labels["recall"], _percent_ticks())]
    for share, name in ticks:
        x = LEFT + share * PLOT_WIDTH
        parts += [_line(x, _height(0), x, _height(0) + 4, "axis"), draw_text(x, HEIGHT - BOTTOM + 16, name)]
    curves = (("", [point.recall for point in points]), (" small", [point.small_recall for point in points]))
    for css, recalls in curves:
        places = [
            (LEFT + _rate_share(point.fp_per_scan) * PLOT_WIDTH, _height(recall), point)
            for point, recall in zip(points, recalls, strict=True)
            if recall is not None
        ]
        parts.append(f'<polyline class="curve{css}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)}"/>')
        parts += [draw_dot(x, y, 2.5, f"point{css}", _froc_title(point, labels)) for x, y, point in places]
    if operating is not None:
        parts.append(_operating_marks(operating, labels))
    return draw_svg(parts, labels["froc"])


def case_chart(points: Sequence[CasePoint], labels: Mapping[str, str]) -> Markup:
    """Voxel IoU of every case from the worst to the best, each a link to its section; undefined ones at the right."""
    order = sorted(points, key=lambda point: (point.iou is None, point.iou or 0.0, point.name))
    parts = [draw_frame(labels["cases_ordered"], labels["iou"], [(share, f"{share:.2f}") for share in _QUARTERS])]
    slot = PLOT_WIDTH / max(len(order), 1)
    radius = min(max(slot * 0.35, 1.5), 5.0)
    for place, point in enumerate(order):
        x = LEFT + slot * (place + 0.5)
        title = f"{point.name}: {number(point.iou, 2)}"
        mark = draw_dot(x, _height(point.iou or 0.0), radius, "point" if point.iou is not None else "undefined", title)
        parts.append(f'<a href="#{point.anchor}" tabindex="-1">{mark}</a>')
    return draw_svg(parts, labels["iou_by_case"])


def percent(share: float | None) -> str:
    """A share as whole percent, or a dash: `67%`. Only a share of 1 is written 100%, only one of 0 is written 0%."""
    if share is None:
        return DASH
    if 0.0 < share < 1.0:
        return f"{min(max(round(100 * share), 1), 99)}%"
    return f"{100 * share:.0f}%"


def _rate_share(rate: float) -> float:
    """Where false positives a scan stand on the logarithmic axis, 0 to 1; lower and higher rates sit at its ends."""
    low, high = math.log2(FROC_RATES[0]), math.log2(FROC_RATES[-1])
    position = (math.log2(max(rate, FROC_RATES[0])) - low) / (high - low)
    return min(position, 1.0)


def _operating_marks(point: FrocPoint, labels: Mapping[str, str]) -> str:
    x = LEFT + _rate_share(point.fp_per_scan) * PLOT_WIDTH
    recalls = [recall for recall in (point.recall, point.small_recall) if recall is not None]
    marks = [draw_dot(x, _height(recall), 6, "chosen", _froc_title(point, labels)) for recall in recalls]
    if recalls:
        # The curves rise to the right: below them is free on the right, above them on the left.
        right = x < LEFT + PLOT_WIDTH / 2
        y = _height(min(recalls)) + 18 if right else _height(max(recalls)) - 10
        name = f"{labels['operating_point']} {point.threshold:g}"
        marks.append(draw_text(x + (10 if right else -10), y, name, css=f"value {'start' if right else 'end'}"))
    return "".join(marks)


def _froc_title(point: FrocPoint, labels: Mapping[str, str]) -> str:
    return (
        f"{labels['threshold']} {point.threshold:g}: {labels['recall']} {percent(point.recall)}, "
        f"{labels['small_recall']} {percent(point.small_recall)}, {labels['fp_per_scan']} {point.fp_per_scan:.2f}"
    )


def _round_step(most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 ... that divides an axis up to `most` into at most five steps."""
    step = 1
    while most > 5 * step:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return step


def _percent_ticks() -> list[tuple[float, str]]:
    return [(share, percent(share)) for share in _QUARTERS]


def _height(share: float) -> float:
    return TOP + (1 - min(max(share, 0.0), 1.0)) * PLOT_HEIGHT


def draw_frame(x_name: str, y_name: str, ticks: Sequence[tuple[float, str]]) -> str:
    """Axis names and horizontal grid lines; a tick is its height from 0 to 1 and its name."""
    parts = []
    for share, name in ticks:
        y = _height(share)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "axis" if share == 0 else "grid"))
        parts.append(draw_text(LEFT - 6, y + 4, name, css="tick end"))
    parts.append(draw_text(LEFT + PLOT_WIDTH / 2, HEIGHT - 8, x_name, css="name"))
    if y_name:
        parts.append(draw_text(4, 11, y_name, css="name start"))
    return "".join(parts)


def _bar(x: float, width: float, share: float, css: str, title: str) -> str:
    y = _height(share)
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_height(0) - y:.1f}"'
    return f'<rect class="{css}" {box}><title>{escape(title)}</title></rect>'


def _whisker(x: float, low: float, high: float) -> str:
    y_low, y_high = _height(low), _height(high)
    path = f"M{x - 5:.1f} {y_high:.1f}h10M{x:.1f} {y_high:.1f}V{y_low:.1f}M{x - 5:.1f} {y_low:.1f}h10"
    return f'<path class="whisker-halo" d="{path}"/><path class="whisker" d="{path}"/>'


def draw_dot(x: float, y: float, radius: float, css: str, title: str) -> str:
    """A point with a tooltip; `css` is its class."""
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
    return f'<circle class="{css}" {place}><title>{escape(title)}</title></circle>'


def _line(x1: float, y1: float, x2: float, y2: float | None, css: str) -> str:
    end = y1 if y2 is None else y2
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{end:.1f}"/>'


def draw_text(x: float, y: float, content: str, *, css: str = "tick") -> str:
    """A text, escaped; `css` is its class."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'


def draw_svg(parts: Sequence[str], name: str, *, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """The parts as one picture called `name`."""
    # Every text and title above is escaped where it is written, so the whole is safe to place in a page.
    box = f"0 0 {width:g} {height:g}"
    return Markup(f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>')
