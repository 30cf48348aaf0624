"""The cache of prepared cases and the lesion table."""

from __future__ import annotations

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from builders import AFFINE, SHAPE, tiny_dataset, write_nifti
from data_helpers import make_test_plan

from segment.data import preprocessing
from segment.data.cases import Case, find_dataset
from segment.data.lesion_table import find_lesions
from segment.data.preprocessing import prepare_cases, to_network
from segment.data.scan import read_scan
from segment.errors import InputError

PLAN = make_test_plan(spacing_mm=(1.0, 1.0, 2.0))


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, ...]:
    return find_dataset(tiny_dataset(tmp_path / "data"), layout="nnunet").cases


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


class TestFindLesions:
    def test_by_hand(self) -> None:
        label = np.zeros((6, 6, 6), np.uint8)
        label[0, 0, 0] = label[1, 1, 1] = 1  # touch at a corner: one lesion
        label[5, 5, 3:6] = 1
        label[2, 2, 2] = 2  # another class, touching the first
        label[4, 0, 0] = 9  # no class of the plan
        value, box, offset, voxels = find_lesions(label, (1, 2))
        assert value.tolist() == [1, 1, 2]
        assert box.tolist() == [[[0, 2]] * 3, [[5, 6], [5, 6], [3, 6]], [[2, 3]] * 3]
        assert offset.tolist() == [0, 2, 5, 6]
        flat = [0, 1 * 36 + 1 * 6 + 1, 5 * 36 + 5 * 6 + 3, 5 * 36 + 5 * 6 + 4, 5 * 36 + 5 * 6 + 5, 2 * 36 + 2 * 6 + 2]
        assert voxels.tolist() == flat

    def test_empty_label(self) -> None:
        value, box, offset, voxels = find_lesions(np.zeros((3, 4, 5), np.uint8), (1, 2))
        assert (value.shape, box.shape, offset.tolist(), voxels.shape) == ((0,), (0, 3, 2), [0], (0,))

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_memory_order_does_not_matter(self, order: str) -> None:
        label = (np.random.default_rng(0).random((7, 8, 9)) < 0.05).astype(np.uint8)
        _, box, offset, voxels = find_lesions(np.array(label, order=order), (1,))
        assert np.array_equal(np.sort(voxels), np.flatnonzero(label))
        for lesion, (start, stop) in enumerate(box.transpose(0, 2, 1)):
            inside = np.transpose(np.unravel_index(voxels[offset[lesion] : offset[lesion + 1]], label.shape))
            assert inside.min(axis=0).tolist() == start.tolist()
            assert (inside.max(axis=0) + 1).tolist() == stop.tolist()


class TestPrepareCases:
    def test_content_equals_what_inference_computes(self, cases: tuple[Case, ...], tmp_path: Path) -> None:
        prepared = prepare_cases(cases, PLAN, cache_dir=tmp_path / "cache", workers=2)
        assert [case.case for case in prepared] == list(cases)
        for case in prepared:
            image, label, placement = to_network(read_scan(case.case, with_label=True), PLAN)
            assert label is not None
            np.testing.assert_array_equal(case.image().view(np.uint32), image.view(np.uint32))  # bit for bit
            np.testing.assert_array_equal(case.label(), label)
            assert isinstance(case.image(), np.memmap)
            assert (case.shape, case.placement.crop) == (placement.shape, placement.crop)
            assert len(case.lesions) == 1
            assert case.lesions.volume_mm3.tolist() == [2 * 2 * 2 * 2.0]  # 8 voxels of 2 mm3
            # The first axis of the file points left: voxels 1 and 2 of 8 are 5 and 6 from the other end.
            assert case.lesions.box[0].tolist() == [[5, 7], [1, 3], [1, 3]]
            assert np.array_equal(np.sort(case.lesions.voxels(0)), np.flatnonzero(label))

    def test_second_run_computes_nothing(
        self, cases: tuple[Case, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = prepare_cases(cases, PLAN, cache_dir=tmp_path / "cache", workers=1)
        monkeypatch.setattr(preprocessing, "to_network", lambda *_: pytest.fail("computed again"))
        second = prepare_cases(cases, PLAN, cache_dir=tmp_path / "cache", workers=1)
        assert [case.image_path for case in first] == [case.image_path for case in second]
        assert second[0].lesions.box.tolist() == first[0].lesions.box.tolist()

    def test_interrupted_run_goes_on(
        self, cases: tuple[Case, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = []

        def interrupted(scan: object, plan: object) -> object:
            if done:
                raise KeyboardInterrupt
            done.append(scan)
            return to_network(scan, plan)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(preprocessing, "to_network", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prepare_cases(cases, PLAN, cache_dir=tmp_path / "cache", workers=1)
        kept = folders(tmp_path / "cache")
        assert len(kept) == 1
        assert kept[0].startswith("case0-")
        prepare_cases(cases, PLAN, cache_dir=tmp_path / "cache", workers=1)
        assert len(folders(tmp_path / "cache")) == 3
        assert kept[0] in folders(tmp_path / "cache")

    def test_changed_file_or_setting_is_computed_anew(self, cases: tuple[Case, ...], tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        before = prepare_cases(cases[:1], PLAN, cache_dir=cache, workers=1)[0].image_path
        other = [
            dataclasses.replace(PLAN, spacing_mm=(1.0, 1.0, 1.0)),
            dataclasses.replace(PLAN, normalization="percentile"),
            dataclasses.replace(PLAN, label_values={"lesion": 2}),
        ]
        paths = {prepare_cases(cases[:1], plan, cache_dir=cache, workers=1)[0].image_path for plan in other}
        same = dataclasses.replace(PLAN, filters=(8, 16), residual=True)
        assert prepare_cases(cases[:1], same, cache_dir=cache, workers=1)[0].image_path == before
        label = np.zeros(SHAPE, np.uint8)
        label[4, 4, 4] = 1
        write_nifti(cases[0].label_path, label)
        changed = prepare_cases(cases[:1], PLAN, cache_dir=cache, workers=1)[0]
        assert changed.lesions.volume_mm3.tolist() == [2.0]
        assert len({before, changed.image_path, *paths}) == 5

    def test_two_runs_at_once(self, cases: tuple[Case, ...], tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(prepare_cases, cases, PLAN, cache_dir=cache, workers=2) for _ in range(4)]
            found = [[case.image_path for case in run.result()] for run in runs]
        assert all(paths == found[0] for paths in found)
        assert len(folders(cache)) == 3  # and no leftovers

    def test_only_old_leftovers_are_removed(self, cases: tuple[Case, ...], tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        for name, age_s in ((".tmp-1-old", 48 * 3600), (".tmp-2-new", 60)):
            (cache / name).mkdir(parents=True)
            os.utime(cache / name, (time.time() - age_s,) * 2)
        prepare_cases(cases[:1], PLAN, cache_dir=cache, workers=1)
        assert not (cache / ".tmp-1-old").exists()
        assert (cache / ".tmp-2-new").exists()

    def test_a_folder_that_another_run_renames_meanwhile(
        self, cases: tuple[Case, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        glob = Path.glob
        gone = tmp_path / "cache" / ".tmp-3-renamed"
        monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone] if pattern == ".tmp-*" else glob(self, pattern))
        assert len(prepare_cases(cases, PLAN, cache_dir=tmp_path / "cache", workers=1)) == 3

    def test_volumes_of_one_file_are_told_apart(self, tmp_path: Path) -> None:
        """Two channels of a 4D file in another order are another prepared case, though the file is the same."""
        values = np.random.default_rng(0).normal(100, 10, (*SHAPE, 2)).astype(np.float32)
        path = write_nifti(tmp_path / "a.nii.gz", values)
        label = np.zeros(SHAPE, np.uint8)
        label[4, 4, 4] = 1
        case = Case("a", "a", (path, path), write_nifti(tmp_path / "l.nii.gz", label), (0, 1))
        plan = make_test_plan(spacing_mm=(1.0, 1.0, 2.0), channels=2)
        both = [case, dataclasses.replace(case, image_volumes=(1, 0))]
        first, second = prepare_cases(both, plan, cache_dir=tmp_path / "cache", workers=1)
        assert first.image_path != second.image_path
        np.testing.assert_array_equal(first.image(), second.image()[..., ::-1])

    def test_lesion_free_case(self, tmp_path: Path) -> None:
        root = tiny_dataset(tmp_path / "data", cases=1)
        write_nifti(root / "labelsTr" / "case0.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE)
        prepared = prepare_cases(
            find_dataset(root, layout="nnunet").cases, PLAN, cache_dir=tmp_path / "cache", workers=1
        )
        assert len(prepared[0].lesions) == 0
        assert prepared[0].label().sum() == 0


class TestErrors:
    def test_case_without_label(self, cases: tuple[Case, ...], tmp_path: Path) -> None:
        case = dataclasses.replace(cases[0], label_path=None)
        with pytest.raises(InputError, match="case case0: expected a label file for training, found none"):
            prepare_cases([case], PLAN, cache_dir=tmp_path / "cache", workers=1)

    def test_missing_file(self, cases: tuple[Case, ...], tmp_path: Path) -> None:
        cases[1].image_paths[0].unlink()
        with pytest.raises(InputError, match=r"case case1: cannot read .*case1_0000.nii.gz: No such file"):
            prepare_cases(cases, PLAN, cache_dir=tmp_path / "cache", workers=1)

    def test_cache_that_cannot_be_written(self, cases: tuple[Case, ...], tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(InputError, match=r"cannot write the cache .*cache"):
            prepare_cases(cases, PLAN, cache_dir=tmp_path / "cache", workers=1)

    def test_damaged_cache_entry_is_named(self, cases: tuple[Case, ...], tmp_path: Path) -> None:
        prepared = prepare_cases(cases[:1], PLAN, cache_dir=tmp_path / "cache", workers=1)
        (prepared[0].image_path.parent / "case.json").write_text("{", encoding="utf-8")
        with pytest.raises(InputError, match=r"case\.json is not valid JSON"):
            prepare_cases(cases[:1], PLAN, cache_dir=tmp_path / "cache", workers=1)
