"""The benchmark of the evaluation, at a size that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"
SMALL = ("--shape", "64", "56", "48", "--lesions", "12", "--rounds", "1", "--repeats", "1")


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "evaluate", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=SCRIPT.parents[1],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ours_alone(tmp_path: Path) -> None:
    shown = run(*SMALL, "--no-peers", "--output", str(tmp_path / "out.json"))
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {(run["what"], run["order"]) for run in written["all"]} == {
        (what, order) for what in ("counts", "distances") for order in "FC"
    }
    assert "| lesions, matching, Dice, IoU | as nibabel reads them | segment | 0." in shown
    assert written["disagree"] == []


def test_scaling() -> None:
    shown = run("--scaling", "2", "--rounds", "1", "--case-shape", "48", "48", "44")
    assert "| 1 | " in shown
    assert "| 2 | " in shown


@pytest.mark.skipif("SEGMENT_PEERS" not in os.environ, reason="SEGMENT_PEERS is not set: the peers are not here")
def test_agrees_with_the_peers() -> None:
    shown = run(*SMALL)
    assert "DISAGREES" not in shown
    assert "panoptica" in shown
