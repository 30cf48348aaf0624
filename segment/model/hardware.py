"""What this machine computes fast: which number format pays on its GPUs or its CPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from segment.errors import InputError

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


def resolve_precision(
    requested: str, *, compute_capabilities: Sequence[tuple[int, int]], cpu_flags: frozenset[str]
) -> str:
    """Turns `auto` into the fastest safe format; any other valid name is returned unchanged.

    With GPUs the oldest one decides: bfloat16 from compute capability 8, float16 (with loss scaling) from 7, else
    float32. Without GPUs bfloat16 needs AMX or AVX512_BF16: elsewhere TensorFlow emulates it, slower than float32.

    Args:
        requested: `auto` or one of PRECISIONS.
        compute_capabilities: (major, minor) of each GPU that is used; empty for a run on the CPU.
        cpu_flags: Feature names of the CPU, for example {"avx2", "amx_bf16"}.

    Raises:
        InputError: `requested` is unknown.
    """
    if requested in PRECISIONS:
        return requested
    if requested != "auto":
        raise InputError(f"train.precision: expected auto or one of {', '.join(PRECISIONS)}, found {requested!r}")
    for precision in ("mixed_bfloat16", "mixed_float16"):
        if pays(precision, compute_capabilities=compute_capabilities, cpu_flags=cpu_flags):
            return precision
    return "float32"


def pays(precision: str, *, compute_capabilities: Sequence[tuple[int, int]], cpu_flags: frozenset[str]) -> bool:
    """Whether this machine computes a format of PRECISIONS at least as fast as float32; arguments as above."""
    if precision == "float32":
        return True
    if compute_capabilities:
        return min(compute_capabilities)[0] >= (8 if precision == "mixed_bfloat16" else 7)
    return precision == "mixed_bfloat16" and bool(cpu_flags & {"amx_bf16", "avx512_bf16"})


def compute_capabilities() -> list[tuple[int, int]]:
    """The (major, minor) compute capability of each visible GPU; (0, 0) for one that does not tell (not NVIDIA's)."""
    gpus = tf.config.get_visible_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return [tuple(detail.get("compute_capability", (0, 0))) for detail in details]


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The feature flags of this machine's first CPU; empty where the file is missing (macOS, Windows)."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(line.group(1).split()) if line else frozenset()
