"""The page of a training run: its curves, validations, configuration and machine, from the files in its folder.

It reads files only and shares the look of the report beside it, so it needs no TensorFlow and no finished run.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from segment.errors import InputError
from segment.evaluation.charts import percent
from segment.evaluation.curves import STYLES, Curve, Scale, line_chart
from segment.evaluation.page import DASH, number, page_labels, write_page
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


@dataclass(frozen=True)
class Panel:
    """A chart of some columns, or, where none of them ever changes, a line of text in its place."""

    title: str
    svg: Markup | None
    legend: tuple[tuple[int, str], ...]
    text: str


@dataclass(frozen=True)
class Log:
    """A CSV file of a run: the steps, and numbers by column, None where a cell is empty or no number."""

    steps: tuple[int, ...]
    columns: dict[str, tuple[float | None, ...]]
    notes: tuple[str, ...]


def write_run_page(run_dir: Path, *, language: str) -> Path:
    """Writes `run.html` into a run folder, also into one whose run has not finished.

    Shows metrics.csv, and validation.csv, manifest.json and config.yaml where they are there. The same files give the
    same bytes.

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
    manifest = read_json(run_dir / "manifest.json") if (run_dir / "manifest.json").exists() else {}
    if not isinstance(manifest, dict):
        raise InputError(f"{run_dir / 'manifest.json'}: expected an object, found {type(manifest).__name__}")
    report = Path("validation", "report", "report.html")
    values = {
        "title": labels["run_title"].format(name=run_dir.resolve().name),
        "facts": _facts(metrics, manifest, labels),
        "best": _best(validation, labels),
        "report": report.as_posix() if (run_dir / report).exists() else "",
        "training": _panels(metrics, TRAINING, labels),
        "validation": _panels(validation, VALIDATION, labels) if validation else [],
        "table": _validation_table(validation, labels) if validation else None,
        "machine": _flat(manifest),
        "config": _text(run_dir / "config.yaml"),
    }
    write_page(run_dir / PAGE, "run.html", language=language, values=values)
    return run_dir / PAGE


def read_log(path: Path) -> Log:
    """Reads metrics.csv or validation.csv. A last row that was cut off is left out.

    Raises:
        InputError: The file is missing, has no column `step` or no whole row.
    """
    rows = list(csv.DictReader(_text(path).splitlines()))
    whole = [row for row in rows if (row.get("step") or "").isdigit() and None not in row.values()]
    if not whole:
        raise InputError(f"{path}: expected a column `step` and at least one row, found none; has the run logged yet?")
    names = [name for name in whole[0] if name not in ("step", "note")]
    return Log(
        tuple(int(row["step"]) for row in whole),
        {name: tuple(_number(row[name]) for row in whole) for name in names},
        tuple(row.get("note", "") for row in whole),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        hint = "expected a run folder of `segment train`"
        raise InputError(f"cannot read {path}: {getattr(cause, 'strerror', None) or cause}; {hint}") from cause


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _panels(log: Log, groups: Mapping[str, Group], labels: Mapping[str, str]) -> list[Panel]:
    panels = []
    for key, (wanted, scale) in groups.items():
        curves = [_curve(log, name) for name in _matching(log.columns, wanted)]
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


def _curve(log: Log, name: str) -> Curve:
    points = [(step, value) for step, value in zip(log.steps, log.columns[name], strict=True) if value is not None]
    return Curve(name, tuple(step for step, _ in points), tuple(value for _, value in points))


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
        cells = [percent(value) if name in SHARES else _short(value) for name, value in values]
        rows.append((str(step), *cells, *([validation.notes[place]] if notes else [])))
    columns = [labels["run_step"], *names, *([labels["run_note"]] if notes else [])]
    return {"columns": columns, "rows": rows, "notes": notes}


def _short(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as lines of dotted name and text."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{name}.")
        else:
            lines.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return lines
