"""How much memory a call takes beyond what is there before it; in a module of its own for the peers' environment."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")


def extra_mib(call: Callable[[], Any]) -> float | None:
    """The peak of resident memory during the call above what was resident before it, in MiB; None outside Linux.

    Call it before anything of that size has run: an allocator keeps what it freed, and so hides what a call needs.
    """
    if not _STATUS.exists():
        return None
    import resource

    before, peak_before = kib("VmRSS"), kib("VmHWM")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    except OSError:
        # Then a peak of before, of importing for example, hides what stays below it.
        print(f"the peak of {peak_before} KiB of before could not be reset", file=sys.stderr)
    call()
    peak = kib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(peak - before, 0) / 1024


def kib(name: str) -> int:
    """A figure of /proc/self/status: "VmRSS", what is resident now, or "VmHWM", the most that was."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0
