"""The plot of `losses.py`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.dot_plot import draw_dots
from benchmarks.losses_table import SHOWN, Row


def draw_losses(rows: Sequence[Row], *, base: str) -> str:
    """The rows as an SVG file. A seed that never reached the base loss' best IoU has no dot in that panel."""
    panels: dict[str, list[list[float]]] = {
        title: [row.values[figure] for row in rows] for figure, title in SHOWN.items()
    }
    panels[f"steps to {base}'s best IoU"] = [[step for step in row.steps if step is not None] for row in rows]
    return draw_dots([row.loss for row in rows], panels, title="Losses compared")
