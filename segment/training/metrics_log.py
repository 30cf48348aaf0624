"""The run's numbers and pictures: metrics.csv and validation.csv, without gaps or doubles after interruptions, slices/,
and TensorBoard.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf

from segment.errors import InputError
from segment.evaluation.drawing import encode_png
from segment.evaluation.overlays import slice_path
from segment.files import atomic_path, write_text


class Table:
    """A CSV file with a column `step` that grows by one row at a time.

    Rows of later steps than `step`, left by a run that was stopped after its last checkpoint, and a last row that was
    cut off are dropped when it is opened. The columns are those of the file, or of the first row.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        """Args: path: made with its first row; step: the number of steps done, 0 for a new run.

        Raises:
            InputError: The file cannot be read or written.
        """
        self._path = path
        self._columns: list[str] = []
        if path.exists():
            self._columns, rows = _read_rows(path)
            kept = [row for row in rows if int(row["step"]) <= step]
            write_text(path, _format(self._columns, kept, header=bool(self._columns)))

    def append(self, row: Mapping[str, float | str]) -> None:
        """Adds a row; a value that is not finite becomes an empty cell. Raises InputError when it cannot be written."""
        header = not self._columns
        if header:
            self._columns = list(row)
        cells = {name: _cell(row.get(name, "")) for name in self._columns}
        try:
            with self._path.open("a", encoding="utf-8", newline="") as handle:
                handle.write(_format(self._columns, [cells], header=header))
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as cause:
            raise InputError(
                f"cannot write {self._path}: {cause.strerror or cause}; free space and --resume"
            ) from cause


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise InputError(f"cannot read {path}: {cause}; start the run again with --force") from cause
    whole = text[: text.rfind("\n") + 1]  # a row without its line end was cut off
    reader = csv.DictReader(io.StringIO(whole))
    columns = list(reader.fieldnames or [])
    rows = [row for row in reader if None not in row.values() and row.get("step", "").isdigit()]
    return columns, rows


def _format(columns: Sequence[str], rows: Sequence[Mapping[str, str]], *, header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.7g}"


class MetricsLog:
    """metrics.csv, validation.csv, slices/ and TensorBoard's events in a run folder; a context manager."""

    def __init__(self, run_dir: Path, *, step: int, validated: int) -> None:
        """Args: run_dir: exists; step, validated: the last step and validation done, whose later rows are dropped."""
        self._run_dir = run_dir
        self._metrics = Table(run_dir / "metrics.csv", step=step)
        self._validations = Table(run_dir / "validation.csv", step=validated)
        with self._explained():
            self._events = tf.summary.create_file_writer(str(run_dir / "tensorboard"))

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Writes one row of training figures; names with a slash group in TensorBoard."""
        self._metrics.append({"step": step, **row})
        self._scalars(step, row, prefix="train/")

    def validation(self, step: int, row: Mapping[str, float], *, note: str) -> None:
        """Writes one row of validation figures; `note` is the loss weighting's decision, or empty."""
        self._validations.append({"step": step, **row, "note": note})
        self._scalars(step, row, prefix="validation/")

    def picture(self, step: int, case_id: str, picture: np.ndarray) -> None:
        """Keeps the picture of a validation case, uint8 [rows, columns, 3], as a PNG file and for TensorBoard."""
        with atomic_path(slice_path(self._run_dir, step, case_id)) as temporary:
            temporary.write_bytes(encode_png(picture))
        with self._explained(), self._events.as_default(step=step):
            tf.summary.image(f"slices/{case_id}", picture[None])

    def _scalars(self, step: int, row: Mapping[str, float], *, prefix: str) -> None:
        with self._explained():
            with self._events.as_default(step=step):
                for name, value in row.items():
                    if math.isfinite(value):
                        tf.summary.scalar(prefix + name, value)
            self._events.flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns TensorFlow's error about a file that cannot be written into a line of ours."""
        try:
            yield
        except tf.errors.OpError as cause:
            reason = str(cause.message).splitlines()[0].split("; ")[-1]
            raise InputError(
                f"cannot write {self._run_dir / 'tensorboard'}: {reason}; free space and --resume"
            ) from cause

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(InputError) if kind is not None else nullcontext(), self._explained():
            self._events.close()


class StepMeans:
    """Collects the scalars of single steps on the device and makes one row of them, without waiting for each step.

    Skipped steps count towards the time but not into any mean, so an overflow does not poison the log.
    """

    def __init__(self, pending: Sequence[Mapping[str, float | None]] = ()) -> None:
        """`pending`: what `pending()` gave when a run was interrupted between two rows; None (JSON's NaN) is NaN."""
        self._steps: list[Mapping[str, Any]] = [
            {name: math.nan if value is None else value for name, value in step.items()} for step in pending
        ]

    def add(self, values: Mapping[str, Any]) -> None:
        """Args: values: of `TrainStep`, scalars still on the device."""
        self._steps.append(values)

    def pending(self) -> list[dict[str, float]]:
        """The values since the last row as plain numbers, for a checkpoint."""
        return [{name: float(value) for name, value in step.items()} for step in self._steps]

    def row(self) -> dict[str, float]:
        """Means over the good steps since the last row (NaN without any), and the counters' last values."""
        steps = self.pending()
        self._steps = []
        good = [step for step in steps if step["good"]]
        last = ("loss_scale", "skipped")
        means = [name for name in steps[-1] if name not in (*last, "good", "skipped_in_row")]
        means.sort(key=lambda name: (not name.startswith("loss"), name))  # the loss and its terms first
        row = {name: float(np.mean([step[name] for step in good])) if good else math.nan for name in means}
        return {**row, **{name: steps[-1][name] for name in last}}
