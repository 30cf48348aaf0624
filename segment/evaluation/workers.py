"""Processes that take one case at a time, and outlive one that is ended from outside."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """So many processes, started when they are first needed; one worker is this process itself.

    They are kept from one `run` to the next: to start them takes a second each.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def run(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, done: Callable[[Result | None], None]
    ) -> list[Result | None]:
        """`function` of every item, in their order; None for an item whose process was ended from outside.

        Args:
            function: Can be pickled, as the items and results can, unless there is one worker.
            items: The cases.
            done: Called with each result as it comes.
        """
        if self.count == 1:
            return [_passed_on(function(item), done) for item in items]
        results: dict[int, Result | None] = self._try(function, dict(enumerate(items)), done)
        for index, item in enumerate(items):
            if index not in results:
                # A process that is ended from outside takes its pool along; alone, only the item to blame fails.
                alone = self._try(function, {index: item}, done)
                results[index] = alone[index] if index in alone else _passed_on(None, done)
        return [results[index] for index in range(len(items))]

    def _try(
        self, function: Callable[[Item], Result], items: Mapping[int, Item], done: Callable[[Result | None], None]
    ) -> dict[int, Result | None]:
        """The results by index, without those of the items that were left when a process was ended from outside."""
        if self._pool is None:
            # Spawned rather than forked: a fork of a process with threads can hang.
            # Ctrl-C reaches every process of the terminal; this one alone answers it.
            ignore = (signal.SIGINT, signal.SIG_IGN)
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=get_context("spawn"), initializer=signal.signal, initargs=ignore
            )
        results: dict[int, Result | None] = {}
        try:
            futures = {self._pool.submit(function, item): index for index, item in items.items()}
            for future in as_completed(futures):
                results[futures[future]] = _passed_on(future.result(), done)
        except BrokenProcessPool:
            self._close()
        return results

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _passed_on(result: Any, done: Callable[[Any], None]) -> Any:
    done(result)
    return result
