"""The parser that every benchmark starts from."""

from __future__ import annotations

import argparse

PROGRAM = "python scripts/benchmark.py"
FILTERS = [16, 32, 64, 128]


def benchmark_parser(name: str, about: str | None, *examples: str) -> argparse.ArgumentParser:
    """A parser that shows the benchmark's docstring as it is written, and examples.

    Args:
        name: Of the benchmark.
        about: Its docstring.
        examples: What stands behind the name in a call of it, one a line.
    """
    lines = [f"  {PROGRAM} {name} {example}".rstrip() for example in examples]
    return argparse.ArgumentParser(
        prog=f"benchmark.py {name}",
        description=about,
        epilog="\n".join(["example:" if len(lines) == 1 else "examples:", *lines]) if lines else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_filters(parser: argparse.ArgumentParser) -> None:
    """The option --filters of a benchmark that builds a network."""
    several = " ".join(map(str, FILTERS))
    parser.add_argument("--filters", type=int, nargs="+", default=FILTERS, help=f"of each level (default: {several})")
