"""Makes the virtual environment of the peers (PyTorch, MONAI, panoptica) that the other benchmarks run beside ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.options import benchmark_parser
from segment.errors import InputError

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-peers"
SETTING = "SEGMENT_PEERS"  # names the Python of another environment that holds the same packages


def main(arguments: Sequence[str]) -> int:
    """Makes or completes the environment. Needs the network; nothing else in the project does."""
    benchmark_parser("peers", __doc__, "").parse_args(arguments)
    if not ENVIRONMENT.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    command = [str(_python(ENVIRONMENT)), "-m", "pip", "install", "--quiet", "-r", str(HERE / "peers.txt")]
    if subprocess.run(command, check=False).returncode:
        raise InputError(f"{ENVIRONMENT}: the packages of {HERE / 'peers.txt'} could not be installed, see pip's words")
    print(f"peers: {peer_python()}\nnext:  python scripts/benchmark.py step")
    return 0


def peer_python() -> Path:
    """The Python of the peers' environment. Raises InputError when it was not made yet."""
    python = Path(os.environ[SETTING]) if SETTING in os.environ else _python(ENVIRONMENT)
    if not python.is_file():
        raise InputError(
            f"{python}: expected the Python of the peers, found none; make it with `python scripts/benchmark.py peers`"
        )
    return python


def as_precise(precision: str) -> list[str]:
    """What makes a peer, which computes in bf16 else, compute in float32 where ours does."""
    return ["--float32"] if precision == "float32" else []


def run_peer(script: str, *arguments: str) -> Any:
    """Runs `benchmarks/SCRIPT` with the peers' Python and returns the JSON that it prints as its last line.

    Raises:
        InputError: There is no such environment, or the script failed; its last words are in the message.
    """
    done = subprocess.run(
        [str(peer_python()), str(HERE / script), *arguments], capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise InputError(f"{script} failed with exit code {done.returncode}: {words}")
    return json.loads(lines[-1])


def _python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
