"""MSD and BIDS datasets: found, told apart, read, and taken as input of a prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import AFFINE, SHAPE, tiny_dataset, write_nifti

from segment.config_data import BidsConfig
from segment.data.bids import input_filters, read_sidecars
from segment.data.cases import find_dataset, find_inputs
from segment.data.checks import audit_dataset
from segment.data.scan import read_scan
from segment.errors import InputError

RNG = np.random.default_rng(0)
VOLUMES = RNG.integers(1, 99, (*SHAPE, 3)).astype(np.int16)
LABEL = (np.arange(np.prod(SHAPE)).reshape(SHAPE) == 100).astype(np.uint8)


def msd_dataset(folder: Path, *, cases: int = 2, volumes: np.ndarray = VOLUMES, **keys: object) -> Path:
    """MSD's own form: 4D images with the channels last, labels named by value."""
    for index in range(cases):
        write_nifti(folder / f"imagesTr/brain_{index:03d}.nii.gz", np.roll(volumes, index, axis=0))
        write_nifti(folder / f"labelsTr/brain_{index:03d}.nii.gz", LABEL)
    values: dict[str, object] = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "core"},
        "numTraining": cases,
        "training": [
            {"image": f"./imagesTr/brain_{index:03d}.nii.gz", "label": f"./labelsTr/brain_{index:03d}.nii.gz"}
            for index in reversed(range(cases))
        ],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(values | keys), encoding="utf-8")
    return folder


def bids_dataset(folder: Path, *names: str) -> Path:
    """BIDS images (and masks, below derivatives) of the given names, such as sub-01/anat/sub-01_FLAIR."""
    for number, name in enumerate(names):
        image = LABEL if "derivatives" in name else np.roll(VOLUMES[..., 0], number + 1, axis=1)
        write_nifti(folder / f"{name}.nii.gz", image)
    return folder


TWO_SESSIONS = (
    "sub-01/ses-a/anat/sub-01_ses-a_FLAIR",
    "sub-01/ses-a/anat/sub-01_ses-a_acq-mprage_T1w",
    "sub-01/ses-b/anat/sub-01_ses-b_FLAIR",
    "sub-01/ses-b/anat/sub-01_ses-b_acq-mprage_T1w",
    "sub-02/anat/sub-02_FLAIR",
    "sub-02/anat/sub-02_acq-mprage_T1w",
    "derivatives/lesions/sub-01/ses-a/anat/sub-01_ses-a_label-lesion_mask",
    "derivatives/lesions/sub-01/ses-b/anat/sub-01_ses-b_label-lesion_mask",
    "derivatives/lesions/sub-02/anat/sub-02_label-lesion_mask",
)


class TestMsd:
    def test_one_4d_file_of_all_channels(self, tmp_path: Path) -> None:
        dataset = find_dataset(msd_dataset(tmp_path), layout="auto")
        assert (dataset.layout, dataset.channel_names) == ("msd", ("FLAIR", "T1w", "T2w"))
        assert dataset.label_values == {"edema": 1, "core": 2}
        assert [case.case_id for case in dataset.cases] == ["brain_000", "brain_001"]
        assert dataset.cases[1].image_volumes == (0, 1, 2)
        scan = read_scan(dataset.cases[1], with_label=True)
        np.testing.assert_array_equal(scan.image, np.roll(VOLUMES, 1, axis=0))
        np.testing.assert_array_equal(scan.grid.affine, AFFINE)
        assert scan.grid.shape == SHAPE
        assert audit_dataset(dataset, workers=2).findings == ()

    def test_one_file_a_channel_as_nnunet_v1_wrote_it(self, tmp_path: Path) -> None:
        root = msd_dataset(tmp_path, cases=1)
        (root / "imagesTr/brain_000.nii.gz").unlink()
        for channel in range(3):
            write_nifti(root / f"imagesTr/brain_000_{channel:04d}.nii.gz", VOLUMES[..., channel])
        (case,) = find_dataset(root, layout="msd").cases
        np.testing.assert_array_equal(read_scan(case, with_label=False).image, VOLUMES)

    def test_one_channel_is_a_3d_file(self, tmp_path: Path) -> None:
        root = msd_dataset(tmp_path, volumes=VOLUMES[..., 0], modality={"0": "MRI"})
        scan = read_scan(find_dataset(root, layout="auto").cases[0], with_label=True)
        np.testing.assert_array_equal(scan.image[..., 0], VOLUMES[..., 0])

    @pytest.mark.parametrize("volumes", [VOLUMES[..., :2], VOLUMES[..., 0]])
    def test_wrong_number_of_channels_is_said_once(self, tmp_path: Path, volumes: np.ndarray) -> None:
        root = msd_dataset(tmp_path)
        write_nifti(root / "imagesTr/brain_000.nii.gz", volumes)
        (finding,) = audit_dataset(find_dataset(root, layout="auto"), workers=1).findings
        assert (finding.case_id, finding.severity, finding.kind) == ("brain_000", "error", "channels")
        shape = "x".join(map(str, volumes.shape))
        assert f"expected 3 channels as the last axis (4D), found shape {shape}" in finding.message

    def test_the_channel_with_a_fault_is_named(self, tmp_path: Path) -> None:
        root = msd_dataset(tmp_path)
        spoiled = VOLUMES[::-1].astype(np.float32)
        spoiled[0, 0, 0, 1] = np.nan
        write_nifti(root / "imagesTr/brain_001.nii.gz", spoiled)
        (finding,) = audit_dataset(find_dataset(root, layout="auto"), workers=1).findings
        assert finding.message.startswith("case brain_001: channel T1w: ")

    def test_patients_and_labels_by_name(self, tmp_path: Path) -> None:
        labels = {"background": 0, "lesion": 1}
        root = msd_dataset(tmp_path, patients={"brain_000": "p", "brain_001": "p"}, labels=labels)
        dataset = find_dataset(root, layout="auto")
        assert [case.patient_id for case in dataset.cases] == ["p", "p"]
        assert dataset.label_values == {"lesion": 1}

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"training": []}, r"training: expected a list of \{\"image\": \.\.\., \"label\": \.\.\.\}, found \[\]"),
            ({"training": [{"image": "a.nii.gz"}]}, r"training: expected \{\"image\": path, \"label\": path\}"),
            ({"training": [{"image": "a.mha", "label": "a.mha"}]}, r"expected a listed image that ends in .*'a\.mha'"),
            ({"training": [{"image": "a.nii", "label": "a.nii"}] * 2}, "case 'a' stands twice"),
            ({"modality": {"1": "FLAIR"}}, "modality: expected the keys 0, found 1"),
            ({"labels": {"0": "background", "1": "x", "2": "x"}}, "labels: expected names that differ"),
            ({"patients": {"brain_00": "p"}}, "case 'brain_00' is not listed; did you mean 'brain_00"),
            ({"test": [3]}, "test: expected a list of paths, found 3"),
        ],
    )
    def test_what_is_wrong_names_the_key(self, tmp_path: Path, keys: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message):
            find_dataset(msd_dataset(tmp_path, **keys), layout="auto")

    def test_as_input(self, tmp_path: Path) -> None:
        root = msd_dataset(tmp_path)
        cases = find_inputs(root, channels=("FLAIR", "T1w", "T2w"))
        assert [case.case_id for case in cases] == ["brain_000", "brain_001"]
        write_nifti(root / "imagesTs/new.nii.gz", VOLUMES)
        msd_dataset(tmp_path, test=["./imagesTs/new.nii.gz"])
        (case,) = find_inputs(root, channels=("FLAIR", "T1w", "T2w"))
        assert (case.case_id, case.label_path) == ("new", None)
        np.testing.assert_array_equal(read_scan(case, with_label=False).image, VOLUMES)
        with pytest.raises(
            InputError, match="expected the channels FLAIR, T1 as the model takes, found FLAIR, T1w, T2w"
        ):
            find_inputs(root, channels=("FLAIR", "T1"))

    def test_4d_files_as_input(self, tmp_path: Path) -> None:
        write_nifti(tmp_path / "a.nii.gz", VOLUMES)
        write_nifti(tmp_path / "b.nii", VOLUMES[..., 0])
        for path in (tmp_path / "a.nii.gz", tmp_path):
            case = find_inputs(path, channels=("FLAIR", "T1w", "T2w"))[0]
            np.testing.assert_array_equal(read_scan(case, with_label=False).image, VOLUMES)
        with pytest.raises(InputError, match=r"case b: .*b\.nii: expected 3 channels as the last axis"):
            read_scan(find_inputs(tmp_path, channels=("FLAIR", "T1w", "T2w"))[1], with_label=False)


class TestBids:
    def test_sessions_are_cases_and_subjects_patients(self, tmp_path: Path) -> None:
        dataset = find_dataset(bids_dataset(tmp_path, *TWO_SESSIONS), layout="auto")
        assert (dataset.layout, dataset.channel_names, dataset.label_values) == (
            "bids",
            ("FLAIR", "T1w"),
            {"lesion": 1},
        )
        found = [(case.case_id, case.patient_id) for case in dataset.cases]
        assert found == [("sub-01_ses-a", "sub-01"), ("sub-01_ses-b", "sub-01"), ("sub-02", "sub-02")]
        assert dataset.cases[0].image_paths[1].name == "sub-01_ses-a_acq-mprage_T1w.nii.gz"
        assert audit_dataset(dataset, workers=2).findings == ()

    def test_filters_on_suffix_and_entities(self, tmp_path: Path) -> None:
        root = bids_dataset(
            tmp_path, "sub-1/anat/sub-1_FLAIR", "sub-1/anat/sub-1_acq-fast_FLAIR", "sub-1/dwi/sub-1_adc",
            "derivatives/a/sub-1/anat/sub-1_desc-expert_mask", "derivatives/b/sub-1/sub-1_desc-brain_mask",
        )  # fmt: skip
        with pytest.raises(InputError, match=r"data\.bids\.channels\.FLAIR: expected one file .* name an entity"):
            find_dataset(root, layout="bids")
        channels = {"slow": {"suffix": "FLAIR", "acq": None}, "fast": {"acq": "fast"}, "ADC": {"suffix": "adc"}}
        with pytest.raises(InputError, match=r"data\.bids\.label: expected one file that fits \{'suffix': 'mask'\}"):
            find_dataset(root, layout="bids", bids=BidsConfig(channels=channels))
        config = BidsConfig(channels=channels, label={"suffix": "mask", "desc": "expert"})
        dataset = find_dataset(root, layout="auto", bids=config)
        assert dataset.channel_names == ("slow", "fast", "ADC")
        names = [path.name for path in dataset.cases[0].image_paths]
        assert names == ["sub-1_FLAIR.nii.gz", "sub-1_acq-fast_FLAIR.nii.gz", "sub-1_adc.nii.gz"]
        assert str(dataset.cases[0].label_path).endswith("sub-1_desc-expert_mask.nii.gz")

    def test_what_a_session_lacks_is_left_to_the_checks(self, tmp_path: Path) -> None:
        root = bids_dataset(tmp_path, *TWO_SESSIONS)
        (root / "sub-02/anat/sub-02_FLAIR.nii.gz").unlink()
        (root / "derivatives/lesions/sub-01/ses-b/anat/sub-01_ses-b_label-lesion_mask.nii.gz").unlink()
        config = BidsConfig(channels={"FLAIR": {"suffix": "FLAIR"}, "T1": {"suffix": "T1w"}})
        findings = audit_dataset(find_dataset(root, layout="auto", bids=config), workers=1).findings
        assert [(finding.case_id, finding.kind) for finding in findings] == [
            ("sub-01_ses-b", "missing"),
            ("sub-02", "missing"),
        ]
        assert "sub-02/anat/sub-02_FLAIR.nii.gz: no such file" in findings[1].message

    def test_no_suffix_in_common_and_nothing_that_fits(self, tmp_path: Path) -> None:
        root = bids_dataset(tmp_path, "sub-1/anat/sub-1_FLAIR", "sub-2/anat/sub-2_T1w")
        with pytest.raises(InputError, match=r"no suffix is there in all 2 sessions, found FLAIR, T1w; set data\.bids"):
            find_dataset(root, layout="auto")
        with pytest.raises(InputError, match="found the suffixes FLAIR, T1w"):
            find_dataset(root, layout="auto", bids=BidsConfig(channels={"T2": {"suffix": "T2w"}}))

    def test_sidecars_are_kept_and_inherited(self, tmp_path: Path) -> None:
        root = bids_dataset(tmp_path, *TWO_SESSIONS)
        (root / "FLAIR.json").write_text(
            '{"EchoTime": 0.1, "Manufacturer": "A", "PatientName": "Doe", "AcquisitionDateTime": "2020-01-01T00:00:00"}'
        )
        (root / "sub-01/ses-a/anat/sub-01_ses-a_FLAIR.json").write_text('{"EchoTime": 0.2}')
        (root / "sub-02/anat/sub-02_acq-mprage_T1w.json").write_text("{")
        sidecars = read_sidecars(root, find_dataset(root, layout="auto").cases)
        name = "sub-01/ses-a/anat/sub-01_ses-a_FLAIR.nii.gz"
        assert sidecars["sub-01_ses-a"] == {name: {"EchoTime": 0.2, "Manufacturer": "A"}}  # no patient and no date
        assert list(sidecars["sub-01_ses-b"].values()) == [{"EchoTime": 0.1, "Manufacturer": "A"}]
        assert "not valid JSON" in sidecars["sub-02"]["sub-02/anat/sub-02_acq-mprage_T1w.nii.gz"]["error"]

    def test_as_input(self, tmp_path: Path) -> None:
        root = bids_dataset(tmp_path, *TWO_SESSIONS)
        filters = input_filters(BidsConfig(), ("FLAIR", "T1"))
        assert filters == {"FLAIR": {"suffix": "FLAIR"}, "T1": {"suffix": "T1w"}}
        cases = find_inputs(root, channels=("FLAIR", "T1"), bids=filters)
        assert [case.case_id for case in cases] == ["sub-01_ses-a", "sub-01_ses-b", "sub-02"]
        assert {case.label_path for case in cases} == {None}
        own = {"x": {"acq": "mprage"}}
        assert input_filters(BidsConfig(channels=own), ("x",)) == own
        with pytest.raises(InputError, match=r"expected BIDS images that fit .* found the suffixes FLAIR, T1w"):
            find_inputs(root, channels=("FLAIR",), bids={"T2": {"suffix": "T2w"}})


class TestToldApart:
    def test_dataset_json_may_be_named_itself(self, tmp_path: Path) -> None:
        tiny_dataset(tmp_path)
        assert find_dataset(tmp_path / "dataset.json", layout="auto").root == tmp_path
        assert len(find_inputs(tmp_path / "dataset.json", channels=("FLAIR",))) == 3

    def test_semicolons(self, tmp_path: Path) -> None:
        path = tmp_path / "cases.csv"
        path.write_text("case;patient;FLAIR;label\na;p;x,1.nii;l.nii\n", encoding="utf-8-sig")
        (case,) = find_dataset(path, layout="auto").cases
        assert (case.patient_id, case.image_paths[0].name) == ("p", "x,1.nii")

    def test_what_is_no_dataset(self, tmp_path: Path) -> None:
        scan = write_nifti(tmp_path / "a.nii.gz", LABEL)
        with pytest.raises(InputError, match="expected a folder or a CSV manifest, found another file"):
            find_dataset(scan, layout="auto")
        with pytest.raises(InputError, match=r"found neither; scans without labels are for segment infer"):
            find_dataset(tmp_path, layout="auto")
        with pytest.raises(InputError, match=r"expected dataset\.json in it \(data\.layout is msd\)"):
            find_dataset(tmp_path, layout="msd")
