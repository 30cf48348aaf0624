"""10,000 mutated NIfTI files: each is read or refused in one line that names it, within seconds and little memory."""

from __future__ import annotations

import gzip
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import nibabel as nib
import numpy as np
import pytest
from data_helpers import make_test_plan

from segment.data.preprocessing import to_network
from segment.data.scan import Case, ScanError, read_scan

FILES, BLOCKS = 10_000, 4
SECONDS = 5
SHAPE = (5, 4, 3)
PLAN = make_test_plan()
# What headers of files that were made by mistake or by malice hold: ends of ranges, and powers of two around them.
NUMBERS = (0, 1, 2, 3, 7, 8, 16, 32, 64, 128, 255, 256, 348, 352, 540, 544, 1024, 32767, 32768, 65535, 2**31 - 1, 2**31)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e-7, 0.5, 3.0, 1e4, 1e7, 1e30, 3e38, float("nan"), float("inf"), float("-inf"))


def seeds() -> list[bytes]:
    """Valid files: both versions of the format, both byte orders, several types, with and without slope."""
    values = np.random.default_rng(1).normal(100, 10, SHAPE)
    found = []
    for kind, image in ((nib.Nifti1Header, nib.Nifti1Image), (nib.Nifti2Header, nib.Nifti2Image)):
        for order, dtype in (("<", "i2"), (">", "i2"), ("<", "f4"), ("<", "u1"), ("<", "f8")):
            header = kind(endianness=order)
            header.set_data_dtype(order + dtype)
            scan = image(values.astype(order + dtype), np.diag([1.0, 1.0, 2.0, 1.0]), header)
            scan.header.set_slope_inter(2.0, 1.0) if dtype == "u1" else None
            found.append(bytes(scan.to_bytes()))
    return found


def mutated(rng: np.random.Generator, data: bytes) -> bytes:
    """One to six changes to the header, now and then some to the voxels, the length, or the compressed stream."""
    new = bytearray(data)
    header = 540 if data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else 348
    for _ in range(int(rng.integers(1, 7))):
        place = int(rng.integers(0, header))
        order = "<>"[int(rng.integers(2))]
        match int(rng.integers(6)):
            case 0:
                new[place] ^= 1 << int(rng.integers(8))
            case 1:
                new[place : place + 2] = struct.pack(order + "H", NUMBERS[int(rng.integers(len(NUMBERS)))] & 0xFFFF)
            case 2:
                new[place : place + 4] = struct.pack(order + "f", FLOATS[int(rng.integers(len(FLOATS)))])
            case 3:
                new[place : place + 8] = struct.pack(
                    order + "q", int(rng.choice([-1, 1])) * (2 ** int(rng.integers(63)))
                )
            case 4:
                new[place : place + int(rng.integers(1, 16))] = rng.bytes(int(rng.integers(1, 16)))
            case _:
                fields = range(40, 56, 2) if header == 348 else range(16, 80, 8)  # dim
                value = int(rng.choice([-1, 0, 1, 2, 3, 4, 5, 7, 8, 300, 32767]))
                where = int(rng.choice(list(fields)))
                new[where : where + 2] = struct.pack("<h", value)
    result = bytes(new)
    if rng.random() < 0.15:
        result = result[: int(rng.integers(0, len(result)))]
    if rng.random() < 0.4:
        stream = bytearray(gzip.compress(result, 1))
        if rng.random() < 0.3:
            stream[int(rng.integers(2, len(stream)))] ^= 1 << int(rng.integers(8))
        result = bytes(stream)
    return result


@contextmanager
def at_most_five_seconds() -> Iterator[None]:
    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_mutated_files(tmp_path: Path, block: int) -> None:
    rng = np.random.default_rng([20, block])
    path, valid, before = tmp_path / "scan.nii.gz", seeds(), peak_mib()
    case = Case("mutated", "mutated", (path,), None)
    used = 0
    for _ in range(FILES // BLOCKS):
        path.write_bytes(mutated(rng, valid[int(rng.integers(len(valid)))]))
        refusal = None
        with at_most_five_seconds():
            try:
                scan = read_scan(case, with_label=False)
                network, _, _ = to_network(scan, PLAN)
            except ScanError as error:
                refusal = str(error)
        if refusal is None:
            used += 1
            assert scan.image.shape[:3] == scan.grid.shape
            assert np.isfinite(scan.grid.affine).all()
            assert np.isfinite(network).all()
        else:
            assert "case mutated" in refusal
            assert "\n" not in refusal
    assert 0.05 < used / (FILES // BLOCKS) < 0.95  # both ways are gone
    assert peak_mib() - before < 600
