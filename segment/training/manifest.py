"""What a run was made with: versions, commit, hardware and the hashes of its data, as manifest.json."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow as tf

import segment
from segment.data.cases import Case
from segment.errors import InputError
from segment.evaluation import definitions
from segment.files import sha256_of
from segment.memory_use import peak_bytes


def versions() -> dict[str, str]:
    """Versions of this package, Python and the packages that a result depends on."""
    # Keras 2 does not show its version on tf.keras; its package is installed beside TensorFlow.
    keras = str(getattr(tf.keras, "__version__", None) or version("keras"))
    others = {name: version(name) for name in ("albumentations", "pydantic")}
    return definitions.versions() | {"tensorflow": tf.__version__, "keras": keras} | others


def commit() -> str | None:
    """The git commit of this package's source, with "+changes" if files differ from it; None when it is installed."""
    source = Path(segment.__file__).parent
    if _git(source, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # a site-packages folder inside someone else's repository is not our commit
    head = _git(source, "rev-parse", "HEAD")
    changed = _git(source, "status", "--porcelain", "--untracked-files=no")
    return head + "+changes" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hardware() -> dict[str, Any]:
    """CPU model, usable cores, memory, and the visible GPUs by name."""
    gpus = tf.config.get_visible_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": _cpu_model(), "cores": cores, "memory_gib": round(memory, 1), "gpus": names}


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def peak_memory_gib() -> float:
    """The largest resident memory that this process has had, in GiB."""
    return peak_bytes() / 2**30


def data_hashes(cases: Sequence[Case], more: Sequence[Path] = ()) -> dict[str, str]:
    """SHA-256 of every file of the cases, and of more, by path. Raises InputError for a file that cannot be read."""
    paths = [path for case in cases for path in (*case.image_paths, case.label_path) if path is not None]
    try:
        return {str(path): sha256_of(path) for path in dict.fromkeys([*paths, *more])}
    except OSError as cause:
        raise InputError(f"cannot read {cause.filename}: {cause.strerror or cause}") from cause
