"""A prediction that is ended, resumed, or divided into shards: nothing half written, nothing done twice, one report."""

from __future__ import annotations

import csv
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
from inference_helpers import quick_config, threshold_predictor, write_run, write_scan

from segment.cli import main
from segment.data.cases import find_inputs
from segment.data.planning import Plan
from segment.errors import InputError
from segment.inference.batch import predict_cases, run_job, settings_digest
from segment.inference.merge import merge_reports
from segment.inference.point_in_use import PointInUse
from segment.inference.predictor import Predictor
from segment.inference.records import Shard, read_record
from segment.inference.stages import Job

SHAPE = (9, 11, 16)
NAMES = ("a", "b", "c", "d", "e")
POINT = PointInUse(0.5, 0.0, "test")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_scan(tmp_path, name, np.eye(4), SHAPE, seed=seed)
    return tmp_path


class Counting(Predictor):
    """Counts what is really predicted."""

    def __init__(self, plan: Plan | None = None) -> None:
        super().__init__(threshold_predictor(plan).members)
        self.done = 0

    def predict_prepared(self, *given: Any, **wanted: Any) -> Any:
        self.done += 1
        return super().predict_prepared(*given, **wanted)


def predicted(scans: Path, *, output: str = "out", resume: bool = True, shard: Shard | None = None, **more: Any) -> int:
    """How many scans the networks had to look at."""
    predictor = Counting()
    point = more.pop("point", POINT)
    labels = scans / "labels" if more.pop("labels", False) else None
    options = {"probabilities": False, "settings": settings_digest(predictor, point), **more}
    job = Job(predictor, scans / output, labels, point=point, resume=resume, shard=shard, **options)
    job.output.mkdir(exist_ok=True)
    run_job(job, find_inputs(scans / "images", channels=("FLAIR",)))
    return predictor.done


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "masks").glob("[!.]*.nii.gz")}


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
            job = Job(predictor, tmp_path / "out", tmp_path / "labels", False, POINT, settings, True, None)
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
import test_resume
import segment.files
wait, seen = os.fsync, []
def die(handle):
    seen.append(os.readlink(f"/proc/self/fd/{handle}"))
    if sum("/masks/" in name for name in seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    wait(handle)
segment.files.os.fsync = die
test_resume.predicted(Path(sys.argv[1]))
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


def infer(scans: Path, **changes: Any) -> int:
    options = {"labels": scans / "labels", "probabilities": False, "threshold": 0.5, "changes": {}}
    options |= {"force": False, "resume": False, "shard": None, **changes}
    return predict_cases([scans / "run"], scans / "images", scans / "out", **options)


class TestShards:
    def test_together_they_write_what_one_run_writes(self, scans: Path) -> None:
        assert predicted(scans, output="whole", labels=True) == 5
        shards = [predicted(scans, labels=True, resume=False, shard=Shard(index, 3)) for index in (2, 3, 1)]
        assert shards == [2, 1, 2]  # b e, c, a d
        assert not (scans / "out" / "manifest.json").exists()
        assert not (scans / "out" / "report" / "report.html").exists()
        assert merge_reports(scans / "out") == 0
        assert files(scans / "out") == files(scans / "whole")
        for name in ("lesions.csv", "cases.json", "summary.json"):
            merged, whole = ((scans / folder / "report" / name).read_text() for folder in ("out", "whole"))
            assert merged == whole
        manifest, whole_manifest = (
            json.loads((scans / name / "manifest.json").read_text()) for name in ("out", "whole")
        )
        assert list(manifest["cases"]) == list(NAMES)
        assert manifest["operating_point"] == whole_manifest["operating_point"]

    def test_failures_of_all_shards(self, scans: Path) -> None:
        for name in ("b", "c"):
            path = scans / "images" / f"{name}_0000.nii.gz"
            path.write_bytes(path.read_bytes()[:-30])
        for index in (1, 2):
            predicted(scans, shard=Shard(index, 2))
        assert merge_reports(scans / "out") == 1
        with (scans / "out" / "failures.csv").open(newline="") as handle:
            assert [(row["case"], row["kind"]) for row in csv.DictReader(handle)] == [
                ("b", "truncated"),
                ("c", "truncated"),
            ]
        with (scans / "out" / "failures-1of2.csv").open(newline="") as handle:
            assert [row["case"] for row in csv.DictReader(handle)] == ["c"]

    def test_a_missing_shard_is_said(self, scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
        predicted(scans, shard=Shard(2, 3))
        assert merge_reports(scans / "out") == 1
        captured = capsys.readouterr()
        assert "not there yet: shard 1, 3 of 3" in captured.err
        assert "2 of 5 cases of 1 of 3 shards joined" in captured.out

    def test_more_shards_than_cases(self, scans: Path) -> None:
        assert [predicted(scans, shard=Shard(index, 7)) for index in range(1, 8)] == [1] * 5 + [0] * 2
        assert merge_reports(scans / "out") == 0

    def test_shards_of_different_predictions_are_not_joined(self, scans: Path) -> None:
        predicted(scans, shard=Shard(1, 2))
        predicted(scans, shard=Shard(2, 2), point=PointInUse(0.7, 0.0, "test"))
        with pytest.raises(InputError, match="differ in models, options or operating point"):
            merge_reports(scans / "out")
        predicted(scans, shard=Shard(1, 3))
        with pytest.raises(InputError, match="found some of 2 and some of 3"):
            merge_reports(scans / "out")

    @pytest.mark.parametrize("content", ["[]", "{}", "{"])
    def test_broken_manifests(self, scans: Path, content: str) -> None:
        (scans / "out").mkdir()
        with pytest.raises(InputError, match=r"expected manifests such as manifest-1of8\.json, found none"):
            merge_reports(scans / "out")
        (scans / "out" / "manifest-1of2.json").write_text(content)
        with pytest.raises(InputError, match=r"manifest-1of2\.json"):
            merge_reports(scans / "out")


class TestFolders:
    """Who may write where, through the command."""

    @pytest.fixture
    def run(self, scans: Path) -> Path:
        write_run(scans / "run", make_test_plan(), config=quick_config())
        return scans

    def test_shards_share_a_folder_and_do_nothing_twice(self, run: Path) -> None:
        assert infer(run, shard=Shard(1, 2)) == 0
        assert infer(run, shard=Shard(2, 2)) == 0
        with pytest.raises(InputError, match=r"shard 1/2 has been predicted into .*; pass --resume"):
            infer(run, shard=Shard(1, 2))
        assert infer(run, shard=Shard(1, 2), resume=True) == 0
        with pytest.raises(InputError, match="--force would remove what the other shards have written"):
            infer(run, shard=Shard(1, 2), force=True)
        with pytest.raises(InputError, match="already holds files; pass --resume"):
            infer(run)
        assert main(["merge-reports", str(run / "out")]) == 0

    def test_labels_of_other_cases_are_refused_before_anything_is_predicted(self, run: Path) -> None:
        (run / "labels").rename(run / "elsewhere")
        (run / "labels").mkdir()
        (run / "elsewhere" / "a.nii.gz").rename(run / "labels" / "patient1.nii.gz")
        with pytest.raises(InputError, match=r"expected masks named as the cases, such as a\.nii\.gz, found none"):
            infer(run)
        assert not (run / "out").exists()

    @pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/2/3", "-1/4", "1.5/2"])
    def test_shards_that_are_none(self, run: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["infer", "--run", "r", "--input", "i", "--output", "o", f"--shard={text}"])
        assert "expected K/N such as 3/8" in capsys.readouterr().err

    def test_lesion_maps_lie_in_the_report(self, run: Path) -> None:
        infer(run, threshold=0.0001)
        names = {path.name for path in (run / "out" / "report" / "lesion_maps").iterdir()}
        assert names == {f"{name}.nii.gz" for name in NAMES} | {"itk-snap-labels.txt", "slicer-colours.ctbl"}
        (found,) = [nib.load(run / "out" / "report" / "lesion_maps" / "a.nii.gz")]
        label = nib.load(run / "labels" / "a.nii.gz").get_fdata() > 0
        assert set(np.unique(np.asarray(found.dataobj)[label])) <= {1, 2}
