"""A prediction that is divided into shards: nothing done twice, one report; and who may write where."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from data_helpers import make_test_plan
from inference_helpers import quick_config, write_run
from resume_helpers import NAMES, files, infer, predicted, write_scans

from segment.cli import main
from segment.errors import InputError
from segment.inference.merge import merge_reports
from segment.inference.point_in_use import PointInUse
from segment.inference.records import Shard


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path)


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

    def test_cases_that_were_predicted_again_with_other_settings(self, scans: Path) -> None:
        """As by a shard that is resumed with another point and ended before it has written its manifest."""
        for index in (1, 2):
            predicted(scans, shard=Shard(index, 2))
        kept = (scans / "out" / "manifest-1of2.json").read_bytes()
        predicted(scans, shard=Shard(1, 2), point=PointInUse(0.7, 0.0, "test"))
        (scans / "out" / "manifest-1of2.json").write_bytes(kept)
        with pytest.raises(InputError, match=r"case a has been predicted with other .* since shard 1/2 ended"):
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
