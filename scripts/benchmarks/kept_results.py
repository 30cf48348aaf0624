"""The results.json of a benchmark that goes on where it was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import machine
from segment.config import load_config
from segment.data.cases import Dataset
from segment.errors import InputError
from segment.files import read_json, write_json


def open_results(path: Path, settings: dict[str, Any], *, parts: tuple[str, ...]) -> dict[str, Any]:
    """What the file holds, or new results with empty `parts`. Raises InputError when they are of other settings.

    New ones are written at once: what a stopped benchmark leaves beside the file is of these settings.
    """
    if not path.exists():
        write_json(path, {"machine": _here(), "settings": settings, **{part: {} for part in parts}})
    results: dict[str, Any] = read_json(path)
    if results["settings"] != settings:
        raise InputError(
            f"{path}: expected results of {settings}, found {results['settings']}; "
            "give the same options or another --output"
        )
    return results


def require_same_machine(path: Path, results: dict[str, Any]) -> None:
    """Raises InputError before runs are added to results of another machine or TensorFlow."""
    if results["machine"] != _here():
        raise InputError(f"{path}: expected results of {_here()}, found {results['machine']}; give another --output")


def _here() -> str:
    return f"{machine()}, TensorFlow {version('tensorflow')}"


def recipe_of(config: Path, given: Sequence[str], data: Dataset) -> dict[str, Any]:
    """What kept results of trainings depend on: the file's name, a digest of the options given, and the cases."""
    options = load_config(config, given).model_dump_json(exclude={"run_dir", "seed"}, exclude_unset=True)
    digest = hashlib.sha256(options.encode()).hexdigest()[:12]
    return {"config": config.name, "options": digest, "cases": sorted(case.case_id for case in data.cases)}
