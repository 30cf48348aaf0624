"""Close-ups of small lesions found and missed, and of false positives, as one SVG picture.

Axial slices of 36 mm through each, patient's right on the left: the label's outline is blue, the prediction's amber.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.options import benchmark_parser
from segment.config import EvaluationConfig
from segment.data.scan import read_mask, read_volume, require_same_grid
from segment.errors import InputError
from segment.evaluation.lesions import at_most
from segment.evaluation.metrics import evaluate_case
from segment.evaluation.pictures import CasePictures, CaseViewer, Spot, View
from segment.files import write_text

FIELD_MM = 36.0
SIDE, GAP, HEAD = 150, 8, 24  # of one picture, between them, above a row
COLOURS = ("#56b4e9", "#ffb000")  # label and prediction, as in the report


def main(arguments: Sequence[str]) -> int:
    """Writes the picture."""
    options = _parser().parse_args(arguments)
    if options.count < 1:
        raise InputError(f"--count: expected 1 or more pictures of each kind, found {options.count}")
    image, grid, _ = read_volume(options.scan)
    label, label_grid = read_mask(options.label)
    mask, mask_grid = read_mask(options.mask)
    require_same_grid(grid, options.scan, label_grid, options.label)
    require_same_grid(grid, options.scan, mask_grid, options.mask)
    config = EvaluationConfig()
    rows = evaluate_case("case", label, mask, grid, config=config, distances=False).lesions
    viewer = CaseViewer(CasePictures(image, label, mask, grid))
    small = [row for row in rows if row["side"] == "gt" and at_most(row["volume_mm3"], config.small_mm3)]
    groups = {
        "found, at most 50 mm³": [row for row in small if row["detected_iou10"]],
        "missed, at most 50 mm³": [row for row in small if not row["detected_iou10"]],
        "false positives": [row for row in rows if row["side"] == "pred" and row["is_fp"]],
    }
    write_text(options.output, draw(viewer, groups, count=options.count))
    print(", ".join(f"{len(group)} {name}" for name, group in groups.items()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser(
        "lesion_pictures",
        __doc__,
        "--scan flair.nii.gz --label label.nii.gz --mask predictions/masks/case.nii.gz --output pictures.svg",
    )
    parser.add_argument("--scan", type=Path, required=True, help="one channel")
    parser.add_argument("--label", type=Path, required=True)
    parser.add_argument("--mask", type=Path, required=True, help="what was predicted")
    parser.add_argument("--count", type=int, default=6, help="pictures of each kind, evenly by size (default: 6)")
    parser.add_argument("--output", type=Path, required=True, help="SVG file")
    return parser


def draw(viewer: CaseViewer, groups: Mapping[str, Sequence[Mapping[str, Any]]], *, count: int) -> str:
    """One row of close-ups for each group, smallest first; rows are as of lesions.csv."""
    parts = []
    for number, (name, group) in enumerate(groups.items()):
        top = number * (SIDE + HEAD + GAP)
        chosen = evenly(sorted(group, key=lambda row: row["volume_mm3"]), count)
        parts.append(f'<text x="0" y="{top + HEAD - 8}">{name} ({len(chosen)} of {len(group)})</text>')
        for column, row in enumerate(chosen):
            spot = Spot(tuple(row["centroid_world_mm"]), row["side"], tuple(row["bbox"]))
            view = viewer.close_ups(spot, field_mm=FIELD_MM)[0]
            parts.append(_placed(view, column * (SIDE + GAP), top + HEAD, f"{row['volume_mm3']:.0f} mm³"))
    width, height = count * (SIDE + GAP), len(groups) * (SIDE + HEAD + GAP)
    style = "<style>text { font: 13px sans-serif; fill: #171c20 } .size { font-size: 12px; fill: #fff }</style>"
    back = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return f"{head}{style}{back}{''.join(parts)}</svg>\n"


def evenly(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """At most `count` of them: the first, the last and what lies evenly between."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / max(count - 1, 1))] for index in range(count)]


def _placed(view: View, x: int, y: int, words: str) -> str:
    """A view as large in mm as it is, in a square of SIDE pixels, with both outlines."""
    png = base64.b64encode(view.png).decode("ascii")
    size = f'width="{view.png_columns}" height="{view.png_rows}"'
    picture = f'<image {size} style="image-rendering:pixelated" href="data:image/png;base64,{png}"/>'
    lines = "".join(
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="0.45"/>'
        for path, colour in zip((view.label_path, view.prediction_path), COLOURS, strict=True)
        if path
    )
    scale = SIDE / max(view.width_mm, view.height_mm)
    place = f'x="{x}" y="{y}" width="{view.width_mm * scale:g}" height="{view.height_mm * scale:g}"'
    box = f'{place} viewBox="0 0 {view.columns} {view.rows}" preserveAspectRatio="none"'
    return f'<svg {box}>{picture}{lines}</svg><text class="size" x="{x + 5}" y="{y + SIDE - 6}">{words}</text>'
