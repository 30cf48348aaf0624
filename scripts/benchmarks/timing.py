"""What the benchmarks share: timing, the machine's name and its matrix peak, and tables."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WARM_UP = 2


def seconds_of(call: Callable[[], Any], *, repeats: int) -> list[float]:
    """Wall seconds of each of `repeats` calls after two that are not counted; a call must wait for its result."""
    for _ in range(WARM_UP):
        call()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return taken


def matmul_flops_per_second(dtype: str, *, size: int = 2048, repeats: int = 7) -> float:
    """The machine's matrix-multiply speed in floating-point operations a second: the best of `repeats`."""
    import tensorflow as tf

    matrix = tf.cast(tf.random.stateless_normal((size, size), (0, 0)), dtype)
    multiply = tf.function(lambda: tf.matmul(matrix, matrix)[0, 0])
    return 2.0 * size**3 / min(seconds_of(lambda: multiply().numpy(), repeats=repeats))


def machine() -> str:
    """Processor, cores that this process may use, system and Python, in one line."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = names[0] if names else platform.processor()
    return f"{name}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers are shown with three significant digits."""
    lines = [columns, ["---"] * len(columns), *([_shown(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(cell: object) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def median(values: Sequence[float]) -> float:
    """The median of at least one value."""
    return statistics.median(values)
