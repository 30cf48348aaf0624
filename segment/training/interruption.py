"""SIGTERM and Ctrl-C: asked for at any moment, obeyed where the state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The user or the scheduler asked to stop; `code` is the exit code that shells expect, 128 + the signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"interrupted, exit code {code}")
        self.code = code


class StopRequest:
    """Whether a signal has come. `check` raises Interrupted if so; call it wherever stopping is safe."""

    def __init__(self) -> None:
        self.code: int | None = None

    def check(self) -> None:
        """Raises Interrupted when a signal has come."""
        if self.code is not None:
            raise Interrupted(self.code)

    def check_together(self, agree: Callable[[int], int]) -> None:
        """`check` for several processes: all raise Interrupted at the same call when a signal has come to any.

        Args:
            agree: Gives the largest of the numbers of all processes, as `Team.agree`.
        """
        code = agree(self.code or 0)
        if code:
            raise Interrupted(code)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catches SIGTERM and the first Ctrl-C; a second Ctrl-C acts as usual, for those who cannot wait.

    Schedulers may send SIGTERM several times, which must not cut the checkpoint short. Python runs signal handlers in
    the main thread only; elsewhere nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        request.code = 128 + number
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
