"""Work of several processes at a time, each with its own share of the cores, so that none is slowed by another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import TypeVar

from segment.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_side_by_side(
    tasks: Sequence[Task], work: Callable[[Task], Result], *, jobs: int
) -> Iterator[tuple[Task, Result]]:
    """Calls `work` for every task and gives each with its result as it ends.

    Args:
        tasks: Begun in this order.
        work: Starts processes and waits for them; they keep to the cores of the thread that started them.
        jobs: Tasks at a time. The cores are divided evenly, and what is left over stays idle.

    Raises:
        InputError: There are more jobs than cores, or `work` raised it: then nothing new is begun.
    """
    with ThreadPoolExecutor(jobs, initializer=_keep_to, initargs=(_shares(jobs),)) as pool:
        waiting = {pool.submit(work, task): task for task in tasks}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:  # also where the caller gives up
            pool.shutdown(wait=False, cancel_futures=True)


def _shares(jobs: int) -> SimpleQueue[list[int]]:
    shares: SimpleQueue[list[int]] = SimpleQueue()
    if jobs > 1:
        cores = sorted(os.sched_getaffinity(0))
        each = len(cores) // jobs
        if each < 1:
            raise InputError(f"--jobs: expected at most {len(cores)}, the cores of this machine, found {jobs}")
        for job in range(jobs):
            shares.put(cores[job * each : (job + 1) * each])
    return shares


def _keep_to(shares: SimpleQueue[list[int]]) -> None:
    """The calling thread, and with it every process that it starts, to the next share; a single job has all cores."""
    if not shares.empty():
        os.sched_setaffinity(0, shares.get())
