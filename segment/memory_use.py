"""Memory of this process, as the operating system counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """What is held now; on systems other than Linux the most that ever was."""
    return _from_status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """The most that was ever held.

    On Linux since the program began: `getrusage` also counts what the process was that started it, which is that
    process' own memory.
    """
    peak = _from_status("VmHWM")
    if peak is None:
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = largest if sys.platform == "darwin" else largest * 1024
    return peak


def _from_status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
