"""The page of a training run: its curves, validations, configuration and machine, from the files in its folder.

It reads files only and shares the look of the report beside it, so it needs no TensorFlow and no finished run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from segment.errors import InputError
from segment.evaluation.charts import percent
from segment.evaluation.curves import STYLES, Curve, Scale, line_chart
from segment.evaluation.operating_chart import operating_chart
from segment.evaluation.overlays import find_slices
from segment.evaluation.page import DASH, number, page_labels, write_page
from segment.evaluation.run_log import Log, read_log, read_text
from segment.files import read_json

PAGE = "run.html"
Group = tuple[tuple[str, ...], Scale]
# Title label -> columns of the file, where a name that ends in "/" stands for all columns that begin with it, and
# the scale of the axis.
TRAINING: dict[str, Group] = {
    "run_loss": (("loss", "loss/"), "wide"),
    "run_weights": (("weight/",), "linear"),
    "run_learning_rate": (("learning_rate",), "linear"),
    "run_gradient_norm": (("gradient_norm",), "wide"),
    "run_loss_scale": (("loss_scale",), "wide"),
    "run_skipped": (("skipped",), "linear"),
    "run_speed": (("patches_per_second",), "linear"),
    "run_wait": (("data_wait_share",), "unit"),
}
VALIDATION: dict[str, Group] = {
    "run_recall": (("small_lesion_recall", "lesion_recall", "lesion_precision", "lesion_f1"), "unit"),
    "run_fp": (("fp_per_scan",), "linear"),
    "run_overlap": (("dice", "iou"), "unit"),
}
SHARES = ("small_lesion_recall", "lesion_recall", "lesion_precision")
# Columns and keys that a label says in words; others are shown as they are, without underscores.
WORDS = {
    "small_lesion_recall": "small_recall",
    "lesion_recall": "recall_all",
    "lesion_precision": "precision",
    "lesion_f1": "f1",
    "fp_per_scan": "fp_per_scan",
    "dice": "dice_mean",
    "iou": "iou_mean",
    "best": "run_kept",
    "loss": "run_total",
}
SLICES = 24  # pictures in the page, of at most SLICE_CASES cases
SLICE_CASES = 4
SLICE_BYTES = 2**20  # of one picture; a larger one was not made for this page


@dataclass(frozen=True)
class Panel:
    """A chart of some columns, or, where none of them ever changes, a line of text in its place."""

    title: str
    svg: Markup | None
    legend: tuple[tuple[int, str], ...]
    text: str


def write_run_page(run_dir: Path, *, language: str) -> Path:
    """Writes `run.html` into a run folder, also into one whose run has not finished.

    Shows metrics.csv, and validation.csv, manifest.json, config.yaml, operating_point.json and the pictures in slices/
    where they are there. The same files give the same bytes.

    Args:
        run_dir: A run folder.
        language: `en` or `zh`, for labels.

    Returns:
        The page's path.

    Raises:
        InputError: The folder has no metrics.csv with a row, a file is unreadable, or the page cannot be written.
    """
    labels = page_labels(language)
    metrics = read_log(run_dir / "metrics.csv")
    validation = read_log(run_dir / "validation.csv") if (run_dir / "validation.csv").exists() else None
    manifest, point = (_object(run_dir / name) for name in ("manifest.json", "operating_point.json"))
    report = Path("validation", "report", "report.html")
    values = {
        "title": labels["run_title"].format(name=run_dir.resolve().name),
        "facts": _facts(metrics, manifest, labels),
        "best": _best(validation, labels),
        "report": report.as_posix() if (run_dir / report).exists() else "",
        "training": _panels(metrics, TRAINING, labels),
        "validation": _panels(validation, VALIDATION, labels) if validation else [],
        "table": _validation_table(validation, labels) if validation else None,
        "point": _operating_point(point, run_dir / "operating_point.json", labels) if point else None,
        "slices": _slices(run_dir, labels),
        "machine": _flat(manifest),
        "config": read_text(run_dir / "config.yaml"),
    }
    write_page(run_dir / PAGE, "run.html", language=language, values=values)
    return run_dir / PAGE


def _object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where the file is missing."""
    values = read_json(path) if path.exists() else {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected an object, found {type(values).__name__}")
    return values


def _panels(log: Log, groups: Mapping[str, Group], labels: Mapping[str, str]) -> list[Panel]:
    panels = []
    for key, (wanted, scale) in groups.items():
        curves = [_curve(log, name, labels) for name in _matching(log.columns, wanted)]
        curves = [curve for curve in curves if curve.values]
        if not curves:
            continue
        title = labels[key]
        if all(len(set(curve.values)) == 1 for curve in curves) and len(log.steps) > 1:
            values = ", ".join(f"{curve.name} {curve.values[0]:.6g}" for curve in curves)
            panels.append(Panel(title, None, (), labels["run_constant"].format(values=values)))
            continue
        svg = line_chart(curves, name=title, x_name=labels["run_step"], scale=scale)
        legend = tuple((place % STYLES, curve.name) for place, curve in enumerate(curves)) if len(curves) > 1 else ()
        panels.append(Panel(title, svg, legend, ""))
    return panels


def _matching(columns: Mapping[str, Any], wanted: Sequence[str]) -> list[str]:
    return [name for key in wanted for name in columns if name == key or (key.endswith("/") and name.startswith(key))]


def _words(name: str, labels: Mapping[str, str]) -> str:
    """A column's name as a person says it."""
    if name in WORDS:
        return labels[WORDS[name]]
    group, _, rest = name.rpartition("/")
    return (rest if group in ("loss", "weight") else name).replace("_", " ").replace("/", ": ")


def _curve(log: Log, name: str, labels: Mapping[str, str]) -> Curve:
    points = [(step, value) for step, value in zip(log.steps, log.columns[name], strict=True) if value is not None]
    return Curve(_words(name, labels), tuple(step for step, _ in points), tuple(value for _, value in points))


def _facts(metrics: Log, manifest: Mapping[str, Any], labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """The run in a few figures: state, steps, time, precision, replicas, machine."""
    hardware = manifest.get("hardware") or {}
    finished = manifest.get("finished")
    state = DASH if finished is None else labels["run_finished" if finished else "run_unfinished"]
    seconds = manifest.get("seconds")
    return [
        (labels["status"], state),
        (labels["run_steps"], str(metrics.steps[-1])),
        (labels["run_time"], DASH if seconds is None else f"{seconds / 60:.1f} min"),
        (labels["run_precision"], str(manifest.get("precision", DASH))),
        (labels["run_machine"], ", ".join(str(gpu) for gpu in hardware.get("gpus") or [hardware.get("cpu", DASH)])),
        (labels["run_memory"], f"{number(manifest.get('peak_memory_gib'), 2)} GiB"),
    ]


def _best(validation: Log | None, labels: Mapping[str, str]) -> str:
    """The model that was kept, in one sentence; empty before the first validation."""
    if validation is None or "best" not in validation.columns:
        return ""
    kept = [row for row, best in enumerate(validation.columns["best"]) if best]
    if not kept:
        return ""
    row = {name: values[kept[-1]] for name, values in validation.columns.items()}
    return labels["run_best"].format(
        step=validation.steps[kept[-1]],
        recall=percent(row.get("small_lesion_recall")),
        fp=number(row.get("fp_per_scan"), 2),
        dice=number(row.get("dice"), 3),
    )


def _validation_table(validation: Log, labels: Mapping[str, str]) -> dict[str, Any]:
    names = list(validation.columns)
    notes = any(validation.notes)
    rows = []
    for place, step in enumerate(validation.steps):
        values = [(name, validation.columns[name][place]) for name in names]
        cells = [_cell(name, value, labels) for name, value in values]
        rows.append((str(step), *cells, *([validation.notes[place]] if notes else [])))
    words = (_words(name, labels) for name in names)
    columns = [labels["run_step"], *words, *([labels["run_note"]] if notes else [])]
    return {"columns": columns, "rows": rows, "notes": notes}


def _cell(name: str, value: float | None, labels: Mapping[str, str]) -> str:
    if name == "best":
        return labels["run_kept_yes"] if value else ""
    if name in SHARES:
        return percent(value)
    return DASH if value is None else f"{value:.4g}"


def _operating_point(values: Mapping[str, Any], path: Path, labels: Mapping[str, str]) -> dict[str, Any]:
    """The sentence, the notes and the chart of the operating point."""
    try:
        there, key = values["at_point"], "run_point" if values["chosen"] else "run_no_point"
        peak = values.get("min_peak", 0.0)
        sentence = labels[key].format(
            threshold=f"{values['threshold']:g}",
            peak=labels["run_point_peak"].format(peak=f"{peak:g}") if peak > 0 else "",
            volume=f"{values['min_lesion_mm3']:g}",
            recall=percent(there["small_lesion_recall"]),
            fp=number(there["fp_per_scan"], 2),
            n=len(values["cases"]),
            target=f"{values['max_fp_per_scan']:g}",
        )
        return {"sentence": sentence, "notes": values["notes"], "svg": operating_chart(values, labels)}
    except (KeyError, TypeError, ValueError, IndexError) as cause:
        raise InputError(
            f"{path}: expected an operating point as training writes it, found none ({cause!r}); remove it or train on"
        ) from cause


def _slices(run_dir: Path, labels: Mapping[str, str]) -> dict[str, Any] | None:
    """The pictures of the first cases, evenly over the steps, the first and the last among them."""
    found = find_slices(run_dir)
    if not found:
        return None
    cases = list(found)[:SLICE_CASES]
    per_case = SLICES // len(cases)
    rows = []
    for case_id in cases:
        steps = _spread(list(found[case_id]), per_case)
        pictures = [(step, _picture(found[case_id][step])) for step in steps]
        rows.append((case_id, [(step, png) for step, png in pictures if png]))
    shown, everything = sum(len(row[1]) for row in rows), sum(map(len, found.values()))
    capped = labels["run_slices_capped"].format(shown=shown, all=everything) if shown < everything else ""
    return {"rows": rows, "capped": capped}


def _spread(steps: Sequence[int], most: int) -> list[int]:
    if len(steps) <= most:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


def _picture(path: Path) -> bytes:
    """A PNG's bytes; none where it is no PNG or too large for a page."""
    try:
        data = path.read_bytes() if path.stat().st_size <= SLICE_BYTES else b""
    except OSError as cause:
        raise InputError(f"cannot read {path}: {cause.strerror or cause}") from cause
    return data if data.startswith(b"\x89PNG\r\n") else b""


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as lines of dotted name and text."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            lines.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return lines
