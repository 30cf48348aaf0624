"""Memory-mapping .npy files whose dtype and shape are known, from several threads at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike


def map_npy(path: Path, dtype: DTypeLike, shape: Sequence[int]) -> np.memmap:
    """Maps a C-ordered .npy file read-only: only what is used is read.

    `np.load` parses the header with `ast.literal_eval`, which fails at random when threads call it together on CPython
    3.11 ("AST constructor recursion depth mismatch", python/cpython issue 106905). The values are the end of the file,
    so the header need not be read at all.

    Raises:
        OSError: The file is missing.
        ValueError: It is shorter than the values.
    """
    offset = path.stat().st_size - np.dtype(dtype).itemsize * math.prod(shape)
    if offset < 0:
        raise ValueError(f"{path}: expected {tuple(shape)} values of {np.dtype(dtype)}, found a shorter file")
    return np.memmap(path, dtype, "r", offset=offset, shape=tuple(shape))
