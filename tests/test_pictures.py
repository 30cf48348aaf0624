"""Views, outlines and PNG bytes: the same picture for every orientation of a file, true in millimetres."""

from __future__ import annotations

import itertools
import re

import cv2
import numpy as np
import pytest

from segment.data.scan import Grid
from segment.evaluation.drawing import encode_png, outline
from segment.evaluation.pictures import CasePictures, CaseViewer, Spot, direction_letters, grey_window


def decode(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def corners(path: str) -> list[np.ndarray]:
    """The corner points of each closed subpath, read from the SVG path by a parser of its own."""
    shapes = []
    for subpath in path.split("z")[:-1]:
        points = []
        for command, first, second in re.findall(r"([Mhv])(-?\d+)(?: (-?\d+))?", subpath):
            x, y = points[-1] if points else (0, 0)
            places = {"M": (int(first), int(second or 0)), "h": (x + int(first), y), "v": (x, y + int(first))}
            points.append(places[command])
        shapes.append(np.array(points))
    return shapes


def signed_area(points: np.ndarray) -> float:
    """Shoelace formula; y points down, so clockwise outlines are positive and holes negative."""
    x, y = points.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


class TestOutline:
    def test_single_voxel(self):
        mask = np.zeros((3, 4), bool)
        mask[1, 2] = True
        assert outline(mask) == "M2 1h1v1h-1z"

    def test_runs_are_merged(self):
        mask = np.zeros((3, 5), bool)
        mask[1, 1:4] = True
        assert outline(mask) == "M1 1h3v1h-3z"

    def test_nothing_labelled_is_no_path(self):
        assert outline(np.zeros((3, 3), np.uint8)) == ""

    def test_voxels_that_touch_at_a_corner_keep_an_outline_each(self):
        assert len(corners(outline(np.eye(2, dtype=bool)))) == 2

    def test_values_that_touch_are_outlined_each(self):
        # 1x1 beside 1x1 of another value: two squares and no common outline around both.
        assert [signed_area(shape) for shape in corners(outline(np.array([[1, 2]], np.uint8)))] == [1, 1]

    def test_a_hole_has_its_own_outline(self):
        mask = np.ones((3, 3), bool)
        mask[1, 1] = False
        assert sorted(signed_area(shape) for shape in corners(outline(mask))) == [-1, 9]

    @pytest.mark.parametrize("seed", range(5))
    def test_enclosed_area_is_the_number_of_voxels(self, seed):
        mask = np.random.default_rng(seed).random((17, 23)) < 0.5
        assert sum(signed_area(shape) for shape in corners(outline(mask))) == mask.sum()


class TestPng:
    @pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 65)])
    def test_read_back_by_another_reader(self, shape):
        grey = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        assert np.array_equal(decode(encode_png(grey)), grey)


class TestDirectionLetters:
    @pytest.mark.parametrize(
        ("direction", "letters"),
        [
            ((1, 0, 0), "R"),
            ((-3, 0, 0), "L"),
            ((0, 0.5, 0), "A"),
            ((0, -1, 0.1), "P"),
            ((0, 0, 1), "S"),
            ((0, 0, -1), "I"),
            ((0.9, 0.436, 0), "RA"),  # 26 degrees off: sin is 0.44, above 0.35
            ((0.985, 0.174, 0), "R"),  # 10 degrees off: sin is 0.17
            ((-0.5, 0, -0.866), "IL"),
        ],
    )
    def test_main_side_first(self, direction, letters):
        assert direction_letters(np.array(direction)) == letters


def phantom() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Canonical [x, y, z] arrays of 6 x 8 x 4 that differ along every axis: image, label, prediction."""
    image = np.random.default_rng(1).random((6, 8, 4)).astype(np.float32)
    label, prediction = np.zeros((2, 6, 8, 4), np.uint8)
    label[4, 5:7, 1] = 1
    prediction[4, 5, 1:3] = 1
    return image, label, prediction


def viewer(order: tuple[int, int, int] = (0, 1, 2), flips: tuple[int, int, int] = (1, 1, 1)) -> CaseViewer:
    """The phantom stored with its axes permuted and flipped; 1 x 2 x 3 mm along x, y, z, corner at the origin."""
    arrays = phantom()
    spacing, size = np.array([1.0, 2.0, 3.0]), np.array(arrays[0].shape)
    affine = np.eye(4)
    affine[:3, :3] = 0
    stored = []
    for array in arrays:
        turned = np.transpose(array, order)
        stored.append(turned[tuple(slice(None, None, flip) for flip in flips)])
    for axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
        affine[source, axis] = flip * spacing[source]
        if flip < 0:
            affine[source, 3] += (size[source] - 1) * spacing[source]
    image, label, prediction = stored
    return CaseViewer(CasePictures(image, label, prediction, Grid(image.shape, affine)))


# Voxel (4, 5, 1) of the phantom in world mm: 4 * 1, 5 * 2, 1 * 3. No box: the point itself.
SPOT = Spot((4.0, 10.0, 3.0), "gt", None)
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


class TestViews:
    def test_planes_sizes_and_letters(self):
        axial, coronal, sagittal = viewer().views(SPOT, pixels=100)
        assert [view.plane for view in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
        assert (axial.width_mm, axial.height_mm) == (6 * 1, 8 * 2)
        assert (coronal.width_mm, coronal.height_mm) == (6 * 1, 4 * 3)
        assert (sagittal.width_mm, sagittal.height_mm) == (8 * 2, 4 * 3)
        assert (axial.left, axial.right, axial.top, axial.bottom) == ("R", "L", "A", "P")
        assert (coronal.left, coronal.right, coronal.top, coronal.bottom) == ("R", "L", "S", "I")
        assert (sagittal.left, sagittal.right, sagittal.top, sagittal.bottom) == ("A", "P", "S", "I")

    def test_the_patients_right_is_drawn_left(self):
        axial = viewer().views(SPOT, pixels=100)[0]
        # x = 4 of 0..5 stands 1 voxel from the left edge; y = 5..6 of 0..7 stand 1 voxel from the top.
        assert axial.label_path == "M1 1h1v2h-1z"
        # The middle of voxel (4, 5): 1.5 voxels of 1 mm from the left, 2.5 voxels of 2 mm from the top.
        assert axial.focus_mm == pytest.approx((1.5, 5.0))

    def test_pixels_follow_the_outline(self):
        image, _, _ = phantom()
        axial = viewer().views(SPOT, pixels=100)[0]
        grey = decode(axial.png)
        assert grey.shape == (8, 6)
        order = np.argsort(image[:, :, 1].T[::-1, ::-1], axis=None)
        assert (np.diff(grey.ravel()[order].astype(int)) >= 0).all()

    @pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
    def test_every_stored_orientation_gives_the_same_views(self, order, flips):
        assert viewer(order, flips).views(SPOT, pixels=100) == viewer().views(SPOT, pixels=100)

    def test_oblique_letters(self):
        image, label, prediction = phantom()
        angle = np.deg2rad(30)
        affine = np.eye(4)
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        axial = CaseViewer(CasePictures(image, label, prediction, Grid(image.shape, affine))).views(SPOT, pixels=100)[0]
        assert (axial.left, axial.right, axial.top, axial.bottom) == ("RA", "LP", "AL", "PR")

    def test_a_2d_image_has_one_plane(self):
        flat = np.zeros((5, 6, 1), np.float32)
        pictures = CasePictures(flat, flat.astype(np.uint8), flat.astype(np.uint8), Grid(flat.shape, np.eye(4)))
        assert [view.plane for view in CaseViewer(pictures).views(SPOT, pixels=100)] == ["axial"]

    def test_an_empty_border_is_cut_off_but_for_a_margin(self):
        image = np.full((40, 40, 3), -1000.0, np.float32)
        image[10:20, 12, 1] = 5.0
        label, prediction = np.zeros((2, *image.shape), np.uint8)
        label[10, 30, 1] = 1
        pictures = CasePictures(image, label, prediction, Grid(image.shape, np.eye(4)))
        axial = CaseViewer(pictures).views(Spot((10, 12, 1), "gt", None), pixels=100)[0]
        # x from 10 to 19, y from 12 to the label at 30, and 4 voxels on each side.
        assert (axial.columns, axial.rows) == (4 + 10 + 4, 4 + 19 + 4)

    def test_few_pixels_average_blocks_and_say_what_they_cover(self):
        axial = viewer().views(SPOT, pixels=3)[0]
        # 6 columns in blocks of 2 are 3; 8 rows in blocks of 3 are 3 that cover 9.
        assert decode(axial.png).shape == (3, 3)
        assert (axial.png_columns, axial.png_rows, axial.columns, axial.rows) == (6, 9, 6, 8)


class TestCloseUps:
    @staticmethod
    def _viewer(mask: np.ndarray) -> CaseViewer:
        affine = np.diag([1.0, 1.0, 5.0, 1.0])
        empty = np.zeros_like(mask)
        return CaseViewer(CasePictures(mask.astype(np.float32), mask, empty, Grid(mask.shape, affine)))

    def test_field_and_true_aspect(self):
        mask = np.zeros((60, 60, 12), np.uint8)
        mask[30, 30, 6] = 1
        axial, coronal, _ = self._viewer(mask).close_ups(Spot((30, 30, 30), "gt", None), field_mm=20)
        assert (axial.columns, axial.rows, axial.width_mm, axial.height_mm) == (20, 20, 20, 20)
        assert (coronal.columns, coronal.rows, coronal.width_mm, coronal.height_mm) == (20, 4, 20, 20)

    def test_moved_inward_at_the_border(self):
        mask = np.zeros((60, 60, 12), np.uint8)
        mask[59, 0, 0] = 1
        axial = self._viewer(mask).close_ups(Spot((59, 0, 0), "gt", None), field_mm=20)[0]
        assert (axial.columns, axial.rows) == (20, 20)
        assert axial.label_path == "M0 19h1v1h-1z"  # farthest right of the patient, farthest back

    def test_larger_than_the_scan_is_the_whole_scan(self):
        mask = np.zeros((8, 9, 3), np.uint8)
        axial = self._viewer(mask).close_ups(Spot((4, 4, 4), "gt", None), field_mm=50)[0]
        assert (axial.columns, axial.rows) == (8, 9)

    def test_a_bent_lesion_is_cut_where_it_is(self):
        # A ring whose centroid (10, 10) lies in its hole, and another lesion near that centroid outside the box given.
        mask = np.zeros((21, 21, 1), np.uint8)
        mask[5:16, 5:16] = 1
        mask[6:15, 6:15] = 0
        spot = Spot((10, 10, 0), "gt", (5, 5, 0, 16, 16, 1))
        axial = self._viewer(mask).views(spot, pixels=100)[0]
        # The view shows voxels 1 to 19 of each axis, the ring and a margin of 4, from the patient's right and front on.
        column, row = (int(place) for place in axial.focus_mm)
        assert (axial.columns, axial.rows) == (19, 19)
        assert mask[19 - column, 19 - row, 0] == 1

    def test_extent_is_the_longest_side_in_mm(self):
        flat = self._viewer(np.zeros((9, 9, 9), np.uint8))
        assert flat.extent_mm(Spot((0, 0, 0), "gt", (0, 0, 0, 7, 2, 2))) == 10  # 7 x 1, 2 x 1, 2 x 5 mm
        assert flat.extent_mm(flat.middle()) == 0

    def test_middle_of_the_scan(self):
        assert self._viewer(np.zeros((9, 11, 3), np.uint8)).middle().point_mm == (4, 5, 5)


class TestGreyWindow:
    def test_background_is_left_out(self):
        image = np.zeros((20, 20, 20), np.float32)
        image[5:15, 5:15, 5:15] = np.linspace(100, 200, 1000).reshape(10, 10, 10)
        low, high = grey_window(image)
        assert (low, high) == pytest.approx((101.0, 199.8))  # 1% and 99.8% of the way from 100 to 200

    def test_without_contrast(self):
        assert grey_window(np.full((4, 4, 4), 7.0, np.float32)) == (7.0, 8.0)

    def test_nan_is_left_out_and_drawn_black(self):
        image = np.full((4, 4, 1), np.nan, np.float32)
        assert grey_window(image) == (0.0, 1.0)
        empty = np.zeros(image.shape, np.uint8)
        view = CaseViewer(CasePictures(image, empty, empty, Grid(image.shape, np.eye(4)))).views(SPOT, pixels=9)[0]
        assert (decode(view.png) == 0).all()

    def test_outliers_are_clipped(self):
        image = np.random.default_rng(0).normal(100, 10, (30, 30, 30)).astype(np.float32)
        image[0, 0, 0] = 1e6
        assert grey_window(image)[1] < 150
