"""NIfTI-1 and NIfTI-2 files as bytes: no header can make the reader take more memory than the file fills.

nibabel parses the header and knows the types; the voxels are read here, because a damaged or hostile file has to end in
one clear line, and because slope and intercept are applied without a float64 copy of the volume.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from segment.errors import InputError
from segment.files import atomic_path

ENDINGS = (".nii.gz", ".nii")
MAX_VOXELS = 2**30  # 1024^3, 4 GiB as float32: above any clinical scan, below what a typing error in a header asks for
BLOCK_VOXELS = 1 << 20  # voxels converted at a time
MAX_SURPLUS = 2**26  # bytes after the last voxel that are read for the checksum's sake
DEFLATE_RATIO = 1032  # deflate cannot shrink further (zlib, "Maximum Compression Factor")
SCALAR_KINDS = "iuf"
# nibabel reports each repaired header field through a logger, by default onto the terminal.
_SILENT = logging.Logger("segment.nifti", level=logging.CRITICAL + 1)


class ScanError(InputError):
    """A file that cannot be used as a scan or a label.

    Attributes:
        kind: missing, unreadable, truncated, header, data_type, dimensions, channels, affine, too_large, non_finite,
            label_values or grid.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_nifti(path: Path, *, volume: int | None = None) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Reads a .nii or .nii.gz file; whether it is compressed is told from its first bytes.

    Args:
        path: The file.
        volume: Read only this one of the volumes [x, y, z] that the file holds, counted from 0; None reads all.

    Returns:
        values: float32 in the file's own axis order, column-major, all dimensions of the header (the first three with
            `volume`), with slope and intercept applied (in float64). May hold NaN and infinity.
        header: nibabel's, NIfTI-1 or NIfTI-2 as the file; repaired where nibabel repairs.

    Raises:
        ScanError: It is missing, not a file, not NIfTI, truncated, damaged, of a type that is no single number a voxel,
            larger than `MAX_VOXELS`, or does not hold the volume. Memory stays below that of the voxels that are asked
            for and the file really holds, and one block.
    """
    with _opened(path) as (stream, capacity):
        return _read_stream(stream, path, capacity, volume)


def read_header(path: Path) -> nib.Nifti1Header:
    """A file's header, repaired where nibabel repairs. Raises ScanError as `read_nifti`; voxels are not read."""
    with _opened(path) as (stream, _):
        return _read_header(stream, path)


def read_shape(path: Path) -> tuple[int, ...]:
    """The shape that a file's header gives, at least 3 axes. Raises ScanError as `read_header`."""
    header = read_header(path)
    shape = tuple(int(length) for length in header["dim"][1 : 1 + int(header["dim"][0])])
    return shape + (1,) * (3 - len(shape))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """The decompressed bytes, and how many there can be at most; what goes wrong within ends as a ScanError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ScanError("unreadable", f"{path}: expected a NIfTI file, found {_kind_of(status.st_mode)}")
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            capacity = status.st_size * (DEFLATE_RATIO if compressed else 1)
            if not compressed:
                yield raw, capacity
            else:
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield stream, capacity
    except FileNotFoundError as cause:
        what = "a link to a file that does not exist" if os.path.islink(path) else "no such file"
        raise ScanError("missing", f"{path}: {what}; check the path") from cause
    except EOFError as cause:
        raise ScanError("truncated", f"{path}: the compressed file ends too early; copy or export it again") from cause
    except (zlib.error, gzip.BadGzipFile) as cause:
        raise ScanError(
            "unreadable", f"{path}: the compressed data are damaged ({cause}); copy or export it again"
        ) from cause
    except OSError as cause:
        raise ScanError(
            "unreadable", f"{path}: cannot be read: {cause.strerror or cause}; check the path and its permissions"
        ) from cause
    except MemoryError as cause:
        raise ScanError("too_large", f"{path}: its voxels do not fit into the memory of this machine") from cause


def _kind_of(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a device or pipe"


def _read_stream(
    stream: io.BufferedIOBase, path: Path, capacity: int, volume: int | None
) -> tuple[np.ndarray, nib.Nifti1Header]:
    header = _read_header(stream, path)
    shape = tuple(int(length) for length in header["dim"][1 : 1 + int(header["dim"][0])])
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise ScanError(
            "too_large", f"{path}: the header gives shape {shape}, {voxels} voxels; expected at most {MAX_VOXELS}"
        )
    offset = int(header["vox_offset"]) or int(header["sizeof_hdr"]) + 4  # check_fix refused those inside the header
    promised = offset + voxels * header.get_data_dtype().itemsize
    if promised > capacity:
        raise ScanError(
            "truncated",
            f"{path}: the header promises {promised} bytes, the file can hold {capacity}; copy or export it again",
        )
    if volume is not None:
        shape = (*shape, 1, 1)[:3]
        if volume >= voxels // math.prod(shape):
            found = f"{voxels // math.prod(shape)} in it"
            raise ScanError("channels", f"{path}: expected at least {volume + 1} volumes (4D), found {found}")
        voxels = math.prod(shape)
        offset += volume * voxels * header.get_data_dtype().itemsize
    stream.seek(offset)
    values = _read_voxels(stream, header, voxels, path)
    if isinstance(stream, gzip.GzipFile):
        _require_checksum(stream, path, promised)
    return values.reshape(shape, order="F"), header


def _require_checksum(stream: gzip.GzipFile, path: Path, promised: int) -> None:
    """Reads on to the end, where gzip compares its checksum: damaged data may well decompress, to other voxels."""
    while stream.read(BLOCK_VOXELS):
        if stream.tell() > promised + MAX_SURPLUS:
            raise ScanError("unreadable", f"{path}: holds far more data than its header promises; export it again")


def _read_header(stream: io.BufferedIOBase, path: Path) -> nib.Nifti1Header:
    block = stream.read(348)
    if not block:
        raise ScanError("truncated", f"{path}: expected a NIfTI file, found an empty one; copy or export it again")
    order = "<" if block[:4] in (b"\x5c\x01\x00\x00", b"\x1c\x02\x00\x00") else ">"
    size = int.from_bytes(block[:4], "little" if order == "<" else "big")
    kind = {348: nib.Nifti1Header, 540: nib.Nifti2Header}.get(size)
    if kind is None:
        raise ScanError(
            "header", f"{path}: expected a NIfTI file, found one that starts with {block[:4]!r}; convert it to .nii.gz"
        )
    block += stream.read(size - 348)
    if len(block) < size:
        raise ScanError(
            "truncated", f"{path}: expected a header of {size} bytes, found {len(block)}; copy or export it again"
        )
    header = kind(block, endianness=order, check=False)
    magic = bytes(header["magic"].tobytes()[:3])
    if magic in (b"ni1", b"ni2"):
        raise ScanError("header", f"{path}: is one of a pair of .hdr and .img files; convert it to one .nii.gz file")
    if magic not in (b"n+1", b"n+2"):
        raise ScanError("header", f"{path}: expected the NIfTI magic 'n+1', found {magic!r}; convert it to .nii.gz")
    _check_header(header, path)
    return header


def _check_header(header: nib.Nifti1Header, path: Path) -> None:
    dimensions = int(header["dim"][0])
    lengths = [int(length) for length in header["dim"][1 : 1 + max(0, min(dimensions, 7))]]
    if not 1 <= dimensions <= 7 or min(lengths) < 1:
        raise ScanError(
            "dimensions", f"{path}: expected 1 to 7 dimensions of at least 1 voxel, found dim {header['dim'].tolist()}"
        )
    code = int(header["datatype"])
    try:
        name = nib.nifti1.data_type_codes.label[code]
        kind = nib.nifti1.data_type_codes.dtype[code].kind
    except KeyError as cause:
        raise ScanError("data_type", f"{path}: expected a NIfTI data type, found code {code}") from cause
    if kind not in SCALAR_KINDS:
        raise ScanError(
            "data_type", f"{path}: expected one integer or float a voxel, found data type {name}; convert it"
        )
    if int(header["sform_code"]) <= 0 and not np.all(header["pixdim"][1:4] != 0):
        raise ScanError("affine", f"{path}: expected a voxel size above 0 mm, found {header['pixdim'][1:4].tolist()}")
    if not math.isfinite(float(header["vox_offset"])):
        raise ScanError("header", f"{path}: expected a finite vox_offset, found {float(header['vox_offset'])}")
    try:
        header.check_fix(logger=_SILENT)
    except HeaderDataError as cause:
        raise ScanError("header", f"{path}: the NIfTI header is not valid: {cause}") from cause


def _read_voxels(stream: io.BufferedIOBase, header: nib.Nifti1Header, voxels: int, path: Path) -> np.ndarray:
    """float32 [voxels] in file order. Pages of the result are touched only as far as the file goes."""
    try:
        slope, intercept = header.get_slope_inter()  # both None: as they are (also for a slope of 0 or NaN)
    except HeaderDataError as cause:
        raise ScanError("header", f"{path}: slope and intercept are not valid: {cause}") from cause
    stored = header.get_data_dtype()
    scaled = slope is not None and (slope != 1.0 or intercept != 0.0)
    values = np.empty(voxels, np.float32)
    if stored == np.float32 and not scaled:
        _fill(stream, values, path)
        return values
    block = np.empty(min(voxels, BLOCK_VOXELS), stored)
    for start in range(0, voxels, BLOCK_VOXELS):
        part = block[: voxels - start]
        _fill(stream, part, path)
        # A float64 beyond float32's range becomes infinite, which the callers report; no warning is needed as well.
        with np.errstate(over="ignore", invalid="ignore"):
            values[start : start + part.size] = part.astype(np.float64) * slope + intercept if scaled else part
    return values


def _fill(stream: io.BufferedIOBase, array: np.ndarray, path: Path) -> None:
    view = array.view(np.uint8).data
    done = 0
    while done < len(view):
        count = stream.readinto(view[done : done + BLOCK_VOXELS])
        if not count:
            raise ScanError("truncated", f"{path}: the file ends before its last voxel; copy or export it again")
        done += count


def write_nifti(path: Path, values: np.ndarray, header: nib.Nifti1Header) -> None:
    """Writes an array with the geometry of `header`, reads it back and compares, then gives it its name.

    Kept from the header: NIfTI version, qform and sform codes and their own matrices, voxel size, units. Everything
    else (slope, description, extensions, which may hold a patient's name) starts empty. The same input gives the same
    bytes.

    Args:
        path: .nii.gz (compressed) or .nii.
        values: [x, y, z] or [x, y, z, k], of a type that NIfTI knows.

    Raises:
        InputError: The path has another ending, it cannot be written, or what is read back differs.
    """
    if not path.name.endswith(ENDINGS):
        raise InputError(f"cannot write {path}: expected a name that ends in .nii.gz or .nii")
    fresh = type(header)()
    fresh.set_data_dtype(values.dtype)
    fresh.set_data_shape(values.shape)
    for field in ("qform_code", "sform_code", "xyzt_units", *(f"quatern_{axis}" for axis in "bcd")):
        fresh[field] = header[field]
    for axis in "xyz":
        fresh[f"qoffset_{axis}"] = header[f"qoffset_{axis}"]
        fresh[f"srow_{axis}"] = header[f"srow_{axis}"]
    fresh["pixdim"][:4] = header["pixdim"][:4]
    fresh["vox_offset"] = int(fresh["sizeof_hdr"]) + 4
    with atomic_path(path) as temporary:
        _write_stream(temporary, fresh, values)
        _compare(temporary, path, fresh, values)


def _write_stream(path: Path, header: nib.Nifti1Header, values: np.ndarray) -> None:
    with open(path, "wb") as raw, ExitStack() as stack:
        stream: io.BufferedIOBase = raw
        if path.name.endswith(".gz"):
            # No name and no time in the gzip header: the same mask gives the same bytes.
            level = 6 if values.dtype == np.uint8 else 1  # floats barely shrink further, and take ten times as long
            stream = stack.enter_context(closing(gzip.GzipFile("", "wb", level, raw, mtime=0)))
        stream.write(header.binaryblock + b"\x00\x00\x00\x00")
        stream.write(np.asfortranarray(values).T.data)


def _compare(written: Path, path: Path, header: nib.Nifti1Header, values: np.ndarray) -> None:
    """Reads the file back before it gets its final name: a mask that is not what was meant must not be left there."""
    try:
        found, found_header = read_nifti(written)
    except ScanError as cause:
        raise InputError(f"cannot write {path}: it cannot be read back ({cause}); check the disk") from cause
    if found_header.binaryblock != header.binaryblock or not np.array_equal(found, values):
        raise InputError(f"cannot write {path}: what is read back differs from what was written; check the disk")
