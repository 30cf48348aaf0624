"""The results.json of a benchmark that goes on where it was stopped."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import machine
from segment.errors import InputError
from segment.files import read_json


def open_results(path: Path, settings: dict[str, Any], *, parts: tuple[str, ...]) -> dict[str, Any]:
    """What the file holds, or new results with empty `parts`. Raises InputError when they are of other settings."""
    where = f"{machine()}, TensorFlow {version('tensorflow')}"
    new: dict[str, Any] = {"machine": where, "settings": settings, **{part: {} for part in parts}}
    results: dict[str, Any] = read_json(path) if path.exists() else new
    if results["settings"] != settings:
        raise InputError(
            f"{path}: expected results of {settings}, found {results['settings']}; "
            "give the same options or another --output"
        )
    return results
