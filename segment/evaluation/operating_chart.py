"""The chart of an operating point: the FROC that it was chosen on, as it stands in operating_point.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from segment.evaluation.charts import HEIGHT, LEFT, PLOT_WIDTH, WIDTH, FrocPoint, draw_text, froc_chart
from segment.files import write_text

# The page's light colours; a file of its own has no style sheet to take them from.
_STYLE = """
text { font: 12.5px sans-serif; fill: #4d5963; text-anchor: middle }
text.value { fill: #171c20; font-weight: 600 } text.start { text-anchor: start } text.end { text-anchor: end }
.grid { stroke: #cdd5db } .axis { stroke: #4d5963 }
polyline { fill: none; stroke: #2d6a9a; stroke-width: 2 } polyline.small { stroke: #a8480f; stroke-dasharray: 6 4 }
.point { fill: #2d6a9a } .point.small { fill: #a8480f } .chosen { fill: #fff; stroke: #a8480f; stroke-width: 3 }
"""


def froc_points(values: Mapping[str, Any]) -> list[FrocPoint]:
    """The curve at the chosen minimum volume and peak, highest threshold first.

    Args:
        values: The content of operating_point.json; files of before peaks have none, and tables of two axes.
    """
    counts = values["counts"]
    column = counts["min_volumes_mm3"].index(values["min_lesion_mm3"])
    peaks = counts.get("min_peaks", [0.0])
    place = peaks.index(values.get("min_peak", 0.0))
    shape = len(counts["thresholds"]), len(counts["min_volumes_mm3"]), len(peaks)
    tables = (np.reshape(counts[name], shape)[:, column, place].tolist() for name in ("tp", "fp", "small_tp"))
    rows = zip(counts["thresholds"], *tables, strict=True)
    return [
        FrocPoint(
            threshold,
            fp / counts["n_scans"],
            tp / counts["n_lesions"] if counts["n_lesions"] else None,
            small / counts["n_small"] if counts["n_small"] else None,
        )
        for threshold, tp, fp, small in reversed(list(rows))
    ]


def operating_chart(values: Mapping[str, Any], labels: Mapping[str, str]) -> Markup:
    """The FROC with the point marked where one was chosen, styled by the page that it is placed in."""
    points = froc_points(values)
    marked = [point for point in points if point.threshold == values["threshold"] and values["chosen"]]
    return froc_chart(points, marked[0] if marked else None, labels)


def write_operating_plot(path: Path, values: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """Writes the chart as an SVG file that needs nothing else. Raises InputError when it cannot be written."""
    chart = str(operating_chart(values, labels))
    opening, inside = chart.split(">", 1)
    legend = f"{labels['recall']} \N{EM DASH}\N{EM DASH}   {labels['small_recall']} - - -"
    head = f'<style>{_STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    head += draw_text(LEFT + PLOT_WIDTH, 11, legend, css="end")
    write_text(path, f'{opening} xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}">{head}{inside}\n')
