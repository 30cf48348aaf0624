"""Memory-mapped .npy files: the values that NumPy wrote, from many threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from segment.data.mapped import map_npy


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_the_values_that_were_written(tmp_path: Path, dtype: type) -> None:
    values = np.arange(60).reshape(3, 4, 5).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    mapped = map_npy(tmp_path / "a.npy", dtype, (3, 4, 5))
    np.testing.assert_array_equal(mapped, values)
    assert not mapped.flags.writeable


def test_a_file_that_is_too_short(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"a\.npy: expected \(100, 100\) values of float32, found a shorter file"):
        map_npy(tmp_path / "a.npy", np.float32, (100, 100))


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.float32)
    np.save(tmp_path / "a.npy", values)
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda _: float(map_npy(tmp_path / "a.npy", np.float32, (1000,)).sum()), range(2000)))
    assert set(sums) == {499500.0}
