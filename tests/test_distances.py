"""HD95 and surface Dice, from areas and distances worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.evaluation.distances import edge_voxels, hd95_mm, surface_dice, surface_elements, surface_table
from segment.evaluation.metrics import evaluate_case

CORNERS = list(itertools.product((0, 1), repeat=3))
SPACINGS = [(1.0, 1.0, 1.0), (0.9, 1.3, 3.0), (4.0, 0.5, 0.7)]
# Corners of a cell, and the triangles (a list of corner points) that cut them off through the middles of cell edges.
Triangles = list[list[tuple[float, float, float]]]
SHAPES: dict[str, tuple[list[tuple[int, int, int]], Triangles]] = {
    "corner": ([(0, 0, 0)], [[(0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)]]),
    "edge": (
        [(0, 0, 0), (1, 0, 0)],
        [[(0, 0.5, 0), (1, 0.5, 0), (1, 0, 0.5)], [(0, 0.5, 0), (1, 0, 0.5), (0, 0, 0.5)]],
    ),
    "bend": (
        [(0, 0, 0), (1, 0, 0), (0, 1, 0)],
        [
            [(0, 0, 0.5), (1, 0, 0.5), (0, 1, 0.5)],
            [(1, 0, 0.5), (0, 1, 0.5), (1, 0.5, 0)],
            [(0, 1, 0.5), (1, 0.5, 0), (0.5, 1, 0)],
        ],
    ),
    "face": (
        [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)],
        [[(0, 0, 0.5), (1, 0, 0.5), (1, 1, 0.5)], [(0, 0, 0.5), (1, 1, 0.5), (0, 1, 0.5)]],
    ),
    "tripod": (
        [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)],
        [
            [(1, 0.5, 0), (0.5, 1, 0), (0, 1, 0.5)],
            [(1, 0.5, 0), (0, 1, 0.5), (0, 0.5, 1)],
            [(1, 0.5, 0), (0, 0.5, 1), (0.5, 0, 1)],
            [(1, 0.5, 0), (0.5, 0, 1), (1, 0, 0.5)],
        ],
    ),
    "chain": (  # along y, z, x; the trapezoid lies in the plane x + y + z = 3/2
        [(1, 0, 0), (1, 1, 0), (1, 1, 1), (0, 1, 1)],
        [
            [(1, 0, 0.5), (1, 0.5, 1), (0, 0.5, 1)],
            [(0.5, 1, 0), (0.5, 0, 0), (1, 0, 0.5)],
            [(1, 0, 0.5), (0, 0.5, 1), (0, 1, 0.5)],
            [(1, 0, 0.5), (0, 1, 0.5), (0.5, 1, 0)],
        ],
    ),
}


def code(corners: Sequence[tuple[int, ...]]) -> int:
    return sum(1 << CORNERS.index(corner) for corner in corners)


def area(triangles: Triangles, spacing: Sequence[float]) -> float:
    points = np.array(triangles) * spacing
    return float(np.linalg.norm(np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]), axis=1).sum() / 2)


class TestSurfaceTable:
    @pytest.mark.parametrize("spacing", SPACINGS)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_each_shape_has_the_area_of_its_triangles(self, shape: str, spacing: tuple[float, float, float]) -> None:
        corners, triangles = SHAPES[shape]
        assert surface_table(spacing)[code(corners)] == pytest.approx(area(triangles, spacing))

    @pytest.mark.parametrize("spacing", SPACINGS)
    def test_turning_and_mirroring_the_cell_turns_the_areas(self, spacing: tuple[float, float, float]) -> None:
        table = surface_table(spacing)
        for order, flips in itertools.product(itertools.permutations(range(3)), itertools.product((0, 1), repeat=3)):
            turned = surface_table(tuple(spacing[axis] for axis in order))
            for number in range(256):
                inside = [corner for bit, corner in enumerate(CORNERS) if number >> bit & 1]
                moved = [
                    tuple(corner[axis] ^ flip for axis, flip in zip(order, flips, strict=True)) for corner in inside
                ]
                assert turned[code(moved)] == pytest.approx(table[number])

    def test_a_cell_and_its_complement_share_their_surface(self) -> None:
        table = surface_table((0.9, 1.3, 3.0))
        assert np.allclose(table, table[::-1])
        assert table[0] == table[255] == 0

    def test_corners_across_a_face_or_the_cell_are_cut_off_apart(self) -> None:
        table = surface_table((1.0, 1.0, 1.0))
        one = table[code([(0, 0, 0)])]
        assert one == pytest.approx(math.sqrt(3) / 8)
        assert table[code([(0, 0, 0), (1, 1, 0)])] == pytest.approx(2 * one)
        assert table[code([(0, 0, 0), (1, 1, 1)])] == pytest.approx(2 * one)
        assert table[code([(0, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1)])] == pytest.approx(4 * one)
        assert table[code([(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)])] == pytest.approx(2 * math.sqrt(0.5))

    def test_contours(self) -> None:
        # Bits 0 to 3 are the corners (0, 0), (0, 1), (1, 0), (1, 1); 3 mm along x, 4 mm along y.
        table = surface_table((3.0, 4.0))
        assert table[0b0001] == table[0b1000] == table[0b0111] == pytest.approx(2.5)
        assert table[0b0011] == table[0b1100] == pytest.approx(4.0)
        assert table[0b0101] == table[0b1010] == pytest.approx(3.0)
        assert table[0b0110] == table[0b1001] == pytest.approx(5.0)
        assert table[0b0000] == table[0b1111] == 0


class TestSurfaceElements:
    def test_a_box(self) -> None:
        mask = np.zeros((9, 9, 9), bool)
        mask[2:6, 3:6, 0:2] = True  # 4 x 3 x 2 voxels, at the border of the volume
        sx, sy, sz = spacing = np.array([0.9, 1.3, 3.0])
        places, areas = surface_elements(mask, spacing)
        assert len(places) == 5 * 4 * 3 - 3 * 2 * 1
        faces = 2 * (3 * 2 * sx * sy + 3 * 1 * sx * sz + 2 * 1 * sy * sz)
        edges = 4 * (3 * sx * math.hypot(sy, sz) + 2 * sy * math.hypot(sx, sz) + 1 * sz * math.hypot(sx, sy)) / 2
        corners = math.sqrt((sy * sz) ** 2 + (sx * sz) ** 2 + (sx * sy) ** 2)
        assert areas.sum() == pytest.approx(faces + edges + corners)

    def test_a_rectangle(self) -> None:
        mask = np.zeros((6, 6), bool)
        mask[1:4, 2:4] = True
        _, lengths = surface_elements(mask, np.array([3.0, 4.0]))
        assert lengths.sum() == pytest.approx(2 * (2 * 3 + 1 * 4) + 4 * 2.5)


class TestSurfaceDice:
    def test_equal_masks(self) -> None:
        mask = np.random.default_rng(0).random((6, 7, 5)) < 0.3
        assert surface_dice(mask, mask, (1, 2, 3), tolerance_mm=1.0) == pytest.approx(1.0)

    def test_one_voxel_shifted_by_one(self) -> None:
        first, second = np.zeros((2, 6, 5, 5), bool)
        first[2, 2, 2] = second[3, 2, 2] = True
        # Each has 8 elements of equal area, 4 of them in common; the others are a spacing away.
        assert surface_dice(first, second, (1.0, 1.0, 1.0), tolerance_mm=1.0) == pytest.approx(1.0)
        assert surface_dice(first, second, (1.1, 1.0, 1.0), tolerance_mm=1.0) == pytest.approx(0.5)

    @pytest.mark.parametrize("side", [0.1, 0.2, 0.25, 1 / 3])
    def test_a_distance_of_exactly_the_tolerance_is_within_it(self, side: float) -> None:
        spacing = float(np.float32(side))  # as a header holds it, a little off
        steps = round(1 / side)
        for start in (0, 3, 17):
            first, second = np.zeros((2, 40, 3, 3), bool)
            first[start, 1, 1] = second[start + steps, 1, 1] = True
            assert surface_dice(first, second, (spacing, 1, 1), tolerance_mm=1.0) == pytest.approx(1.0)

    def test_empty_masks(self) -> None:
        empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
        assert surface_dice(empty, empty, (1, 1, 1), tolerance_mm=1.0) is None
        assert surface_dice(empty, full, (1, 1, 1), tolerance_mm=1.0) == 0.0
        assert surface_dice(full, empty, (1, 1, 1), tolerance_mm=1.0) == 0.0


class TestHd95:
    def test_edge_voxels_of_a_cube(self) -> None:
        mask = np.zeros((7, 7, 7), bool)
        mask[1:6, 1:6, 1:6] = True
        assert len(edge_voxels(mask)) == 5**3 - 3**3
        mask = np.ones((4, 4, 4), bool)  # outside the volume is background
        assert len(edge_voxels(mask)) == 4**3 - 2**3
        assert len(edge_voxels(np.ones((4, 4), bool))) == 4**2 - 2**2

    def test_two_single_voxels(self) -> None:
        first, second = np.zeros((2, 8, 8, 8), bool)
        first[1, 1, 1] = second[4, 5, 1] = True
        assert hd95_mm(first, second, (1.0, 2.0, 5.0)) == pytest.approx(math.hypot(3, 8))

    def test_the_percentile_interpolates_and_the_larger_direction_counts(self) -> None:
        first, second = np.zeros((2, 30, 1), bool)
        first[0] = True
        second[[0, 3, 10]] = True
        # From the second to the first: 0, 3 and 10 mm; the 95th percentile is at 1.9 of 2: 3 + 0.9 * 7.
        assert hd95_mm(first, second, (1.0, 1.0)) == pytest.approx(9.3)
        assert hd95_mm(second, first, (1.0, 1.0)) == pytest.approx(9.3)

    def test_empty_masks(self) -> None:
        empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
        assert hd95_mm(empty, full, (1, 1, 1)) is None
        assert hd95_mm(full, empty, (1, 1, 1)) is None

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_the_memory_layout_changes_nothing(self, order: str) -> None:
        rng = np.random.default_rng(1)
        masks = [np.array(rng.random((8, 9, 10)) < 0.1, order=order) for _ in range(2)]  # type: ignore[call-overload]
        plain = [np.ascontiguousarray(mask) for mask in masks]
        spacing = (1.0, 2.0, 0.5)
        assert hd95_mm(*masks, spacing) == pytest.approx(hd95_mm(*plain, spacing))
        assert surface_dice(*masks, spacing, tolerance_mm=1.0) == pytest.approx(
            surface_dice(*plain, spacing, tolerance_mm=1.0)
        )


class TestSliceAxis:
    def test_a_single_slice_is_2d_and_its_lesions_are_not_all_edge(self) -> None:
        label, prediction = np.zeros((2, 12, 12), np.uint8)
        label[2:9, 2:9] = 1
        prediction[2:9, 3:9] = 1
        flat = hd95_mm(label > 0, prediction > 0, (2.0, 3.0))
        for axis in range(3):
            masks = [np.expand_dims(mask, axis) for mask in (label, prediction)]
            spacing = np.insert([2.0, 3.0], axis, 5.0)
            grid = Grid(masks[0].shape, np.diag([*spacing, 1.0]))
            case = evaluate_case("c", *masks, grid, config=EvaluationConfig()).case
            assert case["hd95_mm"] == pytest.approx(flat)
            assert case["surface_dice_1mm"] == pytest.approx(
                surface_dice(label > 0, prediction > 0, (2.0, 3.0), tolerance_mm=1.0)
            )

    def test_lesions_in_one_slice_of_a_volume_stay_3d(self) -> None:
        label, prediction = np.zeros((2, 9, 9, 9), np.uint8)
        label[2:7, 2:7, 4] = 1
        prediction[2:7, 2:7, 4] = 1
        prediction[2, 2, 4] = 0
        case = evaluate_case("c", label, prediction, Grid((9, 9, 9), np.eye(4)), config=EvaluationConfig()).case
        assert case["hd95_mm"] == pytest.approx(hd95_mm(label > 0, prediction > 0, (1, 1, 1)))
        assert case["surface_dice_1mm"] == pytest.approx(
            surface_dice(label > 0, prediction > 0, (1, 1, 1), tolerance_mm=1.0)
        )
