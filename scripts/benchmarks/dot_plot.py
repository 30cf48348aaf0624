"""A plot of many figures at once: a row a name, a panel a figure, a dot a run, a bar for the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import escape

NAMES, PANEL, GAP, ROW, TOP = 190, 150, 24, 22, 34  # pixels: width of the names, a panel, height of a row and a head
STYLE = (
    "text{font:12px sans-serif;fill:#222}.tick{font-size:10px;fill:#555}.end{text-anchor:end}.mid{text-anchor:middle}"
    "line{stroke:#ddd}.mean{stroke:#b3261e;stroke-width:2.5}circle{fill:#1f5fa8;fill-opacity:.75}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}.tick{fill:#bbb}line{stroke:#444}.mean{stroke:#ff8a80}"
    "circle{fill:#8ab8f0}}"
)


def draw_dots(names: Sequence[str], panels: Mapping[str, Sequence[Sequence[float]]], *, title: str) -> str:
    """An SVG file.

    Args:
        names: Of the rows.
        panels: By title, the values of each row; a row without any has no dot there.
        title: Read by screen readers.
    """
    width = NAMES + len(panels) * (PANEL + GAP)
    height = TOP + len(names) * ROW + 22
    parts = []
    for place, name in enumerate(names):
        y = _middle(place)
        parts.append(f'<line x1="{NAMES}" y1="{y}" x2="{width - GAP}" y2="{y}"/>')
        parts.append(f'<text class="end" x="{NAMES - 8}" y="{y + 4}">{escape(name)}</text>')
    for place, (head, values) in enumerate(panels.items()):
        parts += _panel(NAMES + place * (PANEL + GAP), head, values)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{escape(title)}</title><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _panel(left: float, title: str, values: Sequence[Sequence[float]]) -> list[str]:
    every = [value for row in values for value in row] or [0.0]
    low, high = min(every), max(every)
    width = (high - low) or 1.0

    def x(value: float) -> float:
        return left + 6 + (value - low) / width * (PANEL - 12)

    bottom = TOP + len(values) * ROW
    parts = [f'<text class="mid" x="{left + PANEL / 2}" y="18">{escape(title)}</text>']
    for value, css in ((low, "tick"), (high, "tick end")):
        at = left if css == "tick" else left + PANEL
        parts.append(f'<text class="{css}" x="{at}" y="{bottom + 14}">{value:.3g}</text>')
    for place, row in enumerate(values):
        y = _middle(place)
        parts += [f'<circle cx="{x(v):.1f}" cy="{y}" r="4"><title>{v:.4g}</title></circle>' for v in row]
        if row:
            mean = x(sum(row) / len(row))
            parts.append(f'<line class="mean" x1="{mean:.1f}" y1="{y - 8}" x2="{mean:.1f}" y2="{y + 8}"/>')
    return parts


def _middle(place: int) -> float:
    return TOP + place * ROW + ROW / 2
