"""`segment benchmark`."""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

from segment.commands.arguments import Commands, add_command
from segment.errors import InputError

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    help_line = "Measure speed and accuracy beside the tools that people use today."
    parser = add_command(commands, "benchmark", help_line, "python scripts/benchmark.py step --repeats 7")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="NAME ...", help="benchmark and its own options")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Runs a benchmark of the source tree; the installed package alone does not hold them."""
    if not SCRIPT.is_file():
        raise InputError(f"{SCRIPT}: expected the benchmarks of the source tree, found none; run this in a clone")
    return int(runpy.run_path(str(SCRIPT))["main"](options.rest))
