"""Progress on the terminal: a bar where a person is watching, nothing where nobody is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

_DRAWN = Lock()
CONSOLE = Console(stderr=True, highlight=False)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Bar:
    """One bar. `advance` moves it; the note behind it is free text, for example the loss."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Moves on by `count`; a note of None leaves the note as it was."""
        if note is None:
            self._progress.update(self._task, advance=count)
        else:
            self._progress.update(self._task, advance=count, note=note)


@contextmanager
def progress_bar(description: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """A bar on standard error with count, elapsed and remaining time; draws nothing unless that is a terminal.

    Nor does it within another bar: rich before 14.1 has one at a time.
    """
    # On a narrow terminal the bar gives way first, then the end of the note; count and times stay whole.
    count = 2 * len(str(total)) + 1
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(description))),
        BarColumn(table_column=Column()),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=count)),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("{task.fields[note]}", markup=False),
    )
    first = _DRAWN.acquire(blocking=False)
    try:
        with Progress(*columns, console=CONSOLE, disable=not (first and CONSOLE.is_terminal)) as progress:
            yield Bar(progress, progress.add_task(description, total=total, completed=done, note=""))
    finally:
        if first:
            _DRAWN.release()


def in_threads(
    description: str, call: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> list[Result]:
    """What `call` makes of each item, in order, with a bar; so many at a time as there are workers.

    The first error is raised. Then, as after Ctrl-C, the items that have not begun are left out.
    """
    pool = ThreadPoolExecutor(workers)
    results: list[Result] = []
    try:
        with progress_bar(description, len(items)) as bar:
            for result in pool.map(call, items):
                results.append(result)
                bar.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return results
