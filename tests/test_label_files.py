"""Where expert masks are found: a folder of them, or the labels of a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf  # noqa: F401  (before the first test, as conftest asks)
from builders import tiny_dataset

from segment.config_data import BidsConfig
from segment.data.label_files import find_labels
from segment.errors import InputError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_has_both_endings_and_tells_the_nearest_name(tmp_path: Path) -> None:
    touch(tmp_path, "ms1.nii.gz", "ms2.nii", "notes.txt")
    labels = find_labels(tmp_path)
    assert [labels.of(name).name for name in ("ms1", "ms2")] == ["ms1.nii.gz", "ms2.nii"]
    with pytest.raises(InputError, match=r"case ms10: expected its label in .*, found none; did you mean 'ms1'"):
        labels.of("ms10")


def test_a_dataset_gives_the_labels_that_are_there(tmp_path: Path) -> None:
    root = tiny_dataset(tmp_path / "data", cases=3)
    (root / "labelsTr" / "case1.nii.gz").unlink()
    labels = find_labels(root)
    assert sorted(labels.files) == ["case0", "case2"]
    assert labels.of("case2") == root / "labelsTr" / "case2.nii.gz"
    touch(root, "labelsTs/new.nii.gz")
    assert find_labels(root).of("new") == root / "labelsTs" / "new.nii.gz"


def test_masks_count_more_than_a_table_beside_them(tmp_path: Path) -> None:
    """nnU-Net writes dataset.json beside its predictions."""
    touch(tmp_path, "a.nii.gz", "dataset.json")
    assert list(find_labels(tmp_path).files) == ["a"]


def test_a_manifest_gives_its_label_column(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "masks/first.nii.gz")
    (tmp_path / "cases.csv").write_text("case,FLAIR,label\na,a.nii.gz,masks/first.nii.gz\n")
    assert find_labels(tmp_path / "cases.csv").of("a") == tmp_path / "masks" / "first.nii.gz"


def test_bids_gives_the_masks_of_its_filter(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_FLAIR.nii.gz")
    for name in ("experts", "students"):
        touch(tmp_path, f"derivatives/masks/sub-1/anat/sub-1_desc-{name}_mask.nii.gz")
    bids = BidsConfig.model_validate({"label": {"desc": "experts", "suffix": "mask"}})
    assert find_labels(tmp_path, bids=bids).of("sub-1").name == "sub-1_desc-experts_mask.nii.gz"


@pytest.mark.parametrize(("name", "message"), [("gone", "found nothing"), ("one.nii.gz", "found another file")])
def test_what_is_neither_is_refused(tmp_path: Path, name: str, message: str) -> None:
    touch(tmp_path, "one.nii.gz")
    with pytest.raises(InputError, match=message):
        find_labels(tmp_path / name)
