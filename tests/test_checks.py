"""Each kind of finding has a dataset that holds it; the messages name case, file, expected and found."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import AFFINE, SHAPE, tiny_dataset, write_nifti

from segment.data.cases import Dataset, find_dataset
from segment.data.checks import Finding, audit_dataset, check_case, check_dataset
from segment.errors import InputError

SHARED = os.environ.get("SEGMENT_SHARED")
IMAGE, SECOND, LABEL = "imagesTr/case1_0000.nii.gz", "imagesTr/case1_0001.nii.gz", "labelsTr/case1.nii.gz"


def load(folder: Path) -> Dataset:
    return find_dataset(folder, layout="nnunet")


def found(folder: Path) -> list[tuple[str, str, str]]:
    return [
        (finding.case_id, finding.severity, finding.kind) for finding in audit_dataset(load(folder), workers=2).findings
    ]


def label_of(value: float, dtype: type = np.uint8) -> np.ndarray:
    label = np.zeros(SHAPE, dtype)
    label[1, 1, 1] = value
    return label


def moved() -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += 5
    return affine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_dataset(tmp_path / "data", channels=("FLAIR", "T1"))


class TestOneCase:
    """Each test spoils case1 of three."""

    def only(self, folder: Path, severity: str, kind: str) -> Finding:
        assert found(folder) == [("case1", severity, kind)]
        dataset = load(folder)
        findings = check_case(dataset.cases[1], dataset)
        assert findings == list(audit_dataset(dataset, workers=1).findings)
        assert findings[0].message.startswith("case case1: ")
        assert "\n" not in findings[0].message
        return findings[0]

    def test_nothing_is_wrong(self, folder: Path) -> None:
        assert found(folder) == []
        assert not list(folder.rglob(".*"))  # and nothing is written

    def test_missing_channel_names_case_and_channel(self, folder: Path) -> None:
        (folder / SECOND).unlink()
        finding = self.only(folder, "error", "missing")
        assert finding.message == f"case case1: channel T1: {folder / SECOND}: no such file; check the path"
        assert finding.path == str(folder / SECOND)

    def test_missing_label(self, folder: Path) -> None:
        (folder / LABEL).unlink()
        assert f"label: {folder / LABEL}: no such file" in self.only(folder, "error", "missing").message

    def test_no_label_named(self, folder: Path) -> None:
        dataset = load(folder)
        findings = check_case(replace(dataset.cases[1], label_path=None), dataset)
        assert [finding.message for finding in findings] == [
            "case case1: expected a label, found none; name one or leave the case out"
        ]

    def test_label_without_images(self, folder: Path) -> None:
        for name in (IMAGE, SECOND):
            (folder / name).unlink()
        assert found(folder) == [("case1", "error", "missing")] * 2

    @pytest.mark.parametrize("name", [IMAGE, LABEL])
    def test_truncated(self, folder: Path, name: str) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        assert "copy or export it again" in self.only(folder, "error", "truncated").message

    def test_unreadable(self, folder: Path) -> None:
        (folder / IMAGE).unlink()
        (folder / IMAGE).mkdir()
        assert "found a folder" in self.only(folder, "error", "unreadable").message

    def test_not_nifti(self, folder: Path) -> None:
        (folder / SECOND).write_bytes(gzip.compress(b"hello" * 100))
        assert "expected a NIfTI file" in self.only(folder, "error", "header").message

    def test_4d(self, folder: Path) -> None:
        write_nifti(folder / SECOND, np.ones((*SHAPE, 2), np.float32))
        assert "one file a channel" in self.only(folder, "error", "dimensions").message

    @pytest.mark.parametrize("name", [SECOND, LABEL])
    def test_another_grid(self, folder: Path, name: str) -> None:
        noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        write_nifti(folder / name, label_of(1) if name == LABEL else noise, moved())
        message = self.only(folder, "error", "grid").message
        assert f"{folder / name}: expected the grid of case1_0000.nii.gz" in message
        assert "differ by up to 5)" in message

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan_in_an_image(self, folder: Path, value: float) -> None:
        image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        image[0, 0, :3] = value
        write_nifti(folder / IMAGE, image)
        assert "found NaN or infinity in 3 of 336 voxels" in self.only(folder, "error", "non_finite").message

    def test_nan_in_a_label(self, folder: Path) -> None:
        write_nifti(folder / LABEL, label_of(np.nan, np.float32))
        assert "label: " in self.only(folder, "error", "non_finite").message

    def test_constant_image(self, folder: Path) -> None:
        write_nifti(folder / IMAGE, np.full(SHAPE, 7, np.int16))
        assert "channel FLAIR: " in self.only(folder, "error", "constant").message
        assert "found the constant 7 in all voxels" in self.only(folder, "error", "constant").message

    def test_label_value_outside_dataset_json(self, folder: Path) -> None:
        write_nifti(folder / LABEL, label_of(3) + label_of(1).transpose(0, 1, 2)[::-1])
        message = self.only(folder, "error", "label_values").message
        assert "expected the values 0 (background), 1 (lesion), found 3 too" in message

    @pytest.mark.parametrize(("value", "text"), [(-1, "found -1 too"), (300, "found 300 too")])
    def test_label_value_outside_uint8(self, folder: Path, value: int, text: str) -> None:
        write_nifti(folder / LABEL, label_of(value, np.int16))
        assert text in self.only(folder, "error", "label_values").message

    def test_label_that_is_no_integer(self, folder: Path) -> None:
        write_nifti(folder / LABEL, label_of(0.25, np.float32))
        message = self.only(folder, "error", "label_values").message
        assert "expected integers, found 0.25 (1 such voxels)" in message

    def test_empty_label_is_a_warning(self, folder: Path) -> None:
        write_nifti(folder / LABEL, label_of(0))
        assert "fine if the scan has no lesion" in self.only(folder, "warning", "empty_label").message
        dataset, audit = check_dataset(load(folder), workers=2, skip_invalid=False)
        assert len(dataset.cases) == 3
        assert [finding.kind for finding in audit.findings] == ["empty_label"]

    def test_wrong_number_of_channels(self, folder: Path) -> None:
        dataset = load(folder)
        case = replace(dataset.cases[1], image_paths=dataset.cases[1].image_paths[:1])
        assert [finding.message for finding in check_case(case, dataset)] == [
            "case case1: expected 2 channels (FLAIR, T1), found 1; list one file a channel"
        ]

    def test_singular_affine(self, folder: Path) -> None:
        flat = AFFINE.copy()
        flat[:3, 2] = flat[:3, 1]
        scan = nib.Nifti1Image(np.zeros(SHAPE, np.int16), None)
        scan.header.set_sform(flat, code=1)
        nib.save(scan, folder / SECOND)
        message = self.only(folder, "error", "affine").message
        assert message.startswith(f"case case1: channel T1: {folder / SECOND}: expected an invertible affine, found ")

    @pytest.mark.parametrize("name", [SECOND, LABEL])
    def test_qform_and_sform_that_disagree(self, folder: Path, name: str) -> None:
        scan = nib.load(folder / name)
        scan.header.set_qform(moved(), code=1)
        nib.save(nib.Nifti1Image(np.asanyarray(scan.dataobj), None, scan.header), folder / name)
        message = self.only(folder, "warning", "forms").message
        assert (
            f"{folder / name}: expected qform and sform to agree, found that they place its corners up to 5" in message
        )

    def test_several_at_a_time(self, folder: Path) -> None:
        (folder / IMAGE).unlink()
        write_nifti(folder / SECOND, np.zeros(SHAPE, np.uint8))
        write_nifti(folder / LABEL, label_of(1), moved())
        assert found(folder) == [("case1", "error", kind) for kind in ("missing", "constant", "grid")]


class TestSeveralCases:
    def test_same_voxels_in_another_patient(self, folder: Path) -> None:
        data = gzip.decompress((folder / "imagesTr/case0_0001.nii.gz").read_bytes())
        (folder / "imagesTr/case2_0000.nii.gz").write_bytes(gzip.compress(data, 1))  # other bytes, same voxels
        (finding,) = audit_dataset(load(folder), workers=2).findings
        assert (finding.case_id, finding.severity, finding.kind) == ("case2", "warning", "duplicate")
        assert "than case case0 of another patient" in finding.message
        assert "case0_0001.nii.gz; remove one" in finding.message

    def test_same_voxels_in_one_patient_are_fine(self, tmp_path: Path) -> None:
        folder = tiny_dataset(tmp_path, patients={"case0": "p", "case1": "p"})
        (folder / IMAGE).write_bytes((folder / "imagesTr/case0_0000.nii.gz").read_bytes())
        assert found(folder) == []

    def test_a_spacing_unlike_the_others(self, tmp_path: Path) -> None:
        folder = tiny_dataset(tmp_path, cases=4)
        wide = AFFINE @ np.diag([3.5, 1, 1, 1])
        for name in (IMAGE, LABEL):
            write_nifti(folder / name, nib.load(folder / name).get_fdata(dtype=np.float32), wide)
        (finding,) = audit_dataset(load(folder), workers=2).findings
        assert (finding.case_id, finding.severity, finding.kind) == ("case1", "warning", "spacing")
        assert (
            "expected voxels near the dataset's median of 1x1x2 mm (right, front, up), found 3.5x1x2" in finding.message
        )

    def test_a_spacing_that_no_scanner_has_is_an_error(self, tmp_path: Path) -> None:
        folder = tiny_dataset(tmp_path, cases=4)
        for name in (IMAGE, LABEL):
            micrometres = np.diag([1000.0, 1000, 1000, 1]) @ AFFINE
            write_nifti(folder / name, nib.load(folder / name).get_fdata(dtype=np.float32), micrometres)
        (finding,) = audit_dataset(load(folder), workers=2).findings
        assert (finding.case_id, finding.severity, finding.kind) == ("case1", "error", "spacing")
        assert finding.message.endswith("found 1e+03x1e+03x2e+03 mm; mend the header")

    def test_loads_and_spacings_by_case(self, folder: Path) -> None:
        (folder / "labelsTr/case2.nii.gz").unlink()
        audit = audit_dataset(load(folder), workers=2)
        assert {case: load.volumes_mm3 for case, load in audit.loads.items()} == {"case0": (16.0,), "case1": (16.0,)}
        assert audit.spacing_mm["case2"] == pytest.approx((1, 1, 2))
        assert audit.invalid == {"case2"}

    def test_memory_does_not_grow_with_the_cases(self, tmp_path: Path) -> None:
        folder = tiny_dataset(tmp_path, cases=24, shape=(48, 48, 48))
        dataset = load(folder)
        peaks = []
        for count in (4, 24):
            tracemalloc.start()
            audit_dataset(replace(dataset, cases=dataset.cases[:count]), workers=2)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.3 * peaks[0]

    def test_all_labels_empty(self, folder: Path) -> None:
        for index in range(3):
            write_nifti(folder / f"labelsTr/case{index}.nii.gz", label_of(0))
        *warnings, error = audit_dataset(load(folder), workers=2).findings
        assert [warning.kind for warning in warnings] == ["empty_label"] * 3
        assert (error.case_id, error.severity, error.kind) == ("", "error", "all_labels_empty")
        for skip_invalid in (False, True):
            with pytest.raises(InputError, match="expected a label with foreground, found 3 empty ones"):
                check_dataset(load(folder), workers=2, skip_invalid=skip_invalid)


class TestCheckDataset:
    def spoil(self, folder: Path, *cases: int) -> None:
        for index in cases:
            (folder / f"imagesTr/case{index}_0000.nii.gz").unlink()

    def test_one_error_is_said_in_full(self, folder: Path) -> None:
        self.spoil(folder, 1)
        with pytest.raises(
            InputError, match=r"^case case1: channel FLAIR: .*no such file.*path; or set data\.skip_inv"
        ):
            check_dataset(load(folder), workers=2, skip_invalid=False)

    def test_the_first_of_several_and_their_number(self, folder: Path) -> None:
        self.spoil(folder, 1, 2)
        with pytest.raises(InputError, match=r"^case case1: .*; 2 errors in 2 cases; or set data\.skip_invalid=true"):
            check_dataset(load(folder), workers=2, skip_invalid=False)

    def test_invalid_cases_are_left_out_and_listed(self, folder: Path) -> None:
        self.spoil(folder, 0, 2)
        dataset, audit = check_dataset(load(folder), workers=2, skip_invalid=True)
        assert [case.case_id for case in dataset.cases] == ["case1"]
        assert [finding.case_id for finding in audit.findings] == ["case0", "case2"]
        assert dataset.channel_names == ("FLAIR", "T1")

    def test_nothing_left(self, folder: Path) -> None:
        self.spoil(folder, 0, 1, 2)
        with pytest.raises(
            InputError, match=r"expected a valid case, found none of 3; first: case case0: channel FLAIR"
        ):
            check_dataset(load(folder), workers=2, skip_invalid=True)

    def test_only_empty_labels_left(self, folder: Path) -> None:
        self.spoil(folder, 0, 1)
        write_nifti(folder / "labelsTr/case2.nii.gz", label_of(0))
        with pytest.raises(InputError, match="found 1 empty ones"):
            check_dataset(load(folder), workers=2, skip_invalid=True)


@pytest.mark.skipif(not SHARED, reason="SEGMENT_SHARED does not name the folder with the real scans")
def test_the_real_scans_are_valid() -> None:
    dataset, audit = check_dataset(load(Path(str(SHARED)) / "data" / "ms"), workers=2, skip_invalid=False)
    assert audit.findings == ()
    assert [case.case_id for case in dataset.cases] == ["ms19", "ms26"]
