"""Reading and writing scans: nibabel is the oracle for values and affines."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import AFFINE, SHAPE, oblique, scan_file, write_nifti
from hypothesis import given
from hypothesis import strategies as st

from segment.data.nifti import BLOCK_VOXELS
from segment.data.scan import (
    Case,
    Grid,
    ScanError,
    from_canonical,
    read_mask,
    read_scan,
    read_volume,
    to_canonical,
    write_mask,
)
from segment.errors import InputError

SHARED = os.environ.get("SEGMENT_SHARED")
needs_shared = pytest.mark.skipif(not SHARED, reason="SEGMENT_SHARED does not name the folder with the real scans")


class TestGrid:
    def test_spacing_of_an_oblique_affine_is_not_its_diagonal(self) -> None:
        grid = Grid(SHAPE, oblique(30, (0.5, 2, 3), (1, 2, 3)))
        assert grid.spacing_mm == pytest.approx((0.5, 2, 3))
        assert grid.voxel_mm3 == pytest.approx(3)
        assert abs(grid.affine[1, 1] - 2) > 0.2

    def test_volume_of_sheared_axes_is_the_determinant(self) -> None:
        affine = np.eye(4)
        affine[0, 1] = 1  # the y axis is sqrt(2) long, the voxel's volume stays 1
        assert Grid(SHAPE, affine).voxel_mm3 == pytest.approx(1)
        assert Grid(SHAPE, affine).spacing_mm == pytest.approx((1, 2**0.5, 1))

    def test_matches_up_to_a_micrometre_and_not_beyond(self) -> None:
        grid = Grid(SHAPE, AFFINE)
        for shift, expected in ((0.0009, True), (0.002, False), (1.0, False)):
            moved = AFFINE.copy()
            moved[1, 3] += shift
            assert grid.matches(Grid(SHAPE, moved)) is expected
        assert not grid.matches(Grid((8, 7, 5), AFFINE))


class TestReadVolume:
    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
    def test_every_type_and_byte_order(self, tmp_path: Path, kind: str, order: str, ending: str) -> None:
        array = np.arange(24, dtype=order + kind).reshape(2, 3, 4)
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(array.dtype)
        nib.save(nib.Nifti1Image(array, AFFINE, header), tmp_path / f"a{ending}")
        values, grid, _ = read_volume(tmp_path / f"a{ending}")
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, array.astype(np.float32))
        np.testing.assert_array_equal(grid.affine, AFFINE)

    def test_nifti2(self, tmp_path: Path) -> None:
        nib.save(nib.Nifti2Image(np.ones(SHAPE, np.float32), AFFINE), tmp_path / "a.nii.gz")
        values, grid, header = read_volume(tmp_path / "a.nii.gz")
        assert isinstance(header, nib.Nifti2Header)
        assert values.sum() == 8 * 7 * 6
        assert grid.shape == SHAPE

    def test_slope_and_intercept_also_across_blocks(self, tmp_path: Path) -> None:
        shape = (32, 32, BLOCK_VOXELS // 1024 + 1)  # one block and 1,024 voxels
        array = (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)
        path = write_nifti(tmp_path / "a.nii", array)
        data = bytearray(path.read_bytes())
        data[112:120] = np.array([0.5, -3], "<f4").tobytes()  # scl_slope and scl_inter stand at byte 112
        path.write_bytes(data)
        np.testing.assert_array_equal(read_volume(path)[0], array * np.float32(0.5) - 3)

    @pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
    def test_a_slope_without_meaning_leaves_values_as_they_are(self, tmp_path: Path, slope: float) -> None:
        path = scan_file(tmp_path / "a.nii")
        data = bytearray(path.read_bytes())
        data[112:120] = np.array([slope, 5], "<f4").tobytes()
        path.write_bytes(data)
        np.testing.assert_array_equal(read_volume(path)[0], nib.load(path).get_fdata())
        assert read_volume(path)[0].max() == 8 * 7 * 6 - 1

    def test_trailing_axes_of_one_are_dropped_and_a_slice_gets_one(self, tmp_path: Path) -> None:
        write_nifti(tmp_path / "a.nii.gz", np.ones((4, 3, 2, 1, 1), np.uint8))
        assert read_volume(tmp_path / "a.nii.gz")[0].shape == (4, 3, 2)
        write_nifti(tmp_path / "b.nii.gz", np.ones((4, 3), np.uint8))
        values, grid, _ = read_volume(tmp_path / "b.nii.gz")
        assert values.shape == grid.shape == (4, 3, 1)

    def test_compressed_bytes_under_an_uncompressed_name(self, tmp_path: Path) -> None:
        path = scan_file(tmp_path / "a.nii.gz").rename(tmp_path / "a.nii")
        assert read_volume(path)[0].max() == 8 * 7 * 6 - 1

    @pytest.mark.parametrize(("qform", "sform"), [(0, 0), (1, 0), (0, 1), (1, 2), (2, 4)])
    def test_the_affine_is_nibabels_choice(self, tmp_path: Path, qform: int, sform: int) -> None:
        image = nib.Nifti1Image(np.ones(SHAPE, np.uint8), None)
        image.header.set_zooms((1, 1, 2))
        image.set_qform(oblique(20, (1, 1, 2), (5, 6, 7)), qform)
        image.set_sform(oblique(-10, (1, 1, 2), (50, 60, 70)), sform)
        nib.save(image, tmp_path / "a.nii.gz")
        expected = nib.load(tmp_path / "a.nii.gz").affine
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz")[1].affine, expected)


class TestReadScan:
    def test_channels_and_label(self, tmp_path: Path) -> None:
        first, second = np.full(SHAPE, 3, np.float32), np.full(SHAPE, 4, np.int16)
        label = np.zeros(SHAPE, np.float64)
        label[2, 3, 4] = 1
        paths = [write_nifti(tmp_path / name, a) for name, a in (("0.nii", first), ("1.nii", second), ("l.nii", label))]
        scan = read_scan(Case("a", "p", (paths[0], paths[1]), paths[2]), with_label=True)
        assert scan.image.shape == (8, 7, 6, 2)
        assert scan.image.dtype == np.float32
        assert (scan.image[..., 0] == 3).all()
        assert (scan.image[..., 1] == 4).all()
        assert scan.label is not None
        assert scan.label.dtype == np.uint8
        assert np.argwhere(scan.label).tolist() == [[2, 3, 4]]
        assert read_scan(Case("a", "p", (paths[0],), None), with_label=False).label is None

    def test_another_grid_names_case_file_and_both_grids(self, tmp_path: Path) -> None:
        moved = AFFINE.copy()
        moved[2, 3] += 2
        image, label = scan_file(tmp_path / "i.nii"), scan_file(tmp_path / "l.nii", moved)
        with pytest.raises(ScanError, match=r"case ms1: .*l\.nii: expected the grid of i\.nii.*72\.00.*found.*70\.00"):
            read_scan(Case("ms1", "p", (image, label), None), with_label=False)
        write_nifti(label, np.zeros(SHAPE, np.uint8), moved)
        with pytest.raises(ScanError, match=r"case ms1: .*up to 2\); resample"):
            read_scan(Case("ms1", "p", (image,), label), with_label=True)

    def test_nan_names_case_file_and_count(self, tmp_path: Path) -> None:
        array = np.zeros(SHAPE, np.float32)
        array[0, 0, :2] = np.nan, np.inf
        path = write_nifti(tmp_path / "i.nii.gz", array)
        with pytest.raises(ScanError, match=r"case c: .*i\.nii\.gz: .*finite.*NaN or infinity in 2 of 336") as caught:
            read_scan(Case("c", "c", (path,), None), with_label=False)
        assert caught.value.kind == "non_finite"

    def test_no_label(self, tmp_path: Path) -> None:
        case = Case("c", "c", (scan_file(tmp_path / "i.nii"),), None)
        with pytest.raises(InputError, match="case c: expected a label, found none"):
            read_scan(case, with_label=True)


class TestReadMask:
    def test_rounds_what_a_slope_left_beside_the_integer(self, tmp_path: Path) -> None:
        path = write_nifti(tmp_path / "l.nii", np.full(SHAPE, 2.0001, np.float32))
        assert np.unique(read_mask(path)[0]).tolist() == [2]

    @pytest.mark.parametrize(("value", "shown"), [(0.5, "0.5"), (-1, "-1"), (256, "256")])
    def test_strange_values(self, tmp_path: Path, value: float, shown: str) -> None:
        array = np.zeros(SHAPE, np.float32)
        array[1, 1, 1] = value
        path = write_nifti(tmp_path / "l.nii", array)
        with pytest.raises(ScanError, match=rf"l\.nii: .*integers from 0 to 255, found {shown} \(1 such voxels\)"):
            read_mask(path)


class TestCanonical:
    @given(
        permutation=st.permutations([0, 1, 2]),
        signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
        degrees=st.floats(-30, 30),
        channels=st.sampled_from([(), (2,)]),
    )
    def test_there_and_back_is_the_same_array(
        self, permutation: list[int], signs: tuple[int, int, int], degrees: float, channels: tuple[int, ...]
    ) -> None:
        axes = np.eye(3)[:, permutation] * signs  # file axis j points along world axis permutation[j]
        affine = oblique(degrees, (1, 1, 1), (3, 4, 5))
        affine[:3, :3] = affine[:3, :3] @ axes @ np.diag([1.0, 2.0, 3.0])
        array = np.arange(np.prod((4, 3, 2, *channels))).reshape(4, 3, 2, *channels)
        canonical = to_canonical(array, affine)
        np.testing.assert_array_equal(from_canonical(canonical, affine), array)
        # Without rotation the canonical array is known: transposed so that world axes come in order, then flipped.
        order = [permutation.index(world) for world in range(3)]
        if abs(degrees) < 20:
            expected = array.transpose(*order, *range(3, array.ndim))
            expected = np.flip(expected, [world for world in range(3) if signs[order[world]] < 0])
            np.testing.assert_array_equal(canonical, expected)


@needs_shared
class TestRealScans:
    def test_both_patients_read_as_nibabel_reads_them(self, tmp_path: Path) -> None:
        folder = Path(str(SHARED)) / "data" / "ms"
        paths = tuple(folder / "imagesTr" / f"ms26_{channel:04d}.nii.gz" for channel in range(2))
        scan = read_scan(Case("ms26", "ms26", paths, folder / "labelsTr" / "ms26.nii.gz"), with_label=True)
        np.testing.assert_array_equal(scan.image[..., 1], nib.load(paths[1]).get_fdata(dtype=np.float32))
        assert scan.label is not None
        assert int(scan.label.sum()) == 8227  # mm3, from the data's README
        assert nib.aff2axcodes(scan.grid.affine) == ("L", "A", "S")
        write_mask(tmp_path / "m.nii.gz", scan.label, scan.grid, scan.header)
        written = nib.load(tmp_path / "m.nii.gz")
        assert int(written.header["qform_code"]) == 1
        assert int(written.header["sform_code"]) == 0
        np.testing.assert_array_equal(written.affine, nib.load(paths[0]).affine)
