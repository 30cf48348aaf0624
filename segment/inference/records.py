"""What is known of each predicted case, in a file of its own: what --resume, shards and merged reports are made from.

`records/CASE.json` is written after everything else of its case, so a case with a record is complete, whenever the
process is ended; shards write different files and need no lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segment.errors import InputError
from segment.evaluation.froc import Sweep
from segment.evaluation.metrics import CaseResult
from segment.files import read_json, sha256_of, write_json

RECORDS = "records"
FORMAT = 1  # raise it when records of before can no longer be read


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 1, of `count` parts: every count-th case."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def suffix(self) -> str:
        """What the names of its own files end with."""
        return f"-{self.index}of{self.count}"


@dataclass(frozen=True)
class Record:
    """One case as it stands in an output folder.

    Attributes:
        case_id: Its name.
        images: The scan's files, one a channel.
        inputs: SHA-256 of each image by path, as far as they could be read.
        label: Path and SHA-256 of the expert mask that the results are for; empty without.
        outputs: SHA-256 by path below the output folder.
        failure: The row in failures.csv, or None.
        seconds: By stage.
        peak_memory_mib: Largest resident memory of the process up to the end of this case.
        settings: SHA-256 of all that the outputs depend on beside the inputs.
        results: Compared with the label; empty without one.
        image_volumes: As of `Case`.
    """

    case_id: str
    images: tuple[str, ...]
    inputs: dict[str, str]
    label: dict[str, str]
    outputs: dict[str, str]
    failure: dict[str, str] | None
    seconds: dict[str, float]
    peak_memory_mib: float
    settings: str
    results: tuple[CaseResult, ...]
    image_volumes: tuple[int, ...] = ()

    @property
    def written(self) -> bool:
        """Whether the mask is there."""
        return bool(self.outputs)

    def manifest_entry(self) -> dict[str, Any]:
        """What manifest.json says of the case."""
        return {
            "written": self.written,
            "failure": None if self.failure is None else self.failure["kind"],
            "inputs": self.inputs | self.label,
            "outputs": self.outputs,
            "seconds": self.seconds,
            "peak_memory_mib": self.peak_memory_mib,
        }


def record_path(output: Path, case_id: str) -> Path:
    """Where a case's record is kept."""
    return output / RECORDS / f"{case_id}.json"


def write_record(output: Path, record: Record) -> None:
    """Writes a record. Raises InputError when it cannot."""
    values = {"format": FORMAT, **vars(record), "results": [_result_json(result) for result in record.results]}
    write_json(record_path(output, record.case_id), values)


def read_record(output: Path, case_id: str) -> Record | None:
    """Reads a case's record; None where there is none, or none of this format.

    Raises:
        InputError: The file is damaged.
    """
    path = record_path(output, case_id)
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        if values.pop("format") != FORMAT:
            return None
        values["images"] = tuple(values["images"])
        values["image_volumes"] = tuple(values.get("image_volumes", ()))
        values["results"] = tuple(_result_from(result) for result in values["results"])
        return Record(**values)
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise InputError(
            f"{path}: expected a record of a predicted case, found a fault: {cause!r}; remove it"
        ) from cause


def is_complete(
    record: Record, output: Path, *, digests: Sequence[str], settings: str, label: str | None, files: Sequence[str]
) -> bool:
    """Whether a case need not be predicted again: everything that it depends on and all that is wanted is the same.

    Args:
        record: As read.
        output: The output folder.
        digests: SHA-256 of the image files as they are now, in the order of their channels.
        settings: Of this prediction.
        label: SHA-256 of the expert mask, None where no results are wanted.
        files: Which outputs are wanted, by path below the output folder.
    """
    same = record.failure is None and list(record.inputs.values()) == list(digests) and record.settings == settings
    if not same or (label is not None and (list(record.label.values()) != [label] or not record.results)):
        return False
    try:
        return all(record.outputs.get(name) == sha256_of(output / name) for name in files)
    except OSError:
        return False


def without_results(record: Record) -> Record:
    """The record as of a prediction without labels."""
    return replace(record, label={}, results=())


def _result_json(result: CaseResult) -> Mapping[str, Any]:
    sweep = None
    if result.sweep is not None:
        sweep = {name: np.asarray(value).tolist() for name, value in vars(result.sweep).items()}
    return {"case": result.case, "lesions": result.lesions, "notes": list(result.notes), "sweep": sweep}


def _result_from(values: Mapping[str, Any]) -> CaseResult:
    sweep = None
    if values["sweep"] is not None:
        parts = {"min_peaks": (0.0,), **values["sweep"]}  # records of before peaks have none, and tables of two axes
        axes = ("thresholds", "min_volumes_mm3", "min_peaks")
        for name in axes:
            parts[name] = tuple(parts[name])
        for name in ("tp", "fp", "small_tp"):
            parts[name] = np.array(parts[name], np.int64).reshape([len(parts[axis]) for axis in axes])
        sweep = Sweep(**parts)
    return CaseResult(values["case"], values["lesions"], tuple(values["notes"]), sweep)
