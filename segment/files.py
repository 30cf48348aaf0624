"""Writing files so that an interrupted run never leaves half of one under its final name."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segment.errors import InputError

LONGEST_NAME = 255  # bytes of a file name on common file systems


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, with the same suffixes, renamed to `path` when the block succeeds.

    The temporary file is flushed to disk before the rename and removed when the block fails.

    Raises:
        InputError: The folder cannot be made or the file cannot be written; names the path and the cause.
    """
    temporary = path.with_name(_temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as cause:
        reason = cause.strerror or cause
        raise InputError(f"cannot write {path}: {reason}; free space or choose another folder") from cause
    finally:
        # Where there is nothing to remove, because the folder itself could not be made, its own error has been raised.
        with suppress(OSError):
            temporary.unlink()


def _temporary_name(name: str) -> str:
    """Of a name that is nearly as long as file names may be, the end alone, which holds the suffixes, and a hash."""
    prefix = f".tmp-{os.getpid()}-"
    if len(os.fsencode(prefix + name)) <= LONGEST_NAME:
        return prefix + name
    return f"{prefix}{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}-{name[-20:]}"


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically. Raises InputError when it cannot.

    A file name that is not UTF-8 reaches Python with lone surrogates; they are written as escapes, which JSON reads.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def jsonable(value: Any) -> Any:
    """The value with NumPy scalars and arrays, paths and tuples made plain, and NaN or infinity made None."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented; the same value gives the same bytes. NaN and infinity become null."""
    write_text(path, json.dumps(jsonable(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises InputError that names the file when it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise InputError(f"cannot read {path}: {cause.strerror or cause}") from cause
    except ValueError as cause:
        raise InputError(f"{path} is not valid JSON: {cause}") from cause


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits; read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


MARKER = ".segment-output"  # tells our output folders from anybody else's, so that --force empties no other
Kind = Literal["predictions", "report", "comparison", "run", "data"]
_KINDS: dict[str, str] = {
    "predictions": "a folder of predictions",
    "report": "the folder of a report",
    "comparison": "the folder of a comparison",
    "run": "a run folder",
    "data": "a folder of sample data",
}


def claim_folder(
    folder: Path,
    *,
    force: bool = False,
    resume: bool | None = None,
    inputs: Sequence[Path | None] = (),
    kind: Kind,
) -> None:
    """Makes an output folder ready: a new or empty one as it is; one of ours with `resume` (kept) or `force` (emptied).

    Args:
        folder: Made when it is missing.
        force: Empty it, if this package made it.
        resume: Keep what is in it; None where the command has no such flag.
        inputs: What the command reads; None is left aside.
        kind: What the folder is for; only one of the same kind is kept or emptied.

    Raises:
        InputError: An input lies in it, it holds files and neither was given, it is of another kind, `force` on a
            folder that this package did not make, it is not a folder, or it cannot be written.
    """
    try:
        for given in inputs:
            if given is not None and given.exists() and _real(given).is_relative_to(_real(folder)):
                raise InputError(f"output folder {folder} holds the input {given}; choose another path for the output")
        made_as = (folder / MARKER).read_text(encoding="utf-8") if (folder / MARKER).is_file() else ""
        if (force or resume) and made_as not in ("", kind):
            found = _KINDS.get(made_as, "one of another version")
            raise InputError(f"{folder}: expected {_KINDS[kind]}, found {found}; choose another path")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"output {folder} is a file, expected a folder; choose another path")
        if folder.is_dir() and any(entry.name != MARKER for entry in folder.iterdir()) and not resume:
            if not force:
                ways = "--force to replace it" if resume is None else "--resume to go on or --force to replace it"
                raise InputError(f"output folder {folder} already holds files; pass {ways}")
            if not (folder / MARKER).exists():
                raise InputError(
                    f"--force replaces only output folders made by segment, and {folder} is none; choose another path"
                )
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(kind, encoding="utf-8")
    except OSError as cause:
        reason = cause.strerror or cause
        raise InputError(f"cannot write to output folder {folder}: {reason}; choose another path") from cause


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve it takes a link to itself
