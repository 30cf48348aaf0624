"""The tables of a run folder, metrics.csv and validation.csv, as numbers by column."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from segment.errors import InputError


@dataclass(frozen=True)
class Log:
    """A CSV file of a run: the steps, and numbers by column, None where a cell is empty or no number."""

    steps: tuple[int, ...]
    columns: dict[str, tuple[float | None, ...]]
    notes: tuple[str, ...]


def read_log(path: Path) -> Log:
    """Reads metrics.csv or validation.csv. A last row that was cut off is left out.

    Raises:
        InputError: The file is missing, has no column `step` or no whole row.
    """
    rows = list(csv.DictReader(read_text(path).splitlines()))
    whole = [row for row in rows if (row.get("step") or "").isdigit() and None not in row.values()]
    if not whole:
        raise InputError(f"{path}: expected a column `step` and at least one row, found none; has the run logged yet?")
    names = [name for name in whole[0] if name not in ("step", "note")]
    return Log(
        tuple(int(row["step"]) for row in whole),
        {name: tuple(_number(row[name]) for row in whole) for name in names},
        tuple(row.get("note", "") for row in whole),
    )


def read_text(path: Path) -> str:
    """A text file. Raises InputError that names a run folder as what was expected."""
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
