"""Folders of scans: what is written where, overlap, memory, reports, and scans that fail while the others go on."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import oblique, write_nifti
from data_helpers import make_test_plan
from inference_helpers import (
    bright_is_lesion,
    lesion_image,
    make_job,
    make_member,
    quick_config,
    threshold_predictor,
    write_run,
    write_scan,
)

from segment.data.cases import find_inputs
from segment.errors import InputError
from segment.inference.batch import predict_cases, run_job
from segment.inference.predictor import Predictor
from segment.memory_use import peak_bytes

# Axes permuted, flipped, and turned; spacing near 1 mm so that nothing is resampled where voxels are counted.
AFFINES = {
    "flipped": np.diag([-1.0, 1.0, -1.0, 1.0]),
    "permuted": np.array([[0.0, 0, -1, 9], [1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]]),
    "turned": oblique(12, (1.0, 1.0, 1.0), (5.0, -3.0, 2.0)),
}
SHAPE = (9, 11, 16)


def mask_of(output: Path, case_id: str) -> np.ndarray:
    return np.asarray(nib.load(output / "masks" / f"{case_id}.nii.gz").dataobj)


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "failures.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def manifest_of(output: Path) -> dict:
    return json.loads((output / "manifest.json").read_text())


class TestMasks:
    def test_lie_on_the_right_voxels_of_each_scans_own_grid(self, tmp_path: Path) -> None:
        masks = {name: write_scan(tmp_path, name, affine, SHAPE) for name, affine in AFFINES.items()}
        job = make_job(tmp_path / "out")
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 0
        for name, mask in masks.items():
            assert np.array_equal(mask_of(job.output, name), mask), name
            written = nib.load(job.output / "masks" / f"{name}.nii.gz")
            source = nib.load(tmp_path / "images" / f"{name}_0000.nii.gz")
            assert np.array_equal(written.affine, source.affine)
            assert written.get_data_dtype() == np.uint8
            assert written.header["qform_code"] == source.header["qform_code"]
        assert rows_of(job.output) == []

    def test_threshold_and_smallest_lesion_hold(self, tmp_path: Path) -> None:
        image = np.ones((8, 8, 8), np.float32)
        image[1, 1, 1] = 10  # 1 mm3
        image[4:6, 4:6, 4] = 10  # 4 mm3
        write_nifti(tmp_path / "images" / "one_0000.nii.gz", image, np.eye(4))
        cases = find_inputs(tmp_path / "images", channels=("FLAIR",))
        half = Predictor([make_member(forward=lambda windows: np.where(windows > 1, 0.0, -9.0))])  # probability 0.5
        for threshold, min_lesion_mm3, voxels in ((0.5, 0.0, 5), (0.5, 2.0, 4), (0.6, 0.0, 0)):
            job = make_job(
                tmp_path / f"{threshold}{min_lesion_mm3}", half, threshold=threshold, min_lesion_mm3=min_lesion_mm3
            )
            assert run_job(job, cases) == 0
            assert mask_of(job.output, "one").sum() == voxels

    def test_probabilities_on_request(self, tmp_path: Path) -> None:
        mask = write_scan(tmp_path, "one", AFFINES["flipped"], SHAPE)
        job = make_job(tmp_path / "out", probabilities=True)
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 0
        written = np.asarray(nib.load(job.output / "probabilities" / "one.nii.gz").dataobj)
        assert np.array_equal(written > 0.5, mask)
        assert not (make_job(tmp_path / "other").output / "probabilities").exists()


class TestFailures:
    def test_one_broken_file_among_three_stops_no_other(self, tmp_path: Path) -> None:
        masks = {name: write_scan(tmp_path, name, affine, SHAPE) for name, affine in AFFINES.items()}
        broken = tmp_path / "images" / "permuted_0000.nii.gz"
        broken.write_bytes(broken.read_bytes()[:-40])
        job = make_job(tmp_path / "out", labels=tmp_path / "labels")
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 1
        for name in ("flipped", "turned"):
            assert np.array_equal(mask_of(job.output, name), masks[name])
        assert sorted(path.name for path in (job.output / "masks").iterdir()) == ["flipped.nii.gz", "turned.nii.gz"]
        (row,) = rows_of(job.output)
        assert (row["case"], row["path"], row["kind"]) == ("permuted", str(broken), "truncated")
        assert row["message"].startswith("case permuted: ")
        summary = json.loads((job.output / "report" / "summary.json").read_text())
        assert summary["n_cases"] == 2
        assert manifest_of(job.output)["cases"]["permuted"] == {
            "written": False,
            "failure": "truncated",
            "inputs": {},
            "outputs": {},
            "seconds": {},
            "peak_memory_mib": pytest.approx(peak_bytes() / 2**20, rel=0.5),
        }

    def test_missing_second_channel_is_named(self, tmp_path: Path) -> None:
        plan = make_test_plan(channels=2)
        image, mask = lesion_image(SHAPE)
        for name in ("a_0000", "a_0001", "b_0000"):
            write_nifti(tmp_path / "images" / f"{name}.nii.gz", image, np.eye(4))
        job = make_job(tmp_path / "out", threshold_predictor(plan))
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR", "T1"))) == 1
        assert np.array_equal(mask_of(job.output, "a"), mask)
        (row,) = rows_of(job.output)
        assert (row["case"], row["path"], row["kind"]) == ("b", str(tmp_path / "images" / "b_0001.nii.gz"), "missing")

    def test_network_that_gives_nan_fails_that_scan_alone(self, tmp_path: Path) -> None:
        def network(windows: np.ndarray) -> np.ndarray:
            return np.where(windows.max() > 6, np.nan, bright_is_lesion(windows))

        image = np.ones((8, 8, 8), np.float32)
        image[1, 1, 1] = 10  # a single bright voxel of 512 stands 22 deviations out
        write_nifti(tmp_path / "images" / "odd_0000.nii.gz", image, np.eye(4))
        write_scan(tmp_path, "plain", np.eye(4), SHAPE)
        job = make_job(tmp_path / "out", Predictor([make_member(forward=network)]))
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 1
        (row,) = rows_of(job.output)
        assert (row["case"], row["kind"]) == ("odd", "predict")
        assert "NaN" in row["message"]

    def test_too_little_memory_fails_that_scan_alone(self, tmp_path: Path) -> None:
        def network(windows: np.ndarray) -> np.ndarray:
            raise MemoryError

        write_scan(tmp_path, "one", np.eye(4), SHAPE)
        job = make_job(tmp_path / "out", Predictor([make_member(forward=network)]))
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 1
        assert rows_of(job.output)[0]["message"] == "case one: not enough memory to predict it"

    def test_output_that_cannot_be_written(self, tmp_path: Path) -> None:
        write_scan(tmp_path, "one", np.eye(4), SHAPE)
        job = make_job(tmp_path / "out")
        (job.output / "masks" / "one.nii.gz").mkdir(parents=True)
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 1
        (row,) = rows_of(job.output)
        assert (row["kind"], row["path"]) == ("write", str(job.output / "masks" / "one.nii.gz"))

    @pytest.mark.parametrize("fault", ["missing", "other grid"])
    def test_label_that_cannot_be_used_leaves_the_mask(self, tmp_path: Path, fault: str) -> None:
        for name in ("a", "b"):
            write_scan(tmp_path, name, np.eye(4), SHAPE)
        (tmp_path / "labels" / "a.nii.gz").unlink()
        if fault == "other grid":
            write_nifti(tmp_path / "labels" / "a.nii.gz", np.zeros((5, 5, 5), np.uint8), np.eye(4))
        job = make_job(tmp_path / "out", labels=tmp_path / "labels")
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 1
        assert mask_of(job.output, "a").any()
        (row,) = rows_of(job.output)
        assert (row["case"], row["kind"]) == ("a", "grid" if fault == "other grid" else "evaluate")
        assert json.loads((job.output / "report" / "summary.json").read_text())["n_cases"] == 1


class TestReport:
    def test_perfect_masks_find_every_lesion(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, affine in AFFINES.items():
            write_scan(tmp_path, name, affine, SHAPE)
        job = make_job(tmp_path / "out", labels=tmp_path / "labels", threshold=0.4)
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 0
        summary = json.loads((job.output / "report" / "summary.json").read_text())
        assert summary["micro"]["iou10"]["recall"] == 1.0
        assert summary["micro"]["fp_per_scan"] == 0.0
        assert summary["operating_point"]["threshold"] == 0.4
        assert (job.output / "report" / "report.html").is_file()
        assert "3 of 3 scans predicted" in capsys.readouterr().out

    def test_a_label_with_other_values_is_not_scored_as_an_empty_one(self, tmp_path: Path) -> None:
        mask = write_scan(tmp_path, "one", np.eye(4), SHAPE)
        write_nifti(tmp_path / "labels" / "one.nii.gz", mask * 255, np.eye(4))
        job = make_job(tmp_path / "out", labels=tmp_path / "labels")
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 1
        (row,) = rows_of(job.output)
        assert "expected the values of lesion (1), found only 255" in row["message"]
        assert mask_of(job.output, "one").sum() == mask.sum()

    def test_values_of_no_class_beside_them_are_noted(self, tmp_path: Path) -> None:
        mask = write_scan(tmp_path, "one", np.eye(4), SHAPE)
        mask[-1, -1, -1] = 7
        write_nifti(tmp_path / "labels" / "one.nii.gz", mask, np.eye(4))
        job = make_job(tmp_path / "out", labels=tmp_path / "labels")
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 0
        summary = json.loads((job.output / "report" / "summary.json").read_text())
        assert any("values that belong to no class: 7" in note for note in summary["notes"])

    def test_scan_and_label_of_one_name_are_both_listed(self, tmp_path: Path) -> None:
        write_scan(tmp_path, "one", np.eye(4), SHAPE)
        (tmp_path / "images" / "one_0000.nii.gz").rename(tmp_path / "images" / "one.nii.gz")
        job = make_job(tmp_path / "out", labels=tmp_path / "labels")
        run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",)))
        inputs = json.loads((job.output / "report" / "summary.json").read_text())["inputs"]
        files = [tmp_path / folder / "one.nii.gz" for folder in ("images", "labels")]
        assert list(inputs.values()) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    def test_names_no_folder_above_the_files(self, tmp_path: Path) -> None:
        write_scan(tmp_path / "Doe_John", "one", np.eye(4), SHAPE)
        job = make_job(tmp_path / "out", labels=tmp_path / "Doe_John" / "labels")
        run_job(job, find_inputs(tmp_path / "Doe_John" / "images", channels=("FLAIR",)))
        report = job.output / "report"
        inputs = json.loads((report / "summary.json").read_text())["inputs"]
        assert sorted(inputs) == ["one/0/one_0000.nii.gz", "one/1/one.nii.gz"]
        assert "Doe_John" not in (report / "report.html").read_text() + (report / "summary.json").read_text()


class TestPredictCases:
    def arguments(self, tmp_path: Path, **changes: object) -> dict:
        return {
            "labels": None,
            "probabilities": False,
            "threshold": None,
            "changes": {},
            "force": False,
            "resume": False,
            "shard": None,
            **changes,
        }

    def test_from_run_folders_to_a_manifest(self, tmp_path: Path) -> None:
        plan = make_test_plan()
        for seed in (0, 1):
            write_run(tmp_path / f"run{seed}", plan, seed=seed, config=quick_config(threshold=0.25, min_lesion_mm3=2))
        write_scan(tmp_path, "one", np.eye(4), SHAPE)
        runs, output = [tmp_path / "run0", tmp_path / "run1"], tmp_path / "out"
        code = predict_cases(runs, tmp_path / "images", output, **self.arguments(tmp_path, labels=tmp_path / "labels"))
        assert code == 0
        manifest = manifest_of(output)
        assert manifest["operating_point"] == {
            "threshold": 0.25,
            "min_lesion_mm3": 2.0,
            "min_peak": 0.0,
            "source": "configuration: the run has no operating_point.json",
        }
        assert manifest["plan"] == json.loads(json.dumps(plan.to_json()))
        digests = [hashlib.sha256((run / "model.keras").read_bytes()).hexdigest() for run in runs]
        assert [entry["model_sha256"] for entry in manifest["runs"]] == digests
        scan = tmp_path / "images" / "one_0000.nii.gz"
        entry = manifest["cases"]["one"]
        assert entry["inputs"][str(scan)] == hashlib.sha256(scan.read_bytes()).hexdigest()
        assert set(entry["seconds"]) == {"read", "predict", "write", "evaluate"}
        assert {"tensorflow", "numpy", "segment"} <= set(manifest["versions"])
        assert sorted(path.name for path in output.iterdir() if not path.name.startswith(".")) == [
            "failures.csv",
            "manifest.json",
            "masks",
            "records",
            "report",
        ]

    def test_existing_output_needs_force(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", make_test_plan())
        write_scan(tmp_path, "one", np.eye(4), SHAPE)
        given = [tmp_path / "run"], tmp_path / "images", tmp_path / "out"
        assert predict_cases(*given, **self.arguments(tmp_path, threshold=0.9)) == 0
        with pytest.raises(InputError, match="already holds files"):
            predict_cases(*given, **self.arguments(tmp_path))
        assert predict_cases(*given, **self.arguments(tmp_path, force=True)) == 0
        assert manifest_of(tmp_path / "out")["operating_point"]["threshold"] == 0.5

    def test_one_vote_has_no_deviation(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", make_test_plan())
        write_scan(tmp_path, "one", np.eye(4), SHAPE)
        given = [tmp_path / "run"], tmp_path / "images", tmp_path / "out"
        doubt = {"uncertainty": "deviation"}
        with pytest.raises(InputError, match="uncertainty deviation: expected several votes, found one network"):
            predict_cases(*given, **self.arguments(tmp_path, changes=doubt))
        assert not (tmp_path / "out").exists()
        assert predict_cases(*given, **self.arguments(tmp_path, changes=doubt | {"flips": True})) == 0

    def test_labels_must_be_there(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", make_test_plan())
        write_scan(tmp_path, "one", np.eye(4), SHAPE)
        with pytest.raises(InputError, match=r"labels .*nowhere: expected a folder"):
            predict_cases(
                [tmp_path / "run"],
                tmp_path / "images",
                tmp_path / "out",
                **self.arguments(tmp_path, labels=tmp_path / "nowhere"),
            )
        assert not (tmp_path / "out").exists()
