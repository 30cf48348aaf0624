"""Hostile files in one batch with good scans, through the command in a process of its own: each has its row."""

from __future__ import annotations

import csv
import ctypes
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf
from builders import AFFINE, scan_file, write_nifti
from data_helpers import make_test_plan
from inference_helpers import quick_config, write_run
from test_scan_hostile import (
    BITPIX,
    DATATYPE,
    DIM,
    MAGIC,
    PIXDIM,
    SFORM_CODE,
    SLOPE,
    VOX_OFFSET,
    affine_rows,
    patched,
)

from segment.cli import main

ROOT = Path(__file__).parents[1]
Make = Callable[[Path], object]
NAN, INF = float("nan"), float("inf")


def header(*changes: tuple[int, str, list[float]]) -> Make:
    """A valid scan with its header changed; the names of files that are made on the way are hidden."""

    def make(path: Path) -> None:
        patched(path, *changes)
        path.with_name("valid.nii").unlink()

    return make


def cut(share: float) -> Make:
    return lambda path: path.write_bytes(scan_file(path).read_bytes()[: int(share * path.stat().st_size)])


def content(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def array(values: np.ndarray, affine: np.ndarray = AFFINE) -> Make:
    return lambda path: write_nifti(path, values, affine)


def spoilt(path: Path) -> None:
    data = bytearray(scan_file(path).read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def unreadable(path: Path) -> None:
    scan_file(path).chmod(0)


NOISE = np.random.default_rng(0).normal(100, 10, (8, 7, 6))
HUGE = np.diag([9e5, 9e5, 9e5, 1.0])  # mm: a network grid of 1 mm would have 10^18 voxels
LONG = np.ones((20_000, 1, 2), np.float32)  # of which 2 mm voxels would need a matrix of 20,000 by 40,000
# Name -> how it is made, and the kind in failures.csv.
HOSTILE: dict[str, tuple[Make, str]] = {
    "truncated_gzip": (cut(0.6), "truncated"),
    "truncated_early": (cut(0.05), "truncated"),
    "damaged_gzip": (spoilt, "unreadable"),
    "empty": (content(b""), "truncated"),
    "empty_gzip": (content(gzip.compress(b"")), "truncated"),
    "text": (content(b"<html>404 not found</html>" * 30), "header"),
    "gzipped_text": (content(gzip.compress(b"no scan at all" * 60)), "header"),
    "promises_100_gb": (header((DIM, "<i2", [3, 4000, 2500, 5000])), "too_large"),
    "promises_2_gb": (header((DIM, "<i2", [3, 1000, 1000, 1000])), "truncated"),
    "gzip_bomb": (
        lambda path: path.write_bytes(gzip.compress(nifti_bytes() + bytes(2**27), 1)),
        "unreadable",
    ),
    "wrong_magic": (header((MAGIC, "u1", [0, 1, 2, 3])), "header"),
    "image_pair": (header((MAGIC, "u1", [*b"ni1", 0])), "header"),
    "zero_dimension": (header((DIM, "<i2", [3, 8, 0, 6])), "dimensions"),
    "negative_dimension": (header((DIM, "<i2", [3, 8, -7, 6])), "dimensions"),
    "too_many_dimensions": (header((DIM, "<i2", [9, 8, 7, 6])), "dimensions"),
    "time_series": (array(np.stack([NOISE] * 4, axis=-1)), "dimensions"),
    "one_dimension": (header((DIM, "<i2", [1, 336])), "dimensions"),
    "affine_nan": (header(affine_rows([NAN, 0, 0, 0])), "affine"),
    "affine_infinite": (header(affine_rows([1, 0, 0, INF])), "affine"),
    "affine_zero": (header(affine_rows([0] * 4, [0] * 4, [0] * 4)), "affine"),
    "affine_flat": (header(affine_rows([1, 0, 0, 0], [2, 0, 0, 0], [0, 0, 1, 0])), "affine"),
    "no_voxel_size": (header((SFORM_CODE, "<i2", [0]), (PIXDIM, "<f4", [1, 0, 1, 1])), "affine"),
    "huge_voxels": (array(NOISE, HUGE), "too_large"),
    "one_very_long_axis": (array(LONG, np.diag([2.0, 2.0, 2.0, 1.0])), "too_large"),
    "rgb": (header((DATATYPE, "<i2", [128, 24])), "data_type"),
    "complex": (array(NOISE.astype(np.complex64)), "data_type"),
    "unknown_type": (header((DATATYPE, "<i2", [77]), (BITPIX, "<i2", [8])), "data_type"),
    "offset_nan": (header((VOX_OFFSET, "<f4", [NAN])), "header"),
    "offset_behind_end": (header((VOX_OFFSET, "<f4", [1e9])), "truncated"),
    "intercept_nan": (header((SLOPE, "<f4", [1, NAN])), "header"),
    "voxels_nan": (array(np.where(NOISE > 110, NAN, NOISE).astype(np.float32)), "non_finite"),
    "voxels_beyond_float32": (array(NOISE * 1e300), "non_finite"),
    "dangling_link": (lambda path: path.symlink_to(path.with_name("gone")), "missing"),
    "link_to_itself": (lambda path: path.symlink_to(path), "unreadable"),
    "folder": (lambda path: path.mkdir(), "unreadable"),
    "pipe": (os.mkfifo, "unreadable"),
    "no_permission": (unreadable, "unreadable"),
}


def nifti_bytes() -> bytes:
    image = nib.Nifti1Image(NOISE.astype(np.float32), AFFINE)
    return bytes(image.to_bytes())


def big_endian(path: Path) -> None:
    head = nib.Nifti1Header(endianness=">")
    head.set_data_dtype(">i2")
    path.write_bytes(gzip.compress(nib.Nifti1Image(NOISE.astype(">i2"), AFFINE, head).to_bytes()))


def nifti2(path: Path) -> None:
    path.write_bytes(gzip.compress(nib.Nifti2Image(NOISE.astype(np.float32), AFFINE).to_bytes()))


# These are odd and work. 2 bytes a letter and an ending of 7: the mask's name has the 255 bytes that a name may have.
ODD: dict[str, Make] = {
    "a_good": array(NOISE.astype(np.float32)),
    "all_zeros": array(np.zeros((8, 7, 6), np.uint8)),
    "big_endian": big_endian,
    "int64": array((NOISE * 1000).astype(np.int64)),
    "nifti_2": nifti2,
    "one_slice": array(NOISE[:, :, :1].astype(np.float32)),
    "one_voxel": array(np.ones((1, 1, 1), np.float32)),
    "slope_nan": header((SLOPE, "<f4", [NAN, 0])),
    "slope_zero": header((SLOPE, "<f4", [0, 5])),
    "trailing_axes": array(NOISE[..., None, None].astype(np.float32)),
    "病变 ä'\"$(x)": array(NOISE.astype(np.float32)),
    "ä" * 124: array(NOISE.astype(np.float32)),
    os.fsdecode(b"not-utf8-\xff\xfe"): array(NOISE.astype(np.float32)),
    "z_good": array(NOISE.astype(np.float32)),
}


def without_privileges() -> None:
    """In the child: root may read every file, unless these two capabilities are gone before the program begins."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; 24 is PR_CAPBSET_DROP (linux/prctl.h)
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """All of them in one folder, predicted by the script."""
    folder = tmp_path_factory.mktemp("hostile")
    write_run(folder / "run", make_test_plan(), config=quick_config())
    scans = folder / "scans"
    scans.mkdir()
    for name, make in {**{name: entry[0] for name, entry in HOSTILE.items()}, **ODD}.items():
        make(scans / f"{name}.nii.gz")
    command = [sys.executable, str(ROOT / "scripts" / "infer.py"), "--run", str(folder / "run"), "--input", str(scans)]
    done = subprocess.run(
        [*command, "--output", str(folder / "out")],
        capture_output=True,
        check=False,
        text=True,
        errors="replace",
        cwd=ROOT,
        timeout=300,
        preexec_fn=without_privileges if sys.platform == "linux" and os.geteuid() == 0 else None,
    )
    return folder, done


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "out" / "failures.csv").open(newline="", encoding="utf-8") as handle:
        return {row["case"]: row for row in csv.DictReader(handle)}


class TestBatch:
    def test_ends_with_code_1_and_no_traceback(self, batch: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
        _, done = batch
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
        assert f"{len(ODD)} of {len(ODD) + len(HOSTILE)} scans predicted" in done.stdout

    def test_at_least_25(self) -> None:
        assert len(HOSTILE) >= 25

    @pytest.mark.parametrize("name", HOSTILE)
    def test_has_its_row(self, batch: tuple[Path, subprocess.CompletedProcess[str]], name: str) -> None:
        folder, _ = batch
        row = rows_of(folder)[name]
        assert row["kind"] == HOSTILE[name][1], row
        assert row["path"] == str(folder / "scans" / f"{name}.nii.gz")
        assert row["path"] in row["message"] or f"case {name}" in row["message"]
        assert "\n" not in row["message"]

    def test_nothing_else_has_one(self, batch: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
        assert set(rows_of(batch[0])) == set(HOSTILE)

    @pytest.mark.parametrize("name", ODD, ids=lambda name: ascii(name)[:30])
    def test_odd_ones_are_written(self, batch: tuple[Path, subprocess.CompletedProcess[str]], name: str) -> None:
        scan = nib.load(batch[0] / "scans" / f"{name}.nii.gz")
        mask = nib.load(batch[0] / "out" / "masks" / f"{name}.nii.gz")
        assert mask.shape == (*scan.shape, 1, 1)[:3]
        assert np.array_equal(mask.affine, scan.affine)

    def test_memory_stays_bounded(self, batch: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
        cases = json.loads((batch[0] / "out" / "manifest.json").read_text())["cases"]
        assert cases["z_good"]["peak_memory_mib"] - cases["a_good"]["peak_memory_mib"] < 200


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, make_test_plan())
    return folder


class TestModels:
    """A model or run folder that cannot be used ends the command in one line before anything is written."""

    def refused(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
        scan_file(tmp_path / "scan.nii.gz")
        given = ["--run", str(run), "--input", str(tmp_path / "scan.nii.gz"), "--output", str(tmp_path / "out")]
        assert main(["infer", *given]) == 2
        assert not (tmp_path / "out").exists()
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ")
        return lines[-1]

    @pytest.mark.parametrize("name", ["plan.json", "config.yaml", "model.keras"])
    @pytest.mark.parametrize("data", [None, b"", b"{", b"\xff\xfe\x00", b"[]"])
    def test_missing_and_broken_pieces(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes | None
    ) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        (copy / name).unlink()
        if data is not None:
            (copy / name).write_bytes(data)
        if (name, data) == ("config.yaml", b""):
            return  # an empty configuration is the defaults
        assert name in self.refused(copy, tmp_path, capsys)

    def test_a_lambda_layer(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        inputs = tf.keras.Input((8, 8, 8, 1))
        layer = tf.keras.layers.Lambda(lambda x: x, output_shape=(8, 8, 8, 1))
        tf.keras.Model(inputs, layer(inputs)).save(copy / "model.keras")
        assert "cannot be loaded safely" in self.refused(copy, tmp_path, capsys)

    def test_no_run_at_all(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "expected a folder, found nothing" in self.refused(tmp_path / "none", tmp_path, capsys)
