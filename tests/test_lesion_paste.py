"""Copy-paste: lesions go where they may, look as they did, and are labelled as they lie."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from augmentation_helpers import plan_of, stored
from builders import write_nifti
from data_helpers import make_test_plan

from segment.data.components import label_components
from segment.data.lesion_paste import LesionPaster
from segment.data.lesion_shapes import LesionShape, read_shapes
from segment.data.preprocessing import PreparedCase
from segment.errors import InputError

EDGES = (10.0, 50.0, 200.0)
SIZE = (24, 24, 24)


def donor(folder: Path, *, contrast: float = 3.0, value: int = 2) -> PreparedCase:
    """Tissue of -0.5 and 0.8 with lesions of 1, 27 and 1000 voxels, `contrast` and -1 away from it; half is empty."""
    image = np.zeros((40, 40, 40, 2), np.float32)
    image[:30] = (-0.5, 0.8)
    label = np.zeros((40, 40, 40), np.uint8)
    for box in (np.s_[5:6, 5:6, 5:6], np.s_[5:8, 20:23, 20:23], np.s_[15:25, 28:38, 28:38]):
        image[box] += np.array((contrast, -1), np.float32)
        label[box] = value
    return stored(folder, image, label)


def paster(prepared: list[PreparedCase], plan: object = None, shapes: list[LesionShape] | None = None) -> LesionPaster:
    plan = plan or plan_of(SIZE, channels=2)
    return LesionPaster(prepared, plan, bin_edges_mm3=EDGES, shapes=shapes or [])  # type: ignore[arg-type]


def field() -> tuple[np.ndarray, np.ndarray]:
    """A patch of the donor's tissue with one lesion in it and an empty quarter."""
    channels = np.zeros((2, *SIZE), np.float32)
    channels[0, 6:], channels[1, 6:] = -0.5, 0.8
    label = np.zeros(SIZE, np.uint8)
    label[14:18, 10:14, 10:14] = 1
    channels[:, label > 0] = 5
    return channels, label


class TestPasting:
    def test_places_contrast_and_labels(self, tmp_path: Path) -> None:
        """Pasted voxels lie in the subject, two voxels from other lesions, and 0.7 to 1.2 contrasts from the tissue."""
        tool = paster([donor(tmp_path / "a")])
        sizes = []
        for index in range(60):
            channels, label = field()
            before, kept = channels.copy(), label.copy()
            count = tool.paste(channels, label, np.random.default_rng(index))
            new = (label == 2) & (kept == 0)
            assert (label[kept > 0] == kept[kept > 0]).all()
            assert not new[:6].any()
            assert (channels[:, :6] == 0).all()
            numbers, found = label_components(label > 0, connectivity=26)
            assert found == 1 + count
            for number in np.unique(numbers[new]):
                voxels = numbers == number
                sizes.append(int(voxels.sum()))
                strength = (channels[0][voxels] + 0.5) / 3
                assert np.ptp(strength) < 1e-5
                assert 0.7 <= strength.mean() <= 1.2
                np.testing.assert_allclose(channels[1][voxels], 0.8 - strength, atol=1e-5)
                grown = np.argwhere(voxels)
                assert np.abs(grown[:, None] - np.argwhere(kept)[None]).max(axis=2).min() > 2
            changed = (channels != before).any(axis=0)
            assert changed[new].all()
            # The edge fades within two voxels: nothing beyond changes.
            near = np.array([np.abs(np.argwhere(new) - place).max(axis=1).min() for place in np.argwhere(changed)])
            assert near.size == 0 or near.max() <= 2
        assert set(sizes) == {1, 27}  # the one of 10 x 10 x 10 has no room beside the lesion in the middle

    def test_small_ones_come_more_often(self, tmp_path: Path) -> None:
        tool = paster([donor(tmp_path / "a")], plan_of((32, 32, 32), channels=2))
        rng = np.random.default_rng(0)
        sizes = [int(lesion.mask.sum()) for lesion in (tool._draw(rng) for _ in range(700)) if lesion is not None]
        counts = [sizes.count(size) for size in (1, 27, 1000)]
        # Bins 0, 1 and 3 with weights 1, 1/2 and 1/8.
        np.testing.assert_allclose(np.array(counts) / 700, np.array([8, 4, 1]) / 13, atol=0.06)

    def test_none_where_the_tissue_differs_or_no_lesion_is_known(self, tmp_path: Path) -> None:
        channels, label = field()
        channels[0, 6:] = 4.0
        tool = paster([donor(tmp_path / "a")])
        assert sum(tool.paste(channels, label, np.random.default_rng(index)) for index in range(10)) == 0
        empty = stored(tmp_path / "b", np.ones((10, 10, 10, 2)), np.zeros((10, 10, 10)))
        assert paster([empty]).paste(*field(), np.random.default_rng(0)) == 0

    def test_lesions_that_cannot_be_seen_are_not_pasted(self, tmp_path: Path) -> None:
        channels, label = field()
        image = np.zeros((30, 30, 30, 2), np.float32) + 0.5
        mask = np.zeros((30, 30, 30), np.uint8)
        mask[10:12, 10:12, 10:12] = 1
        image[mask > 0] += 0.3
        tool = paster([stored(tmp_path / "a", image, mask)])
        assert sum(tool.paste(channels, label, np.random.default_rng(index)) for index in range(5)) == 0

    def test_pure_function_of_the_generator(self, tmp_path: Path) -> None:
        tool = paster([donor(tmp_path / "a")])
        results = []
        for _ in range(2):
            channels, label = field()
            tool.paste(channels, label, np.random.default_rng(9))
            results.append((channels.tobytes(), label.tobytes()))
        assert results[0] == results[1]

    @pytest.mark.parametrize("slices", [1, 3])
    def test_slices_of_a_2d_model_show_a_part_of_the_lesion(self, tmp_path: Path, slices: int) -> None:
        tool = paster([donor(tmp_path / "a")], plan_of((24, 24, 1), channels=2, slices=slices))
        channels, label = (array[..., :slices] for array in field())
        label = np.zeros_like(label)
        sizes = []
        for index in range(30):
            image, mask = channels.copy(), label.copy()
            tool.paste(image, mask, np.random.default_rng(index))
            parts, count = label_components(mask[..., slices // 2] > 0, connectivity=8)
            sizes += np.bincount(parts.ravel())[1:].tolist() if count else []
        assert set(sizes) == {1, 9, 100}


class TestShapes:
    def test_a_shape_without_a_scan_takes_an_own_lesions_contrast(self, tmp_path: Path) -> None:
        bar = LesionShape(np.array([[0, 0, step] for step in range(5)], np.int16), 3, 5.0)
        tool = paster([donor(tmp_path / "a")], shapes=[bar])
        found = []
        for index in range(40):
            channels, label = field()
            tool.paste(channels, label, np.random.default_rng(index))
            if (label == 3).any():
                numbers, count = label_components(label == 3, connectivity=26)
                assert (np.bincount(numbers.ravel())[1:] == 5).all()
                # Voxels at an edge on all sides show three quarters of the contrast.
                strength = (channels[0][label == 3] + 0.5) / 3
                assert (strength > 0.74 * 0.7).all()
                assert (strength < 0.76 * 1.2).all()
                found.append(count)
        assert 15 < len(found) < 40  # half of 1 to 3 lesions each

    def test_masks_of_any_grid_come_on_the_networks_spacing(self, tmp_path: Path) -> None:
        mask = np.zeros((10, 12, 8), np.uint8)
        mask[2:4, 3:5, 1:2] = 2  # 2 x 2 x 1 voxels of 1 x 1 x 2 mm
        mask[7, 9, 6] = 5
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        write_nifti(tmp_path / "one.nii.gz", mask, affine)
        write_nifti(tmp_path / "two.nii", np.zeros((4, 4, 4), np.uint8))
        plan = make_test_plan(label_values={"lesion": 2, "edema": 5})
        shapes = read_shapes(tmp_path, plan, workers=2)
        assert sorted((shape.value, len(shape.voxels), shape.volume_mm3) for shape in shapes) == [
            (2, 8, 8.0),
            (5, 2, 2.0),
        ]
        assert (shapes[0].voxels.max(axis=0) == [1, 1, 1]).all()

    def test_bad_folders_are_named(self, tmp_path: Path) -> None:
        plan = make_test_plan()
        with pytest.raises(InputError, match=r"copy_paste_shapes: expected a folder .* found .*none"):
            read_shapes(tmp_path / "none", plan, workers=1)
        write_nifti(tmp_path / "empty.nii.gz", np.zeros((4, 4, 4), np.uint8))
        with pytest.raises(InputError, match="found empty masks only"):
            read_shapes(tmp_path, plan, workers=1)
        write_nifti(tmp_path / "other.nii.gz", np.full((4, 4, 4), 7, np.uint8))
        with pytest.raises(InputError, match=r"other.nii.gz: expected 0 and the label values \[1\] .* found 7"):
            read_shapes(tmp_path, plan, workers=1)

    SHAPES = Path(os.environ.get("SEGMENT_SHARED", "")) / "data" / "ms_lesion_shapes"

    @pytest.mark.skipif(
        not os.environ.get("SEGMENT_SHARED") or not SHAPES.is_dir(),
        reason="set SEGMENT_SHARED to the folder with data/",
    )
    def test_real_masks(self, tmp_path: Path) -> None:
        """Two of the 27 masks, which hold 2,961 lesions in all."""
        for name in ("shape01.nii.gz", "shape02.nii.gz"):
            (tmp_path / name).symlink_to(self.SHAPES / name)
        shapes = read_shapes(tmp_path, make_test_plan(), workers=2)
        assert len(shapes) > 20
        assert all(shape.volume_mm3 == len(shape.voxels) for shape in shapes)
