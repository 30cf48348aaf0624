"""Tasks that run at a time keep to their own cores, and a failure begins nothing new."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from segment.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from benchmarks.side_by_side import run_side_by_side

CORES = sorted(os.sched_getaffinity(0))
TOGETHER = threading.Barrier(2)
ASK = "import os; print(*sorted(os.sched_getaffinity(0)))"


def cores_of_a_process(_: int) -> list[int]:
    TOGETHER.wait(60)  # until both jobs have a task
    asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    return [int(core) for core in asked.stdout.split()]


@pytest.mark.skipif(len(CORES) < 2, reason="this machine has one core")
def test_each_job_has_cores_of_its_own() -> None:
    found = {task: tuple(cores) for task, cores in run_side_by_side(range(4), cores_of_a_process, jobs=2)}
    assert sorted(found) == [0, 1, 2, 3]
    half = len(CORES) // 2
    assert set(found.values()) == {tuple(CORES[:half]), tuple(CORES[half : 2 * half])}
    assert sorted(os.sched_getaffinity(0)) == CORES


def test_one_job_has_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "TOGETHER", threading.Barrier(1))
    assert [cores for _, cores in run_side_by_side([0], cores_of_a_process, jobs=1)] == [CORES]


def test_more_jobs_than_cores_are_refused() -> None:
    with pytest.raises(InputError, match=f"--jobs: expected at most {len(CORES)}"):
        list(run_side_by_side([0], cores_of_a_process, jobs=len(CORES) + 1))


def test_a_failure_begins_nothing_new() -> None:
    begun = []

    def work(task: int) -> int:
        begun.append(task)
        if task == 1:
            raise InputError("the second failed")
        time.sleep(0.05 * task)
        return task

    results = run_side_by_side(range(50), work, jobs=1)
    assert next(results) == (0, 0)
    with pytest.raises(InputError, match="the second failed"):
        list(results)
    assert len(begun) < 50
