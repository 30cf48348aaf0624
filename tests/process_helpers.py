"""Plays the scenarios of forked_runs.py and reads what they leave. Not a test module."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segment.training.checkpoint import Checkpoint, Checkpoints

HERE = Path(__file__).parent
CLOCKS = {"data_wait_share", "patches_per_second"}  # the only figures that may differ between two runs


def play(scenario: str, folder: Path) -> dict[str, dict[str, Any]]:
    """What a scenario printed for each of its runs, by name. In a process of its own, which may use the loopback."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-W", "ignore", str(HERE / "forked_runs.py"), scenario, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    if done.returncode:
        pytest.fail(f"{scenario}: {done.stdout}\n{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


def last_checkpoint(run_dir: Path) -> Checkpoint:
    """The newest checkpoint of a run."""
    found = Checkpoints(run_dir / "checkpoints").latest()
    if found is None:
        pytest.fail(f"{run_dir} has no checkpoint")
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table of a run, without the clocks."""
    with path.open(newline="") as handle:
        return [{key: value for key, value in row.items() if key not in CLOCKS} for row in csv.DictReader(handle)]
