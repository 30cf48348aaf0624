"""The peak that a predicted lesion must reach: its choice and file, what a prediction removes by it, and its words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from builders import oblique, write_nifti
from data_helpers import make_scan, make_test_plan
from inference_helpers import make_job, make_member, quick_config, threshold_predictor, write_scan
from report_fixture import make_report
from scipy.special import logit

from segment.data.cases import find_inputs
from segment.data.planning import Plan
from segment.data.scan import Grid
from segment.errors import InputError
from segment.evaluation.page import page_labels
from segment.evaluation.report_summary import headline
from segment.files import write_json
from segment.inference.batch import run_job
from segment.inference.operating_point import FILE, PLOT, PointSearch, describe, write_operating_point
from segment.inference.point_in_use import PointInUse, point_in_use
from segment.inference.predictor import Predictor
from segment.inference.records import Record, read_record, record_path
from segment.inference.tiles import peak_voxels, remove_doubtful, to_mask


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)


def faint(false_positive: float) -> tuple[np.ndarray, np.ndarray]:
    """A lesion of 12 voxels, faint but for its middle, and a larger false positive."""
    return row(*[1] * 12, 0, *[0] * 13), row(*[0.2] * 6, 0.9, *[0.2] * 5, 0, *[false_positive] * 13)


def searched(cases: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """operating_point.json's content for cases of (label, probability) without any false positive allowed."""
    search = PointSearch(quick_config(operating_point={"max_fp_per_scan": 0.0, "peaks": True}))
    for case_id, (label, probability) in cases.items():
        search.add(case_id, label > 0, probability, Grid(label.shape, np.eye(4)))
    return search.finish(model_sha256="m", inputs={f"{case_id}.nii": f"sha-{case_id}" for case_id in cases})


def of_before(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same file as it was written before there were peaks."""
    old = json.loads(json.dumps(values))
    del old["min_peak"], old["counts"]["min_peaks"]
    for name in ("tp", "fp", "small_tp"):
        old["counts"][name] = [[cell[0] for cell in line] for line in old["counts"][name]]
    return old


class TestChoice:
    def test_threshold_volume_and_peak_together(self, tmp_path: Path) -> None:
        values = searched({"a": faint(0.5)})
        # The highest threshold, and the smallest volume and peak, that find the lesion and nothing else.
        assert (values["threshold"], values["min_lesion_mm3"], values["min_peak"]) == (0.2, 0.0, 0.6)
        assert values["at_point"]["min_peak"] == 0.6
        assert np.shape(values["counts"]["tp"]) == (20, 7, len(values["counts"]["min_peaks"]))
        write_operating_point(tmp_path, values)
        circles = ElementTree.parse(tmp_path / PLOT).getroot().iter("{http://www.w3.org/2000/svg}circle")
        marked = next(circle for circle in circles if circle.get("class") == "chosen")
        assert "Threshold 0.2: Recall 100%" in str(marked[0].text)
        assert "False positives a scan 0.00" in str(marked[0].text)  # 1 at this threshold without the peak

    def test_only_where_it_is_asked_for(self) -> None:
        search = PointSearch(quick_config())
        label, probability = faint(0.5)
        search.add("a", label > 0, probability, Grid(label.shape, np.eye(4)))
        values = search.finish(model_sha256="m", inputs={})
        assert (values["min_peak"], values["counts"]["min_peaks"]) == (0.0, [0.0])

    def test_in_words(self) -> None:
        assert describe(searched({"a": faint(0.5)}))[0] == (
            "operating point: threshold 0.2 in lesions that reach 0.6, predictions from 0 mm3: "
            "small-lesion recall 1.00, 0.00 false positives a scan on 1 validation case"
        )


class TestPointInUse:
    def used(self, folder: Path, *files: Mapping[str, Any], threshold: float | None = None) -> PointInUse:
        runs = [folder / str(number) for number in range(len(files))]
        for run, values in zip(runs, files, strict=True):
            write_json(run / FILE, values)
        return point_in_use(runs, ["m"] * len(runs), quick_config(), threshold=threshold)

    def test_the_runs_own(self, tmp_path: Path) -> None:
        found = self.used(tmp_path, searched({"a": faint(0.5)}))
        assert (found.threshold, found.min_peak) == (0.2, 0.6)
        assert found.to_json()["min_peak"] == 0.6

    def test_the_command_lines_threshold_has_none(self, tmp_path: Path) -> None:
        assert self.used(tmp_path, searched({"a": faint(0.5)}), threshold=0.3).min_peak == 0.0

    def test_a_file_of_before_is_read_as_without_a_peak(self, tmp_path: Path) -> None:
        found = self.used(tmp_path, of_before(searched({"a": faint(0.5)})))
        assert (found.threshold, found.min_peak) == (0.2, 0.0)

    def test_tables_that_do_not_fit_the_peaks_are_one_line(self, tmp_path: Path) -> None:
        values = json.loads(json.dumps(searched({"a": faint(0.5)})))
        values["counts"]["min_peaks"].pop()
        with pytest.raises(InputError, match=r"operating_point\.json: expected an operating point.* by 7 by 11 counts"):
            self.used(tmp_path, values)

    def test_an_ensemble_chooses_it_on_the_cases_of_all(self, tmp_path: Path) -> None:
        # Alone, the first would take 0.6, at which the second has a false positive.
        found = self.used(tmp_path, searched({"a": faint(0.5)}), searched({"b": faint(0.65)}))
        assert (found.threshold, found.min_lesion_mm3, found.min_peak) == (0.2, 0.0, 0.7)

    def test_an_ensemble_with_a_run_of_before_has_none(self, tmp_path: Path) -> None:
        found = self.used(tmp_path, searched({"a": faint(0.5)}), of_before(searched({"b": faint(0.65)})))
        assert found.min_peak == 0.0


class TestRemoval:
    def removed(self, mask: np.ndarray, peaks: np.ndarray | None, least: float = 0.0) -> list[int]:
        """What is left of a row of label values 1 and 2."""
        left = np.asfortranarray(mask.astype(np.uint8).reshape(-1, 1, 1))
        plan = make_test_plan(label_values={"lesion": 1, "core": 2})
        marked = None if peaks is None else np.asarray(peaks, bool).reshape(-1, 1, 1)
        remove_doubtful(left, plan, min_lesion_mm3=least, voxel_mm3=1.0, peaks=marked)
        return left.ravel().tolist()

    def test_components_without_a_peak_go_class_by_class(self) -> None:
        mask, peaks = np.array([1, 1, 0, 1, 0, 2, 2, 1, 0, 2]), np.array([0, 1, 0, 0, 0, 0, 1, 0, 0, 0])
        # The peak of class 2 at place 6 is none of the class 1 beside it.
        assert self.removed(mask, peaks) == [1, 1, 0, 0, 0, 2, 2, 0, 0, 0]

    def test_small_ones_go_in_the_same_pass(self) -> None:
        mask, peaks = np.array([1, 1, 0, 1, 0, 1, 1]), np.array([0, 1, 0, 1, 0, 0, 0])
        assert self.removed(mask, peaks, 2.0) == [1, 1, 0, 0, 0, 0, 0]
        assert self.removed(mask, None, 2.0) == [1, 1, 0, 0, 0, 1, 1]
        assert self.removed(mask, None) == mask.tolist()

    def test_no_component_and_no_peak(self) -> None:
        assert self.removed(np.zeros(3), np.zeros(3)) == [0, 0, 0]
        assert self.removed(np.array([1, 0, 2]), np.zeros(3)) == [0, 0, 0]


def predictor_of(plan: Plan, image: np.ndarray, levels: Mapping[float, tuple[float, ...]]) -> Predictor:
    """One whose network gives each grey value of `image` its probabilities, by class."""
    # Voxels are normalised by mean and deviation of the scan, which has no voxels of 0.
    seen = (np.array(list(levels)) - image.mean()) / image.std()
    wanted = logit(np.array(list(levels.values())))

    def network(windows: np.ndarray) -> np.ndarray:
        by_class = [np.interp(windows[..., 0], seen, column) for column in wanted.T]
        return np.stack(by_class, axis=-1).astype(np.float32)

    return Predictor([make_member(plan, network)])


class TestPrediction:
    def test_two_classes_through_a_job(self, tmp_path: Path) -> None:
        plan = make_test_plan(label_values={"lesion": 1, "core": 2})
        nothing, faint_1, sure_1, faint_2, sure_2, both = range(1, 7)
        image = np.full((20, 9, 8), float(nothing))
        image[1:3, 1, 1], image[3, 1, 1] = faint_1, sure_1  # stays
        image[1:4, 5, 1] = faint_1  # goes
        image[8:10, 1, 4], image[10, 2, 5] = faint_2, sure_2  # stays, by its corner
        image[8:10, 6, 4] = faint_2  # goes
        image[14:16, 4, 4], image[16, 4, 4] = faint_1, both  # the voxel is the second class, so the first has no peak
        levels = {1: (0.01, 0.01), 2: (0.3, 0.01), 3: (0.9, 0.01), 4: (0.01, 0.3), 5: (0.01, 0.9), 6: (0.3, 0.9)}
        write_nifti(tmp_path / "images" / "one_0000.nii.gz", image.astype(np.float32), np.eye(4))
        expected = np.zeros(image.shape, np.uint8)
        expected[1:4, 1, 1] = 1
        expected[8:10, 1, 4] = expected[10, 2, 5] = expected[16, 4, 4] = 2
        cases = find_inputs(tmp_path / "images", channels=("FLAIR",))
        for name, min_peak, mask in (("peak", 0.8, expected), ("none", 0.2, None)):
            job = make_job(tmp_path / name, predictor_of(plan, image, levels), threshold=0.2, min_peak=min_peak)
            assert job.wanted.peaks == (name == "peak")
            assert run_job(job, cases) == 0
            written = np.asarray(nib.load(job.output / "masks" / "one.nii.gz").dataobj)
            if mask is None:  # a peak up to the threshold removes nothing
                assert np.array_equal(written > 0, image > nothing)
            else:
                assert np.array_equal(written, mask)

    @pytest.mark.parametrize(
        "affine",
        [
            np.eye(4),
            np.array([[0.0, 0, -1, 9], [1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]]),
            oblique(12, (1.0, 1.0, 1.0), (5.0, -3.0, 2.0)),
            np.diag([1.0, 1.0, 2.5, 1.0]),
        ],
        ids=["straight", "permuted", "turned", "resampled"],
    )
    def test_slab_by_slab_is_as_the_whole(self, affine: np.ndarray) -> None:
        rng = np.random.default_rng(3)
        plan = make_test_plan(patch_size=(6, 8, 8), label_values={"lesion": 1, "core": 2})

        def network(windows: np.ndarray) -> np.ndarray:
            return np.concatenate([windows - 1, -windows - 1.5], axis=-1)

        predictor = Predictor([make_member(plan, network)])
        scan = make_scan(rng.random((19, 30, 17), np.float32) + 1, affine)
        found = predictor.predict_prepared(
            predictor.prepare(scan), threshold=0.3, keep_probabilities=True, min_peak=0.45
        )
        assert found.probabilities is not None
        assert found.peaks is not None
        assert found.peaks.flags.f_contiguous
        assert found.peaks.itemsize == 1
        assert np.array_equal(found.peaks, peak_voxels(found.probabilities, min_peak=0.45))
        remove_doubtful(found.mask, plan, min_lesion_mm3=0.0, voxel_mm3=1.0, peaks=found.peaks)
        whole = to_mask(found.probabilities, plan, threshold=0.3, min_lesion_mm3=0.0, voxel_mm3=1.0, min_peak=0.45)
        assert np.array_equal(found.mask, whole)
        without = to_mask(found.probabilities, plan, threshold=0.3, min_lesion_mm3=0.0, voxel_mm3=1.0)
        assert 0 < np.count_nonzero(whole) < np.count_nonzero(without)

    @pytest.mark.parametrize("min_peak", [0.0, 0.3, 0.5])
    def test_up_to_the_threshold_nothing_more_is_held(self, min_peak: float) -> None:
        predictor = threshold_predictor()
        prepared = predictor.prepare(make_scan(np.ones((9, 9, 9), np.float32), np.eye(4)))
        found = predictor.predict_prepared(prepared, threshold=0.5, keep_probabilities=False, min_peak=min_peak)
        assert found.peaks is None

    def test_a_peak_is_reached_from_below_in_float32(self) -> None:
        probabilities = np.float32([0.7, 0.69999, 0.70001]).reshape(3, 1, 1, 1)
        assert peak_voxels(probabilities, min_peak=0.7).ravel().tolist() == [True, False, True]


class TestWords:
    def test_in_the_table_of_both_points(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_scan(tmp_path, "a", np.eye(4), (9, 11, 16))
        job = make_job(tmp_path / "out", labels=tmp_path / "labels", min_peak=0.9)
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 0
        assert "│ 0.5, peak 0.9, from 0 mm3 (used) │" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("language", "words"), [("en", "in lesions that reach 0.85"), ("zh", "病灶最高概率不低于 0.85")]
    )
    def test_in_the_reports_tile(self, language: str, words: str) -> None:
        labels = page_labels(language)
        summary = make_report(["a"], side=24, lesions=2).summary

        def details(**more: float) -> tuple[str, ...]:
            point = {"threshold": 0.1, "min_lesion_mm3": 6.0, **more}
            tiles = headline(summary | {"operating_point": point}, [], labels).tiles
            return next(tile.details for tile in tiles if tile.name == labels["operating_point"])

        assert details(min_peak=0.85) == (words, *details())
        assert details(min_peak=0.0) == details() == (labels["min_volume"].format(volume="6"),)


class TestRecords:
    def test_a_record_of_before_is_read(self, tmp_path: Path) -> None:
        write_scan(tmp_path, "a", np.eye(4), (9, 11, 16))
        job = make_job(tmp_path / "out", labels=tmp_path / "labels")
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 0
        path = record_path(job.output, "a")

        def tables(record: Record | None) -> list[Any]:
            assert record is not None
            sweep = record.results[0].sweep
            assert sweep is not None
            assert sweep.min_peaks == (0.0,)
            return [sweep.tp.tolist(), sweep.fp.tolist(), sweep.small_tp.tolist()]

        new = tables(read_record(job.output, "a"))
        values = json.loads(path.read_text())
        del values["results"][0]["sweep"]["min_peaks"]
        for name in ("tp", "fp", "small_tp"):
            values["results"][0]["sweep"][name] = [
                [cell[0] for cell in line] for line in values["results"][0]["sweep"][name]
            ]
        path.write_text(json.dumps(values))
        assert tables(read_record(job.output, "a")) == new
