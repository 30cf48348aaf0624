"""Measures speed and accuracy, beside the tools that people use today; see --help. One file a benchmark."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from segment.cli import run_command
from segment.commands.arguments import import_tensorflow

BENCHMARKS = Path(__file__).with_name("benchmarks")
NAMES = (
    "step",
    "step_overhead",
    "data",
    "infer",
    "evaluate",
    "losses",
    "accuracy",
    "ablation",
    "lesion_load",
    "lesion_pictures",
    "peers",
    "plan_memory",
)
STARTS_TENSORFLOW = ("step", "step_overhead", "data")  # as they are imported; the others later, or in processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `scripts/benchmarks/NAME.py` with the arguments after NAME; exit codes as of the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, str(BENCHMARKS.parent))
    if not given or given[0] not in NAMES:
        known = "\n".join(f"  {name:<15} {_first_line(name)}" for name in NAMES)
        print(f"usage: python scripts/benchmark.py NAME [--help] [options]\n\n{known}")
        if given[:1] in ([], ["-h"], ["--help"]):
            return 0
        print(f"error: expected one of these names, found {given[0]!r}", file=sys.stderr)
        return 2
    return run_command(lambda: _run(given[0], given[1:]))


def _run(name: str, arguments: Sequence[str]) -> int:
    if name in STARTS_TENSORFLOW:
        import_tensorflow()
    return int(importlib.import_module(f"benchmarks.{name}").main(arguments))


def _first_line(name: str) -> str:
    text = (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")
    return text.split('"""', 2)[1].strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
