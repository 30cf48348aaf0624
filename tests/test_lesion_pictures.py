"""`lesion_pictures.py`: which lesions it draws, and that the picture is whole; `lesion_load.py`: what it paints."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from builders import write_nifti

from segment.errors import InputError

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from benchmarks import lesion_load, lesion_pictures  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def test_found_missed_and_false_positives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = np.random.default_rng(0).normal(100, 10, (50, 52, 48)).astype(np.float32)
    label, mask = np.zeros(scan.shape, np.uint8), np.zeros(scan.shape, np.uint8)
    label[5:7, 5:7, 5:7] = mask[5:7, 5:7, 5:7] = 1  # 8 mm3, found
    label[20:23, 20:23, 20:23] = 1  # 27 mm3, missed
    label[30:36, 30:36, 30:36] = mask[30:36, 30:36, 30:36] = 1  # 216 mm3, not small
    mask[40, 10, 10] = mask[10, 40, 10] = 1  # two false positives
    for name, values in (("scan", scan), ("label", label), ("mask", mask)):
        write_nifti(tmp_path / f"{name}.nii.gz", values, np.diag([-1.0, 1, 1, 1]))
    arguments = [word for name in ("scan", "label", "mask") for word in (f"--{name}", str(tmp_path / f"{name}.nii.gz"))]
    assert lesion_pictures.main([*arguments, "--count", "1", "--output", str(tmp_path / "out.svg")]) == 0
    assert "1 found, at most 50 mm³, 1 missed, at most 50 mm³, 2 false positives" in capsys.readouterr().out
    root = ElementTree.parse(tmp_path / "out.svg").getroot()
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts == [
        "found, at most 50 mm³ (1 of 1)", "8 mm³", "missed, at most 50 mm³ (1 of 1)", "27 mm³",
        "false positives (1 of 2)", "1 mm³",
    ]  # fmt: skip
    close_ups = list(root.findall(f"{SVG}svg"))
    assert [len(list(view.iter(f"{SVG}path"))) for view in close_ups] == [2, 1, 1]  # outlines of label and prediction
    assert all(view.find(f"{SVG}image") is not None for view in close_ups)


def test_no_pictures_is_no_number_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--count: expected 1 or more"):
        lesion_pictures.main([*(f"--{name}=x" for name in ("scan", "label", "mask", "output")), "--count", "0"])


def test_evenly_by_size() -> None:
    rows = [{"volume_mm3": float(number)} for number in range(10)]
    assert [row["volume_mm3"] for row in lesion_pictures.evenly(rows, 4)] == [0, 3, 6, 9]
    assert lesion_pictures.evenly(rows[:2], 4) == rows[:2]
    assert [row["volume_mm3"] for row in lesion_pictures.evenly(rows, 1)] == [0]


class TestLesionLoad:
    def test_large_lesions_become_normal_tissue_and_small_ones_stay(self) -> None:
        rng = np.random.default_rng(1)
        image = rng.normal((100, 50), 2, (30, 30, 30, 2)).astype(np.float32)
        image[:2] = 0
        label = np.zeros(image.shape[:3], bool)
        label[10:17, 10:17, 10:17] = label[24:26, 24, 24] = True  # 343 and 2 mm3
        image[label] += 60
        painted, where = lesion_load.paint_over(image, label, voxel_mm3=1.0)
        assert where[8:19, 8:19, 8:19].all()
        assert where.sum() == 11**3
        np.testing.assert_array_equal(painted[~where], image[~where])
        # Tissue between the 65th and the 90th percentile of N(50, 2) has the mean 51.6.
        assert painted[where].mean(axis=0) == pytest.approx([100, 51.6], abs=0.5)
        assert painted[where].std(axis=0).max() < 4
        unchanged, nowhere = lesion_load.paint_over(image, label, voxel_mm3=0.5)
        assert not nowhere.any()
        assert unchanged is image

    def test_what_touches_nothing_known_is_strange(self) -> None:
        found, known = np.zeros((2, 20, 20, 20), bool)
        known[2:5, 2:5, 2:5] = True
        found[4:8, 4, 4] = found[12, 12, 12] = found[15:17, 3, 3] = True
        assert lesion_load.strange(found, known) == 2
