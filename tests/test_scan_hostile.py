"""Files that no scanner meant to write: each ends in one line that names the file, in little memory and time."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import SHAPE, scan_file, write_nifti
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segment.data.scan import ScanError, read_mask, read_volume, write_mask

# Byte offsets in a NIfTI-1 header (the NIfTI-1 standard's nifti1.h).
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE = 40, 70, 72, 76, 108, 112
QFORM_CODE, SFORM_CODE, QUATERN_B, SROW_X, MAGIC = 252, 254, 256, 280, 344


def patched(path: Path, *changes: tuple[int, str, list[float]]) -> Path:
    """A valid scan at `path` with values written over its header: (offset, type, values)."""
    data = bytearray(scan_file(path.with_name("valid.nii")).read_bytes())
    for offset, kind, values in changes:
        new = np.array(values, kind).tobytes()
        data[offset : offset + len(new)] = new
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def affine_rows(*rows: list[float]) -> tuple[int, str, list[float]]:
    return SROW_X, "<f4", [value for row in rows for value in row]


HEADERS = {
    "promises_100_gb": (((DIM, "<i2", [3, 4000, 2500, 5000]),), "too_large", "50000000000 voxels; expected at most"),
    "promises_2_gb": (
        ((DIM, "<i2", [3, 1000, 1000, 1000]),),
        "truncated",
        "promises 2000000352 bytes, the file can hold",
    ),
    "zero_length": (((DIM, "<i2", [3, 8, 0, 6]),), "dimensions", "at least 1 voxel"),
    "negative_length": (((DIM, "<i2", [3, 8, -7, 6]),), "dimensions", "at least 1 voxel"),
    "time_series": (((DIM, "<i2", [4, 8, 7, 3, 2]),), "dimensions", r"one 3D volume, found shape \(8, 7, 3, 2\)"),
    "vectors": (((DIM, "<i2", [5, 8, 7, 2, 1, 3]),), "dimensions", r"found shape \(8, 7, 2, 1, 3\)"),
    "one_dimension": (((DIM, "<i2", [1, 336]),), "dimensions", r"found shape \(336,\)"),
    "complex": (((DATATYPE, "<i2", [32, 64]),), "data_type", "found data type complex64"),
    "rgb": (((DATATYPE, "<i2", [128, 24]),), "data_type", "found data type RGB"),
    "binary": (((DATATYPE, "<i2", [1, 1]),), "data_type", "found data type binary"),
    "unknown_type": (((DATATYPE, "<i2", [77]),), "data_type", "found code 77"),
    "wrong_magic": (((MAGIC, "u1", [0, 0, 0, 0]),), "header", "NIfTI magic"),
    "image_pair": (((MAGIC, "u1", [ord("n"), ord("i"), ord("1"), 0]),), "header", r"\.hdr and \.img"),
    "offset_nan": (((VOX_OFFSET, "<f4", [np.nan]),), "header", "vox_offset, found nan"),
    "offset_in_header": (((VOX_OFFSET, "<f4", [10]),), "header", "vox offset 10 too low"),
    "offset_behind_end": (((VOX_OFFSET, "<f4", [1e30]),), "truncated", "the file can hold"),
    "intercept_nan": (((SLOPE, "<f4", [1, np.nan]),), "header", "intercept"),
    "affine_nan": ((affine_rows([np.nan, 0, 0, 0]),), "affine", "invertible affine"),
    "affine_infinite": ((affine_rows([1, 0, 0, np.inf]),), "affine", "invertible affine"),
    "affine_zero": ((affine_rows([0] * 4, [0] * 4, [0] * 4),), "affine", "invertible affine"),
    "affine_flat": ((affine_rows([1, 0, 0, 0], [2, 0, 0, 0], [0, 0, 1, 0]),), "affine", "invertible affine"),
    "affine_huge": ((affine_rows([1e30, 0, 0, 0], [0, 1e30, 0, 0], [0, 0, 1e30, 0]),), "affine", "invertible affine"),
    "no_voxel_size": (((SFORM_CODE, "<i2", [0]), (PIXDIM, "<f4", [1, 0, 1, 1])), "affine", "voxel size above 0"),
    "qform_not_a_rotation": (
        ((QFORM_CODE, "<i2", [1, 0]), (QUATERN_B, "<f4", [2, 2, 2])),
        "affine",
        "qform is not valid",
    ),
}


class TestHeaders:
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("name", HEADERS)
    def test_one_line_and_little_memory(self, tmp_path: Path, name: str, ending: str) -> None:
        changes, kind, message = HEADERS[name]
        path = patched(tmp_path / f"bad{ending}", *changes)
        tracemalloc.start()
        with pytest.raises(ScanError, match=message) as caught:
            read_volume(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert caught.value.kind == kind
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
        assert peak < 8 * 2**20

    def test_a_compressed_file_whose_header_promises_what_it_could_hold(self, tmp_path: Path) -> None:
        path = patched(tmp_path / "a.nii.gz", (DIM, "<i2", [3, 60, 60, 60]))
        with pytest.raises(ScanError, match=r"ends before its last voxel") as caught:
            read_volume(path)
        assert caught.value.kind == "truncated"

    def test_qform_that_is_no_rotation_does_not_matter_beside_an_sform(self, tmp_path: Path) -> None:
        path = patched(tmp_path / "a.nii", (QFORM_CODE, "<i2", [1]), (QUATERN_B, "<f4", [2, 2, 2]))
        _, grid, header = read_volume(path)
        np.testing.assert_array_equal(grid.affine, nib.load(path).affine)
        write_mask(tmp_path / "m.nii", np.ones(SHAPE, np.uint8), grid, header)
        assert read_mask(tmp_path / "m.nii")[1].matches(grid)

    def test_all_zeros_and_one_slice_work(self, tmp_path: Path) -> None:
        assert read_volume(write_nifti(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8)))[0].max() == 0
        assert read_volume(write_nifti(tmp_path / "b.nii.gz", np.ones((5, 4, 1), np.uint8)))[0].shape == (5, 4, 1)

    def test_float64_beyond_float32_is_reported_as_infinity(self, tmp_path: Path) -> None:
        path = write_nifti(tmp_path / "a.nii", np.full(SHAPE, 1e300))
        with pytest.raises(ScanError, match="NaN or infinity in 336 of 336 voxels"):
            read_volume(path)


class TestFiles:
    def check(self, path: Path, kind: str, message: str) -> None:
        with pytest.raises(ScanError, match=message) as caught:
            read_volume(path)
        assert caught.value.kind == kind
        assert str(path) in str(caught.value)

    def test_missing(self, tmp_path: Path) -> None:
        self.check(tmp_path / "a.nii.gz", "missing", "no such file; check the path")

    def test_dangling_link(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii.gz").symlink_to(tmp_path / "gone")
        self.check(tmp_path / "a.nii.gz", "missing", "a link to a file that does not exist")

    def test_link_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii.gz").symlink_to(tmp_path / "a.nii.gz")
        self.check(tmp_path / "a.nii.gz", "unreadable", "cannot be read")

    def test_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii.gz").mkdir()
        self.check(tmp_path / "a.nii.gz", "unreadable", "expected a NIfTI file, found a folder")

    def test_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.nii.gz")
        self.check(tmp_path / "a.nii.gz", "unreadable", "found a device or pipe")

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = scan_file(tmp_path / "a.nii")

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)  # root, who runs the tests in containers, may read everything
        self.check(path, "unreadable", "cannot be read: Permission denied; check the path and its permissions")

    def test_empty(self, tmp_path: Path) -> None:
        for name, data in (("a.nii", b""), ("b.nii.gz", b""), ("c.nii.gz", gzip.compress(b""))):
            (tmp_path / name).write_bytes(data)
            self.check(tmp_path / name, "truncated", "found an empty one")

    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.nii.gz").write_bytes(b"<html>404 not found</html>" * 40)
        self.check(tmp_path / "a.nii.gz", "header", r"starts with b'<htm'")

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
    def test_truncated(self, tmp_path: Path, share: float) -> None:
        for name in ("a.nii", "a.nii.gz"):
            data = scan_file(tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(data[: int(share * len(data))])
            self.check(tmp_path / name, "truncated", "copy or export it again")

    def test_every_damaged_byte_of_the_compressed_data_is_noticed(self, tmp_path: Path) -> None:
        path = scan_file(tmp_path / "a.nii.gz")
        data = path.read_bytes()
        for position in range(10, len(data)):  # ten bytes of gzip header hold nothing that matters
            path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
            with pytest.raises(ScanError, match=r"a\.nii\.gz"):
                read_volume(path)

    def test_trailing_bytes_are_read_past_and_a_bomb_is_not(self, tmp_path: Path) -> None:
        data = scan_file(tmp_path / "a.nii").read_bytes()
        path = tmp_path / "b.nii.gz"
        path.write_bytes(gzip.compress(data + bytes(1000)))
        assert read_volume(path)[0].max() == 8 * 7 * 6 - 1
        path.write_bytes(gzip.compress(data + bytes(2**26 + 1000), 1))
        self.check(path, "unreadable", "holds far more data than its header promises")

    def test_long_and_non_ascii_names(self, tmp_path: Path) -> None:
        assert read_volume(scan_file(tmp_path / ("ä脳" * 40 + ".nii.gz")))[0].shape == SHAPE
        self.check(tmp_path / ("x" * 300 + ".nii"), "unreadable", "cannot be read: File name too long")


@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 351), st.binary(min_size=1, max_size=8)), min_size=1, max_size=5),
    keep=st.one_of(st.none(), st.integers(0, 1024)),
    compress=st.booleans(),
)
def test_any_mutated_file_is_read_or_refused_in_one_line(
    tmp_path: Path, changes: list[tuple[int, bytes]], keep: int | None, compress: bool
) -> None:
    data = bytearray(scan_file(tmp_path / "valid.nii").read_bytes())
    for offset, new in changes:
        data[offset : offset + len(new)] = new
    finish: Callable[[bytes], bytes] = gzip.compress if compress else bytes
    path = tmp_path / "mutated.nii"
    path.write_bytes(finish(bytes(data))[:keep])
    refusal = None
    try:
        values, grid, _ = read_volume(path)
    except ScanError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(path) in refusal
        assert "\n" not in refusal
    else:
        assert values.shape == grid.shape
        assert np.isfinite(grid.affine).all()
