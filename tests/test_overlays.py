"""Slices with outlines drawn in, and the pictures of a run folder."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from nibabel import affines
from scipy import ndimage

from segment.data.scan import Grid
from segment.evaluation.overlays import (
    LABEL_RGB,
    PREDICTION_RGB,
    find_slices,
    overlay_png,
    overlay_rgb,
    slice_path,
)
from segment.evaluation.pictures import CasePictures


def case(*, affine: np.ndarray | None = None, shape: tuple[int, int, int] = (12, 10, 6)) -> CasePictures:
    """A label of 4 x 3 voxels in slice 2 with a hole of one, and a prediction beside it."""
    image = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    label, prediction = np.zeros((2, *shape), np.uint8)
    middle = min(2, shape[2] - 1)
    label[1:5, 1:5, middle] = 1
    prediction[7:10, 6:9, middle] = 2
    return CasePictures(image, label, prediction, Grid(shape, np.eye(4) if affine is None else affine))


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere((picture == colour).all(axis=2))


class TestOverlay:
    def test_radiological_and_outlined(self) -> None:
        picture = overlay_rgb(case(), pixels=1)
        assert picture.shape == (10, 12, 3)
        label = np.zeros((10, 12), bool)
        # x 1 to 4 lies at the picture's right (the patient's left is there), y 1 to 4 at its bottom.
        label[5:9, 7:11] = True
        border = label & ~ndimage.binary_erosion(label)
        assert coloured(picture, LABEL_RGB).tolist() == np.argwhere(border).tolist()
        dashes = coloured(picture, PREDICTION_RGB)
        assert 0 < len(dashes) < 8
        assert set(dashes[:, 0]) <= {1, 2, 3}
        assert set(dashes[:, 1]) <= {2, 3, 4}

    def test_the_file_may_lie_any_way(self) -> None:
        straight = case()
        order, flips = (2, 0, 1), (0, 2)
        turned = [
            np.flip(np.transpose(array, order), flips)
            for array in (straight.image, straight.label, straight.prediction)
        ]
        affine = np.eye(4)[:, [*order, 3]]
        for axis in flips:
            flip = np.eye(4)
            flip[axis, axis], flip[axis, 3] = -1, turned[0].shape[axis] - 1
            affine = affine @ flip
        again = CasePictures(*turned, Grid(turned[0].shape, affine))
        assert (overlay_rgb(again, pixels=50) == overlay_rgb(straight, pixels=50)).all()

    def test_distances_are_true(self) -> None:
        picture = overlay_rgb(case(affine=affines.from_matvec(np.diag([1.0, 3.0, 1.0]))), pixels=60)
        assert picture.shape == (60, 24, 3)

    def test_the_slice_depends_on_the_label_alone(self) -> None:
        made = case()
        other = np.zeros_like(made.prediction)
        other[:, :, 5] = 1
        moved = CasePictures(made.image, made.label, other, made.grid)
        assert len(coloured(overlay_rgb(moved, pixels=1), LABEL_RGB)) == 12

    def test_the_empty_border_is_cut_off(self) -> None:
        made = case(shape=(40, 30, 6))
        image = np.zeros_like(made.image)
        image[:10, :10] = made.image[:10, :10]
        # Four voxels of margin are kept.
        assert overlay_rgb(CasePictures(image, made.label, made.prediction, made.grid), pixels=1).shape == (14, 14, 3)

    def test_without_any_label_the_middle(self) -> None:
        made = case()
        empty = np.zeros_like(made.label)
        picture = overlay_rgb(CasePictures(made.image, empty, empty, made.grid), pixels=1)
        assert len(coloured(picture, LABEL_RGB)) == len(coloured(picture, PREDICTION_RGB)) == 0

    def test_a_2d_image_shows_its_own_plane(self) -> None:
        flat = case(shape=(12, 10, 1))
        turned = [np.transpose(array, (0, 2, 1)) for array in (flat.image, flat.label, flat.prediction)]
        upright = CasePictures(*turned, Grid((12, 1, 10), np.eye(4)))
        assert overlay_rgb(upright, pixels=1).shape == (10, 12, 3)

    def test_a_png_of_the_same_pixels_and_bytes(self) -> None:
        data = overlay_png(case(), pixels=24)
        assert data == overlay_png(case(), pixels=24)
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        columns, rows, depth, kind = struct.unpack(">IIBB", data[16:26])
        assert (columns, rows, depth, kind) == (24, 20, 8, 2)
        start = data.index(b"IDAT") + 4
        length = struct.unpack(">I", data[start - 8 : start - 4])[0]
        lines = np.frombuffer(zlib.decompress(data[start : start + length]), np.uint8).reshape(20, 1 + 24 * 3)
        assert (lines[:, 1:].reshape(20, 24, 3) == overlay_rgb(case(), pixels=24)).all()


class TestRunFolder:
    def test_names_come_back(self, tmp_path: Path) -> None:
        for step, case_id in ((200, "b_1"), (1000, "a"), (30, "a")):
            path = slice_path(tmp_path, step, case_id)
            path.parent.mkdir(exist_ok=True)
            path.touch()
        (tmp_path / "slices" / "other.png").touch()
        assert [(name, list(steps)) for name, steps in find_slices(tmp_path).items()] == [
            ("a", [30, 1000]),
            ("b_1", [200]),
        ]
        assert slice_path(tmp_path, 30, "a").name == "step_0000030_a.png"

    def test_none(self, tmp_path: Path) -> None:
        assert find_slices(tmp_path) == {}
