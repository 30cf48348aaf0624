"""Folders of masks with several classes or with probabilities."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import SHAPE, write_nifti
from folder_helpers import mask, run, summary, three_cases

from segment.errors import InputError
from segment.evaluation.class_values import parse_classes


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return three_cases(tmp_path)


class TestProbabilities:
    def test_scores_and_froc(self, folders: Path) -> None:
        for name in "abc":
            label = np.asarray(nib.load(folders / "labels" / f"{name}.nii.gz").dataobj)
            write_nifti(folders / "probabilities" / f"{name}.nii.gz", 0.3 * label.astype(np.float32))
        assert run(folders, probabilities=folders / "probabilities") == 0
        points = {point["threshold"]: point for point in summary(folders)["froc"]["points"]}
        assert (points[0.3]["recall"], points[0.3]["fp"], points[0.35]["recall"]) == (1.0, 0, 0.0)
        text = (folders / "out" / "lesions.csv").read_text().splitlines()
        column = text[0].split(",").index("score_max")
        assert {line.split(",")[column] for line in text[1:] if ",gt," in line} == {"0.3"}

    def test_a_prediction_scored_as_empty_finds_nothing_at_any_threshold(self, folders: Path) -> None:
        for name in "ac":
            label = np.asarray(nib.load(folders / "labels" / f"{name}.nii.gz").dataobj)
            write_nifti(folders / "probabilities" / f"{name}.nii.gz", 0.3 * label.astype(np.float32))
        (folders / "predictions" / "b.nii.gz").unlink()
        assert run(folders, probabilities=folders / "probabilities", missing="empty") == 0
        froc = summary(folders)["froc"]
        assert (froc["n_lesions"], froc["n_scans"], froc["points"][-1]["tp"]) == (3, 3, 2)

    @pytest.mark.parametrize("by", ["dataset.json", "--classes"])
    def test_channels_are_in_the_order_of_the_values(self, tmp_path: Path, by: str) -> None:
        """As they are written, whatever the order of the names."""
        label = mask((0, 0, 0)) + mask((5, 4, 3), value=2)
        for folder in ("labels", "predictions"):
            write_nifti(tmp_path / folder / "a.nii.gz", label)
        maps = np.stack([0.9 * (label == 1), 0.6 * (label == 2)], axis=-1)
        write_nifti(tmp_path / "probabilities" / "a.nii.gz", maps.astype(np.float32))
        classes = parse_classes(["edge=2", "core=1"]) if by == "--classes" else None
        if classes is None:
            table = {"labels": {"background": 0, "edge": 2, "core": 1}}
            (tmp_path / "labels" / "dataset.json").write_text(json.dumps(table))
        assert run(tmp_path, probabilities=tmp_path / "probabilities", classes=classes) == 0
        with (tmp_path / "out" / "lesions.csv").open(newline="") as handle:
            scores = {row["class"]: row["score_max"] for row in csv.DictReader(handle) if row["side"] == "gt"}
        assert scores == {"core": "0.9", "edge": "0.6"}

    def test_one_without(self, folders: Path) -> None:
        write_nifti(folders / "probabilities" / "a.nii.gz", np.zeros(SHAPE, np.float32))
        with pytest.raises(InputError, match="case b: expected its probabilities in"):
            run(folders, probabilities=folders / "probabilities")

    def test_channels_and_classes_must_agree(self, folders: Path) -> None:
        for name in "abc":
            write_nifti(folders / "probabilities" / f"{name}.nii.gz", np.zeros((*SHAPE, 2), np.float32))
        with pytest.raises(InputError, match=r"expected the probabilities of 1 class\(es\), found 2 channel\(s\)"):
            run(folders, probabilities=folders / "probabilities")


class TestClasses:
    @pytest.fixture
    def two(self, tmp_path: Path) -> Path:
        both = mask((0, 0, 0)) + mask((5, 4, 3), value=2)
        for folder in ("labels", "predictions"):
            write_nifti(tmp_path / folder / "a.nii.gz", both)
        write_nifti(tmp_path / "labels" / "b.nii.gz", both)
        write_nifti(tmp_path / "predictions" / "b.nii.gz", mask((5, 4, 3), value=1))
        return tmp_path

    def test_given(self, two: Path) -> None:
        assert run(two, classes=parse_classes(["core=1", "edge=2"])) == 0
        by_class = summary(two)["by_class"]
        assert by_class["core"]["micro"]["iou10"]["fp"] == 1
        assert by_class["edge"]["micro"]["iou10"]["recall"] == 0.5
        assert (two / "out" / "lesion_maps" / "a_1.nii.gz").exists()

    def test_a_region_is_a_union(self, two: Path) -> None:
        assert run(two, classes=parse_classes(["whole=1+2"])) == 0
        micro = summary(two)["micro"]
        assert (micro["iou10"]["tp"], micro["iou10"]["fn"], micro["iou10"]["fp"]) == (3, 1, 0)

    def test_a_value_that_no_mask_holds(self, two: Path) -> None:
        with pytest.raises(
            InputError, match=r"--classes lesion=7: expected these values in the masks, found only 1, 2 in all of them"
        ):
            run(two, classes=parse_classes(["lesion=7"]))

    def test_one_class_that_no_mask_holds_is_a_note(self, two: Path) -> None:
        assert run(two, classes=parse_classes(["core=1", "other=7+8"])) == 0
        (note,) = summary(two)["notes"]
        assert note.startswith("class other (value 7+8) is in no mask")
        assert note.endswith("values that belong to no class: 2")

    def test_empty_masks_alone_are_no_error(self, tmp_path: Path) -> None:
        for folder in ("labels", "predictions"):
            write_nifti(tmp_path / folder / "a.nii.gz", mask())
        assert run(tmp_path, classes=parse_classes(["lesion=1"])) == 0
        assert summary(tmp_path)["notes"] == ["class lesion (value 1) is in no mask, neither a label nor a prediction"]

    def test_several_values_without_classes(self, two: Path) -> None:
        with pytest.raises(
            InputError, match=r"labels/a\.nii\.gz and .*expected one value above 0, found 1, 2; pass --classes"
        ):
            run(two)

    def test_each_case_with_another_only_value(self, tmp_path: Path) -> None:
        for name, value in (("a", 1), ("b", 2), ("c", 1)):
            for folder in ("labels", "predictions"):
                write_nifti(tmp_path / folder / f"{name}.nii.gz", mask((0, 0, 0), value=value))
        with pytest.raises(InputError, match="found 1 in case a and 2 in case b; pass --classes"):
            run(tmp_path)

    def test_from_the_dataset_json_of_msd(self, two: Path) -> None:
        labels = {"0": "background", "2": "edge", "1": "core"}
        (two / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR"}, "labels": labels}))
        assert run(two) == 0
        assert list(summary(two)["by_class"]) == ["core", "edge"]

    def test_from_dataset_json(self, two: Path) -> None:
        labels = {"background": 0, "core": 1, "whole": [1, 2], "ignore": 3}
        (two / "predictions" / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert run(two) == 0
        assert summary(two)["classes"] == ["core", "whole"]

    def test_values_that_dataset_json_does_not_name(self, two: Path) -> None:
        (two / "predictions" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "core": 1}}))
        with pytest.raises(InputError, match=r"labels/a\.nii\.gz holds the value 2, no class of .*dataset\.json"):
            run(two)

    @pytest.mark.parametrize("text", ["lesion", "=1", "lesion=", "lesion=0", "lesion=256", "lesion=1+", "lesion=x"])
    def test_classes_that_cannot_be_read(self, text: str) -> None:
        with pytest.raises(InputError, match=r"expected NAME=VALUE or NAME=VALUE\+VALUE"):
            parse_classes([text])

    def test_a_class_twice(self) -> None:
        with pytest.raises(InputError, match="class 'a' stands twice"):
            parse_classes(["a=1", "a=2"])
