"""What the commands' argument parsers share."""

from __future__ import annotations

import argparse
import math
import os
import sys

LANGUAGES = ("en", "zh")
Commands = argparse._SubParsersAction


def add_command(commands: Commands, name: str, help_line: str, example: str) -> argparse.ArgumentParser:
    """A parser for one command, whose --help ends with an example."""
    return commands.add_parser(
        name,
        help=help_line,
        description=help_line,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def at_least_one(text: str) -> int:
    """An argument type: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return value


def not_negative(text: str) -> float:
    """An argument type: a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, found {text!r}")
    return value


def open_share(text: str) -> float:
    """An argument type: a number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, found {text!r}")
    return value


def positive_number(text: str) -> float:
    """An argument type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return value


def shard_of(text: str) -> tuple[int, int]:
    """An argument type: K/N with 1 <= K <= N."""
    parts = text.split("/")
    if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
        index, count = (int(part) for part in parts)
        if 1 <= index <= count:
            return index, count
    raise argparse.ArgumentTypeError(f"expected K/N such as 3/8, with K from 1 to N, found {text!r}")


def import_tensorflow() -> None:
    """Imports it without the notes that its C++ side prints whatever the log level is; errors are raised as ever."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(kept, 2)
            os.close(kept)
