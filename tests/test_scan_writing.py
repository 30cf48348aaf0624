"""Writing masks and probabilities: nibabel reads them back as the oracle."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import AFFINE, SHAPE, oblique, scan_file

from segment.data.scan import (
    Grid,
    ScanError,
    from_canonical,
    read_mask,
    read_probability,
    read_volume,
    to_canonical,
    write_mask,
    write_probability,
)
from segment.errors import InputError


class TestWrite:
    @pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 3), (1, 2), (2, 4)])
    @pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
    def test_mask_keeps_grid_codes_matrices_and_units(
        self, tmp_path: Path, image_class: type[nib.Nifti1Image], qform: int, sform: int
    ) -> None:
        image = image_class(np.ones(SHAPE, np.float32), None)
        image.header.set_zooms((0.7, 1.1, 2.3))
        image.set_qform(oblique(20, (0.7, 1.1, 2.3), (12345.678, -98765.43, 0.1)), qform)
        image.set_sform(oblique(-10, (0.7, 1.1, 2.3), (12345.678, -98765.43, 0.1)), sform)
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, tmp_path / "i.nii.gz")
        _, grid, header = read_volume(tmp_path / "i.nii.gz")
        mask = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
        write_mask(tmp_path / "m.nii.gz", mask, grid, header)
        source, written = nib.load(tmp_path / "i.nii.gz"), nib.load(tmp_path / "m.nii.gz")
        assert written.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(written.dataobj), mask)
        np.testing.assert_array_equal(written.affine, source.affine)
        for field in ("qform_code", "sform_code", "xyzt_units", "qoffset_x", "quatern_b", "srow_y", "srow_z"):
            np.testing.assert_array_equal(written.header[field], source.header[field])
        found, found_grid = read_mask(tmp_path / "m.nii.gz")
        np.testing.assert_array_equal(found, mask)
        np.testing.assert_array_equal(found_grid.affine, grid.affine)

    def test_same_mask_same_bytes_and_nothing_else_in_the_folder(self, tmp_path: Path) -> None:
        _, grid, header = read_volume(scan_file(tmp_path / "i.nii"))
        for name in ("a", "b"):
            write_mask(tmp_path / "out" / f"{name}.nii.gz", np.ones(SHAPE, bool), grid, header)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "b.nii.gz"]
        assert (tmp_path / "out/a.nii.gz").read_bytes() == (tmp_path / "out/b.nii.gz").read_bytes()

    def test_a_view_turned_back_from_canonical_is_written_in_its_order(self, tmp_path: Path) -> None:
        _, grid, header = read_volume(scan_file(tmp_path / "i.nii"))
        mask = np.zeros(SHAPE, np.uint8)
        mask[0, 1, 2] = 1
        write_mask(
            tmp_path / "m.nii", from_canonical(to_canonical(mask, grid.affine).copy(), grid.affine), grid, header
        )
        assert np.argwhere(nib.load(tmp_path / "m.nii").get_fdata()).tolist() == [[0, 1, 2]]

    def test_a_patients_name_in_the_header_stays_behind(self, tmp_path: Path) -> None:
        image = nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE)
        image.header["descrip"] = b"Jane Doe"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
        nib.save(image, tmp_path / "i.nii")
        _, grid, header = read_volume(tmp_path / "i.nii")
        write_mask(tmp_path / "m.nii", np.ones(SHAPE, np.uint8), grid, header)
        assert b"Jane" in (tmp_path / "i.nii").read_bytes()
        assert b"Jane" not in (tmp_path / "m.nii").read_bytes()

    def test_what_does_not_belong_together_is_refused(self, tmp_path: Path) -> None:
        _, grid, header = read_volume(scan_file(tmp_path / "i.nii"))
        with pytest.raises(ValueError, match="uint8 mask of shape"):
            write_mask(tmp_path / "m.nii", np.ones((2, 2, 2), np.uint8), grid, header)
        with pytest.raises(ValueError, match="uint8 mask"):
            write_mask(tmp_path / "m.nii", np.ones(SHAPE, np.float32), grid, header)
        with pytest.raises(ValueError, match="header with the grid's affine"):
            write_mask(tmp_path / "m.nii", np.ones(SHAPE, np.uint8), Grid(SHAPE, np.eye(4)), header)
        with pytest.raises(InputError, match=r"ends in \.nii\.gz or \.nii"):
            write_mask(tmp_path / "m.png", np.ones(SHAPE, np.uint8), grid, header)

    def test_a_folder_in_the_place_of_the_output(self, tmp_path: Path) -> None:
        _, grid, header = read_volume(scan_file(tmp_path / "i.nii"))
        (tmp_path / "m.nii").mkdir()
        with pytest.raises(InputError, match=r"cannot write .*m\.nii: Is a directory"):
            write_mask(tmp_path / "m.nii", np.ones(SHAPE, np.uint8), grid, header)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["i.nii", "m.nii"]

    def test_a_file_that_reads_back_differently_gets_no_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, grid, header = read_volume(scan_file(tmp_path / "i.nii"))
        honest = gzip.GzipFile.write
        flip = bytes(range(256)).replace(b"\x01", b"\x07", 1)
        monkeypatch.setattr(gzip.GzipFile, "write", lambda self, data: honest(self, bytes(data).translate(flip)))
        with pytest.raises(InputError, match=r"cannot write .*m\.nii\.gz: .*read back"):
            write_mask(tmp_path / "m.nii.gz", np.ones(SHAPE, np.uint8), grid, header)
        assert [path.name for path in tmp_path.iterdir()] == ["i.nii"]

    @pytest.mark.parametrize("classes", [(), (1,), (3,)])
    def test_probability(self, tmp_path: Path, classes: tuple[int, ...]) -> None:
        _, grid, header = read_volume(scan_file(tmp_path / "i.nii"))
        probability = np.random.default_rng(1).random((*SHAPE, *classes), np.float32)
        write_probability(tmp_path / "p.nii.gz", probability, grid, header)
        found, found_grid = read_probability(tmp_path / "p.nii.gz")
        assert found.shape == (*SHAPE, *(classes or (1,)))
        assert np.abs(found - probability.reshape(found.shape)).max() <= 2.0**-12  # half of a float16 step below 1
        np.testing.assert_array_equal(found_grid.affine, grid.affine)
        assert nib.load(tmp_path / "p.nii.gz").get_data_dtype() == np.float32

    def test_probability_out_of_range(self, tmp_path: Path) -> None:
        _, grid, header = read_volume(scan_file(tmp_path / "i.nii"))
        for value in (-0.1, 1.1, np.nan):
            with pytest.raises(ValueError, match="from 0 to 1"):
                write_probability(tmp_path / "p.nii", np.full(SHAPE, value), grid, header)
        with pytest.raises(ScanError, match="probabilities from 0 to 1"):
            read_probability(tmp_path / "i.nii")
