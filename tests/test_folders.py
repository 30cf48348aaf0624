"""Folders of masks against folders of labels: pairing, failures and what is written."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from builders import AFFINE, SHAPE, oblique, scan_file, write_nifti
from folder_helpers import CONFIG, failures, mask, run, summary, three_cases

from segment.errors import InputError
from segment.evaluation import metrics, report_sections
from segment.evaluation.folders import find_jobs, mask_files, run_jobs
from segment.evaluation.lesion_map import CLASSES, itk_snap_table, slicer_table
from segment.evaluation.workers import Workers


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return three_cases(tmp_path)


class TestWhatIsWritten:
    def test_a_full_run(self, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(folders) == 0
        names = {path.name for path in (folders / "out").iterdir()} - {".segment-output"}
        assert names == {"cases.json", "failures.csv", "lesion_maps", "lesions.csv", "report.html", "summary.json"}
        micro = summary(folders)["micro"]
        assert (micro["n_scans"], micro["iou10"]["tp"], micro["iou10"]["fn"], micro["iou10"]["fp"]) == (3, 2, 1, 1)
        assert failures(folders) == []
        printed = capsys.readouterr().out
        assert "3 cases: small-lesion recall 0.67 (2 of 3), 0.33 false positives a scan" in printed
        assert str(folders / "out" / "report.html") in printed

    def test_inputs_are_named_by_role_and_not_by_machine(self, folders: Path) -> None:
        run(folders)
        inputs = summary(folders)["inputs"]
        assert sorted(inputs) == [f"{role}/{name}.nii.gz" for role in ("labels", "predictions") for name in "abc"]
        assert all(len(digest) == 64 for digest in inputs.values())

    def test_two_workers_write_the_same_bytes_as_one(self, folders: Path) -> None:
        assert run(folders, "one") == run(folders, "two", workers=2) == 0
        for path in (folders / "one").rglob("*"):
            if path.is_file():
                assert path.read_bytes() == (folders / "two" / path.relative_to(folders / "one")).read_bytes(), path

    def test_an_existing_output_is_refused_without_force(self, folders: Path) -> None:
        run(folders)
        with pytest.raises(InputError, match="already holds files"):
            run(folders)
        assert run(folders, force=True) == 0

    def test_lesion_maps(self, folders: Path) -> None:
        affine = oblique(20.0, (1.0, 1.5, 3.0), (-5.0, 8.0, 40.0))
        for folder in ("labels", "predictions"):
            path = folders / folder / "a.nii.gz"
            array = np.asarray(nib.load(path).dataobj)
            if folder == "predictions":
                array = array | mask(
                    (4, 0, 0), (0, 5, 4)
                )  # one beside the missed lesion, IoU a third, and one far away
            write_nifti(path, array.astype(np.uint8), affine)
        run(folders)
        found = nib.load(folders / "out" / "lesion_maps" / "a.nii.gz")
        assert np.allclose(found.affine, affine, atol=1e-5)
        values = np.asarray(found.dataobj)
        assert values[0, 0, 0] == values[5, 0, 0] == values[6, 1, 1] == 1
        assert values[4, 0, 0] == 0  # the match goes beyond its lesion there
        assert values[0, 5, 4] == 3
        run(folders, "other", config=CONFIG.model_copy(update={"match_iou": 0.5}))
        values = np.asarray(nib.load(folders / "other" / "lesion_maps" / "a.nii.gz").dataobj)
        assert values[5, 0, 0] == values[6, 0, 0] == 2
        assert values[4, 0, 0] == 3  # where no label lesion is

    def test_colour_tables(self, folders: Path) -> None:
        run(folders)
        folder = folders / "out" / "lesion_maps"
        assert (folder / "itk-snap-labels.txt").read_text() == itk_snap_table()
        assert (folder / "slicer-colours.ctbl").read_text() == slicer_table()
        snap = [line.split(maxsplit=7) for line in itk_snap_table().splitlines() if not line.startswith("#")]
        assert [int(line[0]) for line in snap] == [0, 1, 2, 3, 4]
        assert all(len(line) == 8 and line[7].startswith('"') for line in snap)
        slicer = [line.split() for line in slicer_table().splitlines() if not line.startswith("#")]
        assert [line[:5] for line in slicer[1:]] == [
            [str(value), name, *map(str, rgb)] for value, name, *rgb in CLASSES
        ]


class TestPairing:
    def test_an_nnunet_output_folder_as_it_is(self, folders: Path) -> None:
        predictions = folders / "predictions"
        for name in ("plans.json", "predict_from_raw_data_args.json", "a.npz", "a.pkl", "._a.nii.gz"):
            (predictions / name).write_text("{}")
        (predictions / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lesion": 1}}))
        assert run(folders) == 0
        assert summary(folders)["n_cases"] == 3

    def test_our_inference_folder(self, folders: Path) -> None:
        (folders / "predictions").rename(folders / "masks")
        (folders / "predictions").mkdir()
        (folders / "masks").rename(folders / "predictions" / "masks")
        assert run(folders) == 0

    def test_no_common_case(self, folders: Path) -> None:
        for path in (folders / "predictions").iterdir():
            path.rename(path.with_name(f"sub-{path.name}"))
        with pytest.raises(
            InputError,
            match=r"no case is in both folders: .*predictions has sub-a, sub-b, sub-c and .*labels has a, b, c",
        ):
            run(folders)
        assert not (folders / "out").exists()

    @pytest.mark.parametrize(("side", "kind"), [("predictions", "prediction"), ("labels", "label")])
    def test_a_missing_file_is_an_error(self, folders: Path, side: str, kind: str) -> None:
        (folders / side / "b.nii.gz").unlink()
        with pytest.raises(
            InputError, match=f"{side}: expected a {kind} for each case, found none for b; .*--missing empty"
        ):
            run(folders)

    def test_a_missing_prediction_can_be_scored_as_empty(self, folders: Path) -> None:
        (folders / "predictions" / "b.nii.gz").unlink()
        assert run(folders, missing="empty") == 0
        found = summary(folders)
        assert found["status"] == {"ok": 1, "gt_empty": 0, "pred_empty": 1, "both_empty": 1}
        assert found["notes"] == ["b: there is no prediction; scored as an empty one"]

    def test_a_missing_label_can_be_scored_as_empty(self, folders: Path) -> None:
        (folders / "labels" / "b.nii.gz").unlink()
        assert run(folders, missing="empty") == 0
        found = summary(folders)
        assert (found["status"]["gt_empty"], found["micro"]["iou10"]["fp"]) == (1, 2)
        assert found["notes"] == ["b: there is no label; scored as an empty one"]

    def test_folders_without_masks(self, folders: Path) -> None:
        with pytest.raises(InputError, match="expected a folder of masks, found nothing"):
            mask_files(folders / "nowhere")
        with pytest.raises(InputError, match="expected a folder of masks, found a file"):
            mask_files(folders / "labels" / "a.nii.gz")
        with pytest.raises(InputError, match=r"expected masks named CASE\.nii\.gz or CASE\.nii, found none"):
            mask_files(folders)

    def test_two_files_of_one_case(self, folders: Path) -> None:
        write_nifti(folders / "labels" / "a.nii", mask())
        with pytest.raises(InputError, match=r"one file for case a, found a\.nii and a\.nii\.gz"):
            run(folders)

    def test_pictures_come_from_beside_an_nnunet_labels_folder(self, folders: Path) -> None:
        (folders / "labels").rename(folders / "labelsTr")
        scan_file(folders / "imagesTr" / "a_0000.nii.gz")
        options: Any = {"config": CONFIG, "probabilities": None, "classes": None, "missing": "error", "maps": None}
        jobs = find_jobs(folders / "predictions", folders / "labelsTr", images=None, **options)
        assert [job.image for job in jobs] == [folders / "imagesTr" / "a_0000.nii.gz", None, None]


class Deadly:
    """Ends the process that unpickles it, as the kernel does when memory runs out."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (1,)


class TestFailures:
    def test_a_process_that_is_ended_from_outside_costs_one_case(self, folders: Path) -> None:
        options: Any = {"config": CONFIG, "probabilities": None, "images": None, "classes": None, "missing": "error"}
        jobs = find_jobs(folders / "predictions", folders / "labels", maps=None, **options)
        jobs[1] = dataclasses.replace(jobs[1], closed=Deadly())  # type: ignore[arg-type]
        with Workers(2) as pool:
            outcomes = run_jobs(jobs, pool)
        assert [outcome.case_id for outcome in outcomes] == ["a", "b", "c"]
        assert [outcome.error is None for outcome in outcomes] == [True, False, True]
        assert "ended from outside" in str(outcomes[1].error)

    def test_an_unreadable_file_in_the_middle_of_a_hundred(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(100):
            for folder in ("labels", "predictions"):
                write_nifti(tmp_path / folder / f"case{number:03d}.nii.gz", mask((0, 0, 0)))
        broken = tmp_path / "predictions" / "case050.nii.gz"
        broken.write_bytes(broken.read_bytes()[:60])
        assert run(tmp_path) == 1
        (row,) = failures(tmp_path)
        assert list(row) == ["case", "path", "kind", "message"]
        assert (row["case"], row["path"], row["kind"]) == ("case050", str(broken), "truncated")
        assert summary(tmp_path)["n_cases"] == 99
        assert "case case050 failed" in capsys.readouterr().err

    def test_a_process_that_ends_while_it_draws_costs_its_pictures(self, folders: Path) -> None:
        with Workers(2) as pool:
            done: list[Any] = []
            results = pool.run(len, ["ab", Deadly(), "c"], done=done.append)  # type: ignore[arg-type]
        assert results == [2, None, 1]
        assert sorted(done, key=str) == [1, 2, None]

    def test_an_unreadable_file_in_the_middle(self, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = (folders / "predictions" / "b.nii.gz").read_bytes()
        (folders / "predictions" / "b.nii.gz").write_bytes(data[: len(data) // 2])
        assert run(folders) == 1
        (row,) = failures(folders)
        assert (row["case"], row["kind"]) == ("b", "truncated")
        assert str(folders / "predictions" / "b.nii.gz") in row["message"]
        assert summary(folders)["n_cases"] == 2
        assert summary(folders)["notes"] == ["1 of 3 cases are left out, see failures.csv of this evaluation"]
        assert "case b failed" in capsys.readouterr().err

    def test_a_folder_of_images_of_other_cases(self, folders: Path) -> None:
        (folders / "scans").mkdir()
        (folders / "scans" / "patient_0000.nii.gz").touch()
        with pytest.raises(InputError, match=r"--images .*: expected a_0000\.nii\.gz or a\.nii\.gz, found none"):
            run(folders, images=folders / "scans")
        assert not (folders / "out").exists()

    def test_grids_that_differ_are_both_printed(self, folders: Path) -> None:
        moved = AFFINE.copy()
        moved[2, 3] += 4
        write_nifti(folders / "predictions" / "a.nii.gz", mask(), moved)
        assert run(folders) == 1
        error = failures(folders)[0]["message"]
        assert "-72.00" in error
        assert "-68.00" in error

    def test_probabilities_where_masks_belong(self, folders: Path) -> None:
        write_nifti(folders / "predictions" / "a.nii.gz", np.full(SHAPE, 0.4, np.float32))
        assert run(folders) == 1
        assert "if these are probabilities, pass their folder with --probabilities" in failures(folders)[0]["message"]

    def test_nothing_could_be_evaluated(self, folders: Path) -> None:
        for path in (folders / "predictions").iterdir():
            path.write_bytes(gzip.compress(b"no scan"))
        with pytest.raises(InputError, match=r"none of 3 cases could be evaluated, see .*failures\.csv; the first: "):
            run(folders)
        assert len(failures(folders)) == 3

    def test_more_than_ten_thousand_components_are_said_and_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(report_sections, "PANELS", 5)
        dots = np.zeros((50, 50, 50), np.uint8)
        dots[::2, ::2, ::2] = 1  # 25^3 = 15,625 single voxels
        write_nifti(tmp_path / "labels" / "a.nii.gz", dots * (np.arange(50) < 2).astype(np.uint8)[:, None, None])
        write_nifti(tmp_path / "predictions" / "a.nii.gz", dots)
        assert run(tmp_path) == 0
        (note,) = summary(tmp_path)["notes"]
        assert note.startswith("a: the prediction has 15,625 components, more than 10,000")
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        assert "this page holds at most 11 MiB of pictures and 5 lesions a case" in page
        assert summary(tmp_path)["micro"]["iou10"] == {
            "tp": 625,
            "fp": 15000,
            "fn": 0,
            "recall": 1.0,
            "precision": 0.04,
            "f1": 2 * 625 / (2 * 625 + 15000),
        }

    def test_very_many_components_go_on(self, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metrics, "MANY_COMPONENTS", 1)
        assert run(folders) == 0
        assert summary(folders)["notes"][0].startswith("a: the label has 2 components, more than 1")
