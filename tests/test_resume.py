"""A prediction that is ended and resumed: nothing half written, nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from builders import write_nifti
from data_helpers import make_test_plan
from inference_helpers import write_run, write_scan
from resume_helpers import NAMES, POINT, SHAPE, Counting, files, infer, predicted, write_scans

from segment.data.cases import find_inputs
from segment.data.label_files import find_labels
from segment.errors import InputError
from segment.inference.batch import run_job, settings_digest
from segment.inference.point_in_use import PointInUse
from segment.inference.predictor import Predictor
from segment.inference.records import read_record
from segment.inference.stages import Job


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path)


class TestResume:
    def test_what_is_complete_is_left_as_it_is_and_stays_in_manifest_and_report(
        self, scans: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert predicted(scans, labels=True) == 5
        before = {path: path.stat().st_mtime_ns for path in (scans / "out" / "masks").iterdir()}
        summary = (scans / "out" / "report" / "summary.json").read_bytes()
        (scans / "out" / "masks" / "b.nii.gz").unlink()
        capsys.readouterr()
        assert predicted(scans, labels=True) == 1
        assert "5 of 5 scans predicted, 4 of them before" in capsys.readouterr().out
        after = {path: path.stat().st_mtime_ns for path in (scans / "out" / "masks").iterdir()}
        assert {path.name for path in before if before[path] != after[path]} == {"b.nii.gz"}
        assert (scans / "out" / "report" / "summary.json").read_bytes() == summary
        manifest = json.loads((scans / "out" / "manifest.json").read_text())
        assert sorted(manifest["cases"]) == list(NAMES)
        assert all(entry["seconds"]["predict"] >= 0 for entry in manifest["cases"].values())

    def test_4d_files_are_known_again_and_drawn(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            mask = write_scan(tmp_path, name, np.eye(4), SHAPE)
            path = tmp_path / "images" / f"{name}_0000.nii.gz"
            image = np.asarray(nib.load(path).dataobj, np.float32)
            path.unlink()
            write_nifti(tmp_path / "images" / f"{name}.nii.gz", np.stack([image, image], -1), np.eye(4))
            assert mask.any()
        plan = make_test_plan(channels=2)

        def done() -> int:
            predictor = Counting(plan)
            settings = settings_digest(predictor, POINT)
            job = Job(predictor, tmp_path / "out", find_labels(tmp_path / "labels"), False, POINT, settings, True, None)
            job.output.mkdir(exist_ok=True)
            assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR", "T1"))) == 0
            return predictor.done

        assert (done(), done()) == (2, 0)
        assert "<image" in (tmp_path / "out" / "report" / "report.html").read_text()

    def test_without_the_flag_everything_is_done_again(self, scans: Path) -> None:
        predicted(scans)
        assert predicted(scans, resume=False) == 5

    @pytest.mark.parametrize(
        "change", ["input", "mask", "point", "peak", "probabilities", "labels", "label", "record", "failure"]
    )
    def test_what_has_changed_is_predicted_again(self, scans: Path, change: str) -> None:
        labels = change == "label"
        if change == "failure":
            whole = (scans / "images" / "c_0000.nii.gz").read_bytes()
            (scans / "images" / "c_0000.nii.gz").write_bytes(whole[:-30])
        predicted(scans, labels=labels)
        again: dict[str, Any] = {"labels": labels}
        if change == "input":
            write_scan(scans, "c", np.eye(4), SHAPE, seed=77)
        elif change == "mask":
            (scans / "out" / "masks" / "c.nii.gz").write_bytes(b"half")
        elif change == "label":
            write_nifti(scans / "labels" / "c.nii.gz", np.ones(SHAPE, np.uint8), np.eye(4))
        elif change == "record":
            (scans / "out" / "records" / "c.json").write_text("{}")
        elif change == "failure":
            (scans / "images" / "c_0000.nii.gz").write_bytes(whole)
        elif change == "point":
            again["point"] = PointInUse(0.6, 0.0, "test")
        elif change == "peak":
            again["point"] = PointInUse(0.5, 0.0, "test", min_peak=0.9)
        else:
            again[change] = True
        assert predicted(scans, **again) == (1 if change in ("input", "mask", "label", "record", "failure") else 5)
        assert predicted(scans, **again) == 0

    def test_a_scan_without_a_label_is_predicted_once(self, scans: Path) -> None:
        """It is told every time, for it has no row in the report, until its label is there or none is wanted."""
        label = (scans / "labels" / "c.nii.gz").read_bytes()
        (scans / "labels" / "c.nii.gz").unlink()
        failures = scans / "out" / "failures.csv"
        assert predicted(scans, labels=True) == 5
        told = failures.read_text()
        assert (predicted(scans, labels=True), failures.read_text()) == (0, told)
        assert "case c: expected its label in" in told
        assert (predicted(scans), failures.read_text().count("\n")) == (0, 1)
        predicted(scans, labels=True, resume=False)
        (scans / "labels" / "c.nii.gz").write_bytes(label)
        assert (predicted(scans, labels=True), failures.read_text().count("\n")) == (1, 1)

    def test_labels_that_are_no_longer_wanted_change_nothing(self, scans: Path) -> None:
        predicted(scans, labels=True)
        assert predicted(scans) == 0

    def test_another_model_is_noticed(self, tmp_path: Path) -> None:
        plan = make_test_plan()
        for seed in (0, 1):
            write_run(tmp_path / f"run{seed}", plan, seed=seed)
        first, second = (Predictor.load([tmp_path / f"run{seed}"]) for seed in (0, 1))
        assert settings_digest(first, POINT) != settings_digest(second, POINT)
        flipped = Predictor.load([tmp_path / "run0"], changes={"flips": True})
        assert settings_digest(first, POINT) != settings_digest(flipped, POINT)
        batched = Predictor.load([tmp_path / "run0"], changes={"window_batch": 7})
        assert settings_digest(first, POINT) == settings_digest(batched, POINT)

    def test_a_folder_of_others_is_not_taken_over(self, scans: Path) -> None:
        write_run(scans / "run", make_test_plan())
        (scans / "out").mkdir()
        (scans / "out" / "notes.txt").touch()
        with pytest.raises(InputError, match="holds files that segment did not write"):
            infer(scans, resume=True)


# Ends itself as `kill -9` does, in the middle of writing the second mask: its bytes are on the disk, its name is not.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import resume_helpers
import segment.files
wait, seen = os.fsync, []
def die(handle):
    seen.append(os.readlink(f"/proc/self/fd/{handle}"))
    if sum("/masks/" in name for name in seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    wait(handle)
segment.files.os.fsync = die
resume_helpers.predicted(Path(sys.argv[1]))
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the name behind a file handle is read from /proc")
def test_a_killed_run_leaves_no_half_written_mask_and_is_resumed(scans: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(scans)],
        env=environment,
        check=False,
        capture_output=True,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = sorted(path.name for path in (scans / "out" / "masks").iterdir())
    assert [name for name in left if not name.startswith(".tmp-")] == ["a.nii.gz"]
    assert len(left) == 2  # and the one that was being written, under another name
    assert nib.load(scans / "out" / "masks" / "a.nii.gz").get_fdata().any()
    assert read_record(scans / "out", "b") is None
    assert predicted(scans) == 4
    predicted(scans, output="whole")
    assert files(scans / "out") == files(scans / "whole")
