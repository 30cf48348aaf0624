"""The command line. `scripts/*.py` and the console command `segment` both come here; each command has its file.

Exit codes: 0 all done; 1 some cases failed, the rest are written; 2 bad usage, configuration or data, said in one line;
130 and 143 stopped by Ctrl-C or SIGTERM, a training after a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from segment import __version__
from segment.commands import benchmark, check, evaluate, export, infer, merge_reports, plan, report, train
from segment.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: Those after the program's name; None takes the process's own.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # Python before 3.12 takes key=value behind an option for unknown ones: it filled the list before the option came.
    if options.command == "train" and all("=" in word and not word.startswith("-") for word in rest):
        options.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return run_command(lambda: int(options.function(options)))


def run_command(command: Callable[[], int]) -> int:
    """Runs it with quiet libraries; bad input and Ctrl-C become one line on standard error and an exit code."""
    _quiet_libraries()
    try:
        return command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _quiet_libraries() -> None:
    # TensorFlow prints its start-up notes below level 3 and albumentations asks the network for its newest version,
    # both at import, so this comes before either.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segment", description="Trains U-Nets that find small lesions, and reports on them."
    )
    parser.add_argument("--version", action="version", version=f"segment {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (check, plan, train, infer, merge_reports, export, evaluate, report, benchmark):
        command.add(commands)
    return parser
