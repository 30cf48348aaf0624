"""Finding cases in both layouts and for inference."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from builders import scan_file, tiny_dataset, write_dataset_json

from segment.data.cases import Case, find_dataset, find_inputs
from segment.data.splits import split_cases
from segment.errors import InputError

SHARED = os.environ.get("SEGMENT_SHARED")


def touch(folder: Path, *names: str) -> None:
    """Empty files: nothing here reads a scan."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


class TestNnUnet:
    def test_cases_channels_labels(self, tmp_path: Path) -> None:
        tiny_dataset(tmp_path, cases=2, channels=("T1", "FLAIR"))
        dataset = find_dataset(tmp_path, layout="auto")
        assert dataset.channel_names == ("T1", "FLAIR")
        assert dataset.label_values == {"lesion": 1}
        assert [(case.case_id, case.patient_id) for case in dataset.cases] == [("case0", "case0"), ("case1", "case1")]
        paths = [path.relative_to(tmp_path).as_posix() for path in dataset.cases[1].image_paths]
        assert paths == ["imagesTr/case1_0000.nii.gz", "imagesTr/case1_0001.nii.gz"]
        assert dataset.cases[1].label_path == tmp_path / "labelsTr" / "case1.nii.gz"

    def test_channels_are_in_the_order_of_their_numbers_also_above_nine(self, tmp_path: Path) -> None:
        names = {str(number): f"c{number}" for number in range(12)}
        touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
        write_dataset_json(tmp_path, channel_names=dict(sorted(names.items())))  # "10" before "2"
        dataset = find_dataset(tmp_path, layout="nnunet")
        assert dataset.channel_names == tuple(f"c{number}" for number in range(12))
        assert dataset.cases[0].image_paths[11].name == "a_0011.nii.gz"

    def test_patients(self, tmp_path: Path) -> None:
        tiny_dataset(tmp_path, patients={"case0": "anna", "case2": "anna"})
        assert [case.patient_id for case in find_dataset(tmp_path, layout="auto").cases] == ["anna", "case1", "anna"]

    def test_what_is_missing_is_left_to_the_checks(self, tmp_path: Path) -> None:
        write_dataset_json(tmp_path, channels=("a", "b"))
        touch(tmp_path, "imagesTr/no_label_0001.nii.gz", "labelsTr/no_image.nii.gz")
        cases = find_dataset(tmp_path, layout="auto").cases
        assert [case.case_id for case in cases] == ["no_image", "no_label"]
        assert [path.name for path in cases[1].image_paths] == ["no_label_0000.nii.gz", "no_label_0001.nii.gz"]

    def test_files_of_other_kinds_are_not_cases(self, tmp_path: Path) -> None:
        write_dataset_json(tmp_path)
        touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/._a_0000.nii.gz", "imagesTr/notes.txt", "labelsTr/a.nii.gz")
        assert [case.case_id for case in find_dataset(tmp_path, layout="auto").cases] == ["a"]

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"file_ending": None}, r"file_ending: expected '\.nii\.gz' or '\.nii', found None"),
            ({"file_ending": ".mha"}, r"file_ending: .*found '\.mha'"),
            ({"channel_names": None}, r"channel_names: expected for example .*found None"),
            ({"channel_names": {"1": "a", "2": "b"}}, "channel_names: expected the keys 0, 1, found 1, 2"),
            ({"channel_names": {"0": "a", "1": "a"}}, "channel_names: expected names that differ"),
            (
                {"labels": {"background": 0, "whole": [1, 2]}},
                r"'whole' is a region of several values \[1, 2\], which is not",
            ),
            ({"labels": {"background": 0, "lesion": "1"}}, "'lesion': expected an integer from 0 to 255, found '1'"),
            ({"labels": {"background": 0, "lesion": True}}, "'lesion': expected an integer"),
            ({"labels": {"background": 0, "lesion": 256}}, "'lesion': expected an integer from 0 to 255, found 256"),
            ({"labels": {"background": 0, "a": 1, "b": 1}}, "labels: expected values that differ"),
            ({"labels": {"background": 0}}, "labels: expected at least one value above 0"),
            ({"labels": {"background": 0, "lesion": 1, "ignore": 2}}, "'ignore' is not supported"),
            ({"labels": None}, "labels: expected for example .*found None"),
            ({"patients": {"case0": 3}}, "patients: expected a name for each case"),
            ({"patients": {"kase0": "p"}}, "patients: case 'kase0' has no files; did you mean 'case0'"),
        ],
    )
    def test_dataset_json_is_checked(self, tmp_path: Path, keys: dict[str, object], message: str) -> None:
        write_dataset_json(tmp_path, **keys)
        touch(tmp_path, "imagesTr/case0_0000.nii.gz", "labelsTr/case0.nii.gz")
        with pytest.raises(InputError, match=message):
            find_dataset(tmp_path, layout="auto")

    def test_what_is_no_dataset(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"gone does not exist; give a folder with dataset\.json"):
            find_dataset(tmp_path / "gone", layout="auto")
        with pytest.raises(InputError, match=r"expected dataset\.json in it"):
            find_dataset(tmp_path, layout="auto")
        (tmp_path / "dataset.json").write_text("{")
        with pytest.raises(InputError, match=r"dataset\.json is not valid JSON"):
            find_dataset(tmp_path, layout="auto")
        (tmp_path / "dataset.json").write_text("[]")
        with pytest.raises(InputError, match=r"expected an object .* found list"):
            find_dataset(tmp_path, layout="auto")
        write_dataset_json(tmp_path)
        with pytest.raises(InputError, match=r"imagesTr: expected a folder with NIfTI files, found nothing"):
            find_dataset(tmp_path, layout="auto")
        (tmp_path / "imagesTr").mkdir()
        (tmp_path / "labelsTr").mkdir()
        with pytest.raises(InputError, match=r"expected images such as imagesTr/CASE_0000\.nii\.gz, found none"):
            find_dataset(tmp_path, layout="auto")

    def test_names_in_images(self, tmp_path: Path) -> None:
        write_dataset_json(tmp_path)
        touch(tmp_path, "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
        with pytest.raises(InputError, match=r"is channel 0001 of case a, expected 0000 to 0000 \(1 channels\)"):
            find_dataset(tmp_path, layout="auto")
        (tmp_path / "imagesTr/a_0001.nii.gz").rename(tmp_path / "imagesTr/a.nii.gz")
        with pytest.raises(InputError, match=r"a\.nii\.gz: expected a name such as CASE_0000\.nii\.gz"):
            find_dataset(tmp_path, layout="auto")


class TestManifest:
    def write(self, folder: Path, text: str, encoding: str = "utf-8") -> Path:
        (folder / "cases.csv").write_text(text, encoding=encoding)
        return folder / "cases.csv"

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_columns(self, tmp_path: Path, encoding: str) -> None:
        text = "case,patient,FLAIR,T1,label\nb,p,x/b.nii,y/b.nii,l/b.nii\n\na, p ,a.nii,/abs/a.nii,\n"
        dataset = find_dataset(self.write(tmp_path, text, encoding), layout="auto")
        assert dataset.channel_names == ("FLAIR", "T1")
        assert dataset.label_values == {"lesion": 1}
        first = Case("a", "p", (tmp_path / "a.nii", Path("/abs/a.nii")), None)
        second = Case("b", "p", (tmp_path / "x/b.nii", tmp_path / "y/b.nii"), tmp_path / "l/b.nii")
        assert dataset.cases == (first, second)

    def test_without_patients_each_case_is_one(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "case,FLAIR,label\na,a.nii,l.nii\n")
        assert find_dataset(path, layout="csv").cases[0].patient_id == "a"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "expected a column 'case', found the columns none"),
            ("case,label\n", "expected a column for each channel"),
            ("case,FLAIR\na,b\n", "expected a column 'label', found the columns case, FLAIR"),
            ("case,FLAIR,FLAIR,label\n", "expected column names that differ"),
            ("case,FLAIR,label\n", "expected at least one case, found none"),
            ("case,FLAIR,label\na,a.nii\n", r"row 2: expected 3 cells \(case, FLAIR, label\), found 2"),
            ("case,FLAIR,label\n\na,,l.nii\n", "row 3: column 'FLAIR' is empty"),
            ("case,FLAIR,label\na,a.nii,l\na,b.nii,l\n", "row 3: case 'a' stands twice"),
            ("case,FLAIR,label\n../a,a.nii,l\n", r"row 2: case '\.\./a': expected a plain file name"),
            ("case,patient,FLAIR,label\na,,a.nii,l\n", "row 2: column 'patient' is empty"),
        ],
    )
    def test_what_is_wrong_names_row_and_column(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            find_dataset(self.write(tmp_path, text), layout="csv")

    def test_what_is_no_csv(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes(b"case,\xff\xfe\n")
        with pytest.raises(InputError, match=r"a\.csv is not a CSV file in UTF-8"):
            find_dataset(tmp_path / "a.csv", layout="auto")
        with pytest.raises(InputError, match="cannot read manifest"):
            find_dataset(tmp_path, layout="csv")


class TestFindInputs:
    def ids(self, path: Path, *channels: str) -> dict[str, list[str]]:
        cases = find_inputs(path, channels=channels or ("FLAIR",))
        return {case.case_id: [p.name for p in case.image_paths] for case in cases}

    def test_one_file(self, tmp_path: Path) -> None:
        assert self.ids(scan_file(tmp_path / "ms1_0000.nii.gz")) == {"ms1": ["ms1_0000.nii.gz"]}
        assert self.ids(scan_file(tmp_path / "b.nii")) == {"b": ["b.nii"]}
        with pytest.raises(InputError, match=r"is one channel, the model takes 2; give a folder"):
            find_inputs(tmp_path / "b.nii", channels=("FLAIR", "T1"))

    def test_folder_of_plain_files(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.nii", "scan_0001.nii.gz", "scan_0000.nii.gz", "notes.txt", ".hidden.nii.gz")
        assert list(self.ids(tmp_path)) == ["b", "scan_0000", "scan_0001"]  # the numbers are part of the names here

    def test_folder_of_one_channel_named_as_nnunet_does(self, tmp_path: Path) -> None:
        touch(tmp_path, "b_0000.nii.gz", "a_0000.nii.gz")
        assert list(self.ids(tmp_path)) == ["a", "b"]

    def test_folder_of_channels_keeps_cases_that_lack_one(self, tmp_path: Path) -> None:
        touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii", "c.nii.gz")
        assert self.ids(tmp_path, "FLAIR", "T1") == {
            "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
            "b": ["b_0000.nii", "b_0001.nii"],
            "c": ["c_0000.nii.gz", "c_0001.nii.gz"],
        }

    def test_links_and_folders_with_a_scans_name_become_cases_that_fail_alone(self, tmp_path: Path) -> None:
        (tmp_path / "folder.nii.gz").mkdir()
        (tmp_path / "link.nii.gz").symlink_to("gone")
        assert list(self.ids(tmp_path)) == ["folder", "link"]
        assert list(self.ids(tmp_path / "link.nii.gz")) == ["link"]

    def test_dataset(self, tmp_path: Path) -> None:
        tiny_dataset(tmp_path, cases=2)
        assert list(self.ids(tmp_path)) == ["case0", "case1"]
        touch(tmp_path, "imagesTs/new_0000.nii.gz")
        assert list(self.ids(tmp_path)) == ["new"]

    def test_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("case,FLAIR\nx,x.nii\n")
        assert self.ids(tmp_path / "a.csv") == {"x": ["x.nii"]}
        with pytest.raises(InputError, match="expected the channels FLAIR, T1 as the model takes, found FLAIR"):
            find_inputs(tmp_path / "a.csv", channels=("FLAIR", "T1"))

    def test_channels_are_told_by_their_names_not_by_their_places(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("case,t1,FLAIR\nx,one.nii,two.nii\n")
        assert self.ids(tmp_path / "a.csv", "FLAIR", "T1") == {"x": ["two.nii", "one.nii"]}
        with pytest.raises(
            InputError, match=r"a\.csv: expected the channels FLAIR, T2 as the model takes, found t1, FLAIR"
        ):
            find_inputs(tmp_path / "a.csv", channels=("FLAIR", "T2"))
        touch(tmp_path, "set/imagesTs/a_0000.nii.gz", "set/imagesTs/a_0001.nii.gz")
        table = tmp_path / "set" / "dataset.json"
        table.write_text('{"channel_names": {"0": "T1", "1": "FLAIR"}}')
        with pytest.raises(
            InputError, match=r"expected the channels in the order FLAIR, T1 .* found T1, FLAIR; give a CSV"
        ):
            find_inputs(tmp_path / "set", channels=("FLAIR", "T1"))
        for text in ('{"channel_names": {"0": "flair", "1": "T1"}}', "{}"):
            table.write_text(text)
            assert self.ids(tmp_path / "set", "FLAIR", "T1") == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}

    def test_nothing_to_find(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.txt")
        with pytest.raises(InputError, match="gone does not exist"):
            find_inputs(tmp_path / "gone", channels=("FLAIR",))
        with pytest.raises(InputError, match=r"expected NIfTI files \(\.nii\.gz or \.nii\), found none"):
            find_inputs(tmp_path, channels=("FLAIR",))
        with pytest.raises(InputError, match=r"a\.txt: expected \.nii\.gz, \.nii, \.csv or a folder"):
            find_inputs(tmp_path / "a.txt", channels=("FLAIR",))
        touch(tmp_path, "a_0002.nii.gz")
        with pytest.raises(InputError, match=r"is channel 2, the model takes 2: 0000 to 0001"):
            find_inputs(tmp_path, channels=("FLAIR", "T1"))

    def test_no_channel_in_any_name_and_two_endings(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.nii.gz")
        with pytest.raises(
            InputError, match=r"the model takes 2 channels, expected CASE_0000\.nii\.gz, found a\.nii\.gz"
        ):
            find_inputs(tmp_path, channels=("FLAIR", "T1"))
        touch(tmp_path, "a.nii")
        with pytest.raises(InputError, match=r"expected one file for a, found a\.nii and a\.nii\.gz; remove one"):
            find_inputs(tmp_path, channels=("FLAIR",))


@pytest.mark.skipif(not SHARED, reason="SEGMENT_SHARED does not name the folder with the real scans")
def test_the_real_dataset() -> None:
    root = Path(str(SHARED)) / "data" / "ms"
    dataset = find_dataset(root, layout="auto")
    assert dataset.channel_names == tuple(json.loads((root / "dataset.json").read_text())["channel_names"].values())
    split = split_cases(dataset, validation_cases=("ms26",), validation_share=0.2, seed=0)
    assert (split.train, split.validation) == (("ms19",), ("ms26",))
