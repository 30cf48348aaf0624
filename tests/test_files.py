"""Atomic writing, JSON without NaN, and folders that are not overwritten by accident."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from segment.errors import InputError
from segment.files import atomic_path, claim_folder, jsonable, read_json, sha256_of, write_json, write_text


class TestAtomicPath:
    def test_the_file_appears_whole(self, tmp_path: Path) -> None:
        write_text(tmp_path / "new" / "a.txt", "häß")
        assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "häß"
        assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["a.txt"]

    def test_a_failed_block_leaves_the_old_file_and_no_temporary_one(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        target.write_text("old")

        def write_half() -> None:
            with atomic_path(target) as temporary:
                temporary.write_text("half")
                raise KeyError("stopped")

        with pytest.raises(KeyError):
            write_half()
        assert target.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]

    def test_a_full_disk_is_one_line_that_names_the_file(self, tmp_path: Path) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")
        message = r"cannot write .*a\.txt: No space left on device"
        with pytest.raises(InputError, match=message), atomic_path(tmp_path / "a.txt"):
            raise full

    def test_a_file_where_the_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "taken").touch()
        with pytest.raises(InputError, match=r"cannot write .*a\.txt: (File exists|Not a directory)"):
            write_text(tmp_path / "taken" / "a.txt", "x")

    def test_a_name_that_is_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="File name too long"):
            write_text(tmp_path / ("x" * 300), "x")

    def test_the_temporary_name_keeps_the_suffixes(self, tmp_path: Path) -> None:
        with atomic_path(tmp_path / "mask.nii.gz") as temporary:
            assert temporary.name.endswith(".nii.gz")
            temporary.touch()


class TestJson:
    def test_nan_and_infinity_become_null(self, tmp_path: Path) -> None:
        values = {"x": float("nan"), "y": [np.float32("inf"), np.int64(3)], 4: (Path("p"), True)}
        write_json(tmp_path / "a.json", values)
        assert read_json(tmp_path / "a.json") == {"x": None, "y": [None, 3], "4": ["p", True]}

    def test_arrays_become_lists(self) -> None:
        assert jsonable(np.array([[1.0, np.nan]])) == [[1.0, None]]

    def test_broken_json_names_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{")
        with pytest.raises(InputError, match=r"a\.json is not valid JSON"):
            read_json(tmp_path / "a.json")

    def test_a_missing_file_names_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot read .*a\.json: No such file"):
            read_json(tmp_path / "a.json")


def test_sha256_of_the_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    # FIPS 180-4 test value of the empty message.
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class TestClaimFolder:
    def test_a_new_folder_is_made(self, tmp_path: Path) -> None:
        claim_folder(tmp_path / "a" / "b", kind="report")
        assert (tmp_path / "a" / "b").is_dir()

    def test_an_existing_one_is_refused_and_kept(self, tmp_path: Path) -> None:
        claim_folder(tmp_path / "out", kind="report")
        (tmp_path / "out" / "result").touch()
        with pytest.raises(InputError, match="already holds files; pass --force to replace it"):
            claim_folder(tmp_path / "out", kind="report")
        assert (tmp_path / "out" / "result").exists()

    def test_a_claimed_one_that_is_still_empty_can_be_claimed_again(self, tmp_path: Path) -> None:
        claim_folder(tmp_path / "out", kind="report")
        claim_folder(tmp_path / "out", kind="report")

    def test_force_empties_ours_and_resume_keeps_it(self, tmp_path: Path) -> None:
        claim_folder(tmp_path / "out", kind="report")
        (tmp_path / "out" / "result").touch()
        claim_folder(tmp_path / "out", resume=True, kind="report")
        assert (tmp_path / "out" / "result").exists()
        claim_folder(tmp_path / "out", force=True, kind="report")
        assert not (tmp_path / "out" / "result").exists()

    def test_force_never_empties_a_folder_of_somebody_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(InputError, match="replaces only output folders made by segment"):
            claim_folder(tmp_path, force=True, kind="report")
        assert (tmp_path / "thesis.tex").exists()

    @pytest.mark.parametrize("flags", [{}, {"force": True}, {"resume": True}])
    def test_what_is_read_is_never_replaced(self, tmp_path: Path, flags: dict[str, bool]) -> None:
        claim_folder(tmp_path / "out", kind="report")
        (tmp_path / "out" / "masks").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "out")
        for given in (tmp_path / "out" / "masks", tmp_path / "out", tmp_path / "link" / "masks"):
            with pytest.raises(InputError, match=r"holds the input .*; choose another path for the output"):
                claim_folder(tmp_path / "out", inputs=(None, given), **flags, kind="report")
        assert (tmp_path / "out" / "masks").is_dir()
        claim_folder(tmp_path / "out", inputs=(None, tmp_path, tmp_path / "out" / "absent"), force=True, kind="report")

    def test_a_run_is_no_folder_of_results(self, tmp_path: Path) -> None:
        claim_folder(tmp_path / "run", kind="run")
        (tmp_path / "run" / "model.keras").touch()
        for flags in ({"force": True}, {"resume": True}):
            with pytest.raises(
                InputError, match="run: expected the folder of a report, found a run folder; choose another"
            ):
                claim_folder(tmp_path / "run", **flags, kind="report")
        claim_folder(tmp_path / "run", resume=True, kind="run")
        assert (tmp_path / "run" / "model.keras").exists()

    def test_a_report_does_not_replace_predictions(self, tmp_path: Path) -> None:
        claim_folder(tmp_path / "out", kind="predictions")
        (tmp_path / "out" / "masks").mkdir()
        with pytest.raises(InputError, match="expected the folder of a report, found a folder of predictions"):
            claim_folder(tmp_path / "out", force=True, kind="report")
        assert (tmp_path / "out" / "masks").is_dir()

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "out").touch()
        with pytest.raises(InputError, match="is a file, expected a folder"):
            claim_folder(tmp_path / "out", kind="report")

    def test_an_unwritable_parent(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot write to output folder"):
            claim_folder(tmp_path / "file" / "out", kind="report")
