"""The cache of prepared cases under several processes: run at once, and killed in the middle of a case."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_dataset
from data_helpers import make_test_plan

from segment.data.cases import find_dataset
from segment.data.preprocessing import prepare_cases

PLAN = make_test_plan(spacing_mm=(0.5, 0.5, 1.0))
TESTS = Path(__file__).parent
# Prepares all cases; with a name, stops for good in the middle of writing the array of that name of the second case.
SCRIPT = """
import os, sys, time
from pathlib import Path
import numpy as np
from data_helpers import make_test_plan
from segment.data.cases import find_dataset
from segment.data.preprocessing import prepare_cases
root, cache, stop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
save, saved = np.save, []
def slow(handle, array):
    saved.append(Path(handle.name).name)
    if stop and saved.count(stop) == 2:
        handle.write(b"half of it")
        handle.flush()
        print("in the middle", flush=True)
        time.sleep(600)
    save(handle, array)
np.save = slow
print("ready", flush=True)
sys.stdin.readline()
cases = find_dataset(root, layout="nnunet").cases
prepare_cases(cases, make_test_plan(spacing_mm=(0.5, 0.5, 1.0)), cache_dir=cache, workers=2 - bool(stop))
"""


def start(root: Path, cache: Path, stop: str = "") -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), str(cache), stop],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def content(cache: Path) -> dict[str, str]:
    """Hash of every file by its path, leftovers apart."""
    files = (path for path in sorted(cache.rglob("*")) if path.is_file() and not path.parent.name.startswith("."))
    return {path.relative_to(cache).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data"), cases=6, shape=(20, 18, 16))


@pytest.fixture(scope="module")
def expected(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one undisturbed run writes."""
    cache = tmp_path_factory.mktemp("alone")
    prepare_cases(find_dataset(root, layout="nnunet").cases, PLAN, cache_dir=cache, workers=1)
    return content(cache)


def test_three_processes_at_once(root: Path, expected: dict[str, str], tmp_path: Path) -> None:
    processes = [start(root, tmp_path / "cache") for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # all have imported: now they begin together
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(expected) == 6 * 4
    assert content(tmp_path / "cache") == expected
    assert not list((tmp_path / "cache").glob(".tmp-*"))
    for process in processes:
        process.communicate()


@pytest.mark.parametrize("stop", ["image.npy", "voxels.npy"])
def test_killed_in_the_middle_of_a_case(root: Path, expected: dict[str, str], tmp_path: Path, stop: str) -> None:
    cache = tmp_path / "cache"
    process = start(root, cache, stop)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    assert process.stdout.readline() == "in the middle\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = content(cache)
    assert len(kept) == 4  # the first case, whole
    assert kept.items() <= expected.items()
    (leftover,) = cache.glob(".tmp-*")
    begun = {path: path.stat().st_mtime_ns for path in cache.rglob("case.json")}
    cases = find_dataset(root, layout="nnunet").cases
    prepared = prepare_cases(cases, PLAN, cache_dir=cache, workers=2)
    assert content(cache) == expected
    assert all(path.stat().st_mtime_ns == written for path, written in begun.items())  # not written again
    assert all(np.isfinite(case.image()).all() for case in prepared)
    # The leftover may belong to a run that goes on; it is removed when it is a day old.
    assert leftover.exists()
    os.utime(leftover, (time.time() - 25 * 3600,) * 2)
    prepare_cases(cases, PLAN, cache_dir=cache, workers=1)
    assert not leftover.exists()
