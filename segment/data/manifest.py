"""The CSV manifest: one row a case, with the columns `case`, `patient` (optional), one a channel, and `label`.

Columns are divided by commas, or by semicolons, as spreadsheets write them where the comma is the decimal sign.
"""

from __future__ import annotations

import csv
from pathlib import Path

from segment.data.scan import Case
from segment.errors import InputError

_NO_CHANNELS = ("case", "patient", "label")


def read_manifest(path: Path, *, with_label: bool) -> tuple[list[Case], tuple[str, ...]]:
    """Reads a manifest (UTF-8, with or without a byte order mark; empty rows are skipped).

    Args:
        path: The CSV file. Paths in it are absolute or relative to its folder.
        with_label: Whether a `label` column is needed; an empty cell of it gives a case without a label. When false,
            labels are left aside.

    Returns:
        The cases in file order, at least one, and the channel names in column order.

    Raises:
        InputError: The file cannot be read, a column or cell is missing, or a case stands twice; names row and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            first = handle.readline()
            handle.seek(0)
            reader = csv.reader(handle, delimiter=";" if ";" in first and "," not in first else ",")
            table = [(number, row) for number, row in enumerate(reader, start=1) if any(map(str.strip, row))]
    except OSError as cause:
        raise InputError(f"cannot read manifest {path}: {cause.strerror or cause}") from cause
    except (UnicodeDecodeError, csv.Error) as cause:
        raise InputError(f"manifest {path} is not a CSV file in UTF-8: {cause}") from cause
    columns = [name.strip() for name in table[0][1]] if table else []
    channels = _channels(path, columns, with_label)
    cases: dict[str, Case] = {}
    for number, row in table[1:]:
        if len(row) != len(columns):
            raise InputError(
                f"manifest {path}, row {number}: expected {len(columns)} cells ({', '.join(columns)}), found {len(row)}"
            )
        case = _case(path, number, dict(zip(columns, map(str.strip, row), strict=True)), channels, with_label)
        if case.case_id in cases:
            raise InputError(f"manifest {path}, row {number}: case {case.case_id!r} stands twice; case ids must differ")
        cases[case.case_id] = case
    if not cases:
        raise InputError(f"manifest {path}: expected at least one case, found none")
    return list(cases.values()), channels


def _channels(path: Path, columns: list[str], with_label: bool) -> tuple[str, ...]:
    for needed in ("case", "label") if with_label else ("case",):
        if needed not in columns:
            raise InputError(
                f"manifest {path}: expected a column {needed!r}, found the columns {', '.join(columns) or 'none'}"
            )
    repeated = next((name for name in columns if columns.count(name) > 1), None)
    if repeated is not None or "" in columns:
        raise InputError(f"manifest {path}: expected column names that differ, found {', '.join(map(repr, columns))}")
    channels = tuple(name for name in columns if name not in _NO_CHANNELS)
    if not channels:
        raise InputError(
            f"manifest {path}: expected a column for each channel beside case, patient and label, found none"
        )
    return channels


def _case(path: Path, number: int, row: dict[str, str], channels: tuple[str, ...], with_label: bool) -> Case:
    for column in ("case", *(("patient",) if "patient" in row else ()), *channels):
        if not row[column]:
            raise InputError(f"manifest {path}, row {number}: column {column!r} is empty; fill it in or remove the row")
    case_id = row["case"]
    # Masks are written as CASE.nii.gz into the output folder and must stay in it.
    if case_id.startswith(".") or any(sign in case_id for sign in "/\\\0"):
        raise InputError(
            f"manifest {path}, row {number}: case {case_id!r}: expected a plain file name without / or a leading dot"
        )
    label = path.parent / row["label"] if with_label and row["label"] else None
    return Case(case_id, row.get("patient", case_id), tuple(path.parent / row[name] for name in channels), label)
