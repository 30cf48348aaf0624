"""Line charts over training steps as inline SVG, in the frame and style of `charts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from segment.evaluation.charts import (
    HEIGHT,
    LEFT,
    PLOT_HEIGHT,
    PLOT_WIDTH,
    TOP,
    draw_dot,
    draw_frame,
    draw_svg,
    draw_text,
)

STYLES = 6  # line styles of the style sheet: colour and dashes together tell them apart
POINTS = 400  # more than a chart is pixels wide
_LOGARITHMIC_FROM = 50.0  # ratio of the largest to the smallest value
Scale = Literal["linear", "wide", "unit"]


@dataclass(frozen=True)
class Curve:
    """A named line: values by rising step. A step without a value is left out before."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def line_chart(curves: Sequence[Curve], *, name: str, x_name: str, scale: Scale) -> Markup:
    """Lines over steps, each in its own style.

    Long runs are averaged over equal spans of rows, at most `POINTS` points a line.

    Args:
        curves: at least one with a value; the others are left out.
        name: of the chart, for screen readers.
        x_name: of the axis of steps.
        scale: `unit` is 0 to 1 whatever the values, `wide` is logarithmic where positive values span far.
    """
    drawn = [(place, _averaged(curve)) for place, curve in enumerate(curves) if curve.values]
    last = max(step for _, curve in drawn for step in curve.steps)
    values = [value for _, curve in drawn for value in curve.values]
    axis = _axis(min(values), max(values), scale)
    parts = [draw_frame(x_name, "", axis.ticks)]
    for step in _x_ticks(last):
        parts.append(draw_text(LEFT + step / last * PLOT_WIDTH, HEIGHT - 34, f"{step:g}"))
    for place, curve in drawn:
        points = [
            (LEFT + step / last * PLOT_WIDTH, TOP + (1 - axis.share(value)) * PLOT_HEIGHT)
            for step, value in zip(curve.steps, curve.values, strict=True)
        ]
        style = f"series-{place % STYLES}"
        parts.append(f'<polyline class="{style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        if len(points) <= 40:
            for (x, y), step, value in zip(points, curve.steps, curve.values, strict=True):
                parts.append(draw_dot(x, y, 2.2, f"dot {style}", f"{curve.name}, {x_name} {step}: {value:.4g}"))
    return draw_svg(parts, name)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    logarithmic: bool
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """Where a value stands from the axis' bottom, 0, to its top, 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _axis(low: float, high: float, scale: Scale) -> _Axis:
    """An axis of round ticks around the values; a linear one begins at 0 where they are positive."""
    if scale == "unit":
        return _Axis(0.0, 1.0, False, tuple((share / 4, f"{share / 4:.2f}") for share in range(5)))
    if scale == "wide" and low > 0 and high / low > _LOGARITHMIC_FROM:
        bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = math.ceil((top - bottom) / 6)
        top = bottom + math.ceil((top - bottom) / every) * every
        powers = range(bottom, top + 1, every)
        ticks = tuple(((power - bottom) / (top - bottom), f"{10.0**power:g}") for power in powers)
        return _Axis(10.0**bottom, 10.0**top, True, ticks)
    low = min(low, 0.0)
    step = _round_up((high - low) / 5 or 0.2)
    bottom = math.floor(low / step + 1e-9)
    top = max(math.ceil(high / step - 1e-9), bottom + 1)
    ticks = tuple(((tick - bottom) / (top - bottom), f"{tick * step:.10g}") for tick in range(bottom, top + 1))
    return _Axis(bottom * step, top * step, False, ticks)


def _round_up(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _x_ticks(last: int) -> list[int]:
    step = max(int(_round_up(last / 5)), 1)
    return list(range(0, last + 1, step))


def _averaged(curve: Curve) -> Curve:
    span = math.ceil(len(curve.values) / POINTS)
    if span == 1:
        return curve
    starts = range(0, len(curve.values), span)
    values = [curve.values[start : start + span] for start in starts]
    steps = [curve.steps[start : start + span] for start in starts]
    # At the middle row of each span, so that a span's mean stands where its rows are.
    middles = tuple(part[len(part) // 2] for part in steps)
    return Curve(curve.name, middles, tuple(sum(part) / len(part) for part in values))
