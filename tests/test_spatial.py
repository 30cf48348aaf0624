"""Turning and scaling: against scipy, on shapes whose place and volume are known, and without losing a lesion."""

from __future__ import annotations

import itertools

import albumentations as A  # noqa: N812
import numpy as np
import pytest
from scipy import ndimage

from segment.data import spatial
from segment.data.components import label_components
from segment.data.sampling import read_patch
from segment.data.spatial import Symmetry, Warp, axis_orders, draw_matrix, draw_symmetry

ISOTROPIC = (1.0, 1.0, 1.0)


def rotation(degrees: float, plane: tuple[int, int]) -> np.ndarray:
    """Voxel offset in the patch -> in the source, for a turn within one plane."""
    matrix = np.eye(3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one, other = plane
    matrix[one, one] = matrix[other, other] = c
    matrix[one, other], matrix[other, one] = -s, s
    return matrix


def warped(warp: Warp, volume: np.ndarray) -> np.ndarray:
    return warp.image(read_patch(volume, warp.first, warp.box)[None].astype(np.float32))[0]


class TestImage:
    volume = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(50, 44, 40)), 1.0).astype(np.float32)

    @pytest.mark.parametrize("limit", [32_000, 700])  # the second makes the atlas several slices wide
    @pytest.mark.parametrize("size", [(20, 16, 12), (9, 17, 1)])
    def test_equals_scipys_linear_splines(
        self, size: tuple[int, int, int], limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spatial, "CV_LIMIT", limit)
        for index in range(4):
            matrix = draw_matrix(np.random.default_rng(index), ISOTROPIC, degrees=25, scale=1.3)
            warp = Warp.around((12, 14, 15), size, matrix, None)
            centre = np.array((12, 14, 15)) + (np.array(size) - 1) / 2
            offset = centre - matrix @ ((np.array(size) - 1) / 2)
            expected = ndimage.affine_transform(self.volume.astype(float), matrix, offset, output_shape=size, order=1)
            # OpenCV before version 5 rounds to 1/32 voxel; neighbours differ by about 0.2 here.
            np.testing.assert_allclose(warped(warp, self.volume), expected, atol=0.02)

    def test_constant_stays_constant_and_zero_comes_in_from_outside(self) -> None:
        matrix = rotation(10, (0, 1)) / 1.1
        warp = Warp.around((8, 8, 8), (16, 16, 16), matrix, None)
        np.testing.assert_allclose(warped(warp, np.full((40, 40, 40), 3.25, np.float32)), 3.25, rtol=1e-6)
        outside = Warp.around((-20, -20, -20), (16, 16, 16), matrix, None)
        assert (warped(outside, np.ones((40, 40, 40), np.float32)) == 0).all()

    def test_identity_matrix_gives_the_values(self) -> None:
        warp = Warp.around((3, 4, 5), (20, 16, 12), np.eye(3), None)
        np.testing.assert_allclose(warped(warp, self.volume), self.volume[3:23, 4:20, 5:17], rtol=1e-6)

    def test_quarter_turn_of_a_ramp(self) -> None:
        ramp = np.broadcast_to(np.arange(21, dtype=np.float32)[:, None, None], (21, 21, 21))
        warp = Warp.around((5, 5, 5), (11, 11, 11), rotation(90, (0, 1)), None)
        # Source x is 10 - (y - 5) for the patch's y: the ramp now falls along y.
        np.testing.assert_allclose(warped(warp, ramp)[3, :, 4], 15 - np.arange(11), atol=1e-4)


class TestLabel:
    def test_ball_keeps_place_and_grows_by_the_cube_of_the_scale(self) -> None:
        grid = np.indices((48, 48, 48)) - np.array([26, 22, 24])[:, None, None, None]
        ball = ((grid**2).sum(0) <= 6.5**2).astype(np.uint8)
        for scale in (0.8, 1.0, 1.25):
            warp = Warp.around((8, 8, 8), (32, 32, 32), rotation(20, (0, 1)) / scale, None)
            found = warp.label(read_patch(ball, warp.first, warp.box))
            assert found.sum() == pytest.approx(ball.sum() * scale**3, rel=0.05)
            # The patch's centre is at 23.5; the ball's middle turns back by 20 degrees and moves out by the scale.
            expected = 15.5 + scale * rotation(20, (0, 1)).T @ (np.array([26, 22, 24]) - 23.5)
            # Nearest places edges within half a voxel, and along an axis that is only scaled, all points alike.
            np.testing.assert_allclose(ndimage.center_of_mass(found), expected, atol=0.25)

    def test_values_of_classes_are_kept(self) -> None:
        label = np.zeros((30, 30, 30), np.uint8)
        label[8:14, 8:14, 8:14], label[14:20, 8:14, 8:14] = 2, 7
        warp = Warp.around((5, 5, 5), (20, 20, 20), rotation(10, (0, 2)), None)
        values, counts = np.unique(warp.label(read_patch(label, warp.first, warp.box)), return_counts=True)
        assert values.tolist() == [0, 2, 7]
        np.testing.assert_allclose(counts[1:], 216, rtol=0.06)

    @pytest.mark.parametrize("size", [1, 2])
    def test_no_small_lesion_vanishes(self, size: int) -> None:
        """Lesions of 1 and 8 voxels, 5 apart, turned and shrunk: nearest alone loses many of the single ones."""
        label = np.zeros((90, 90, 90), np.uint8)
        for x, y, z in itertools.product(range(2, 86, 5), repeat=3):
            label[x : x + size, y : y + size, z : z + size] = 1
        for index in range(6):
            matrix = draw_matrix(np.random.default_rng(index), ISOTROPIC, degrees=20, scale=1.25)
            warp = Warp.around((33, 33, 33), (24, 24, 24), matrix, None)
            source = read_patch(label, warp.first, warp.box)
            numbers, count = label_components(source > 0, connectivity=26)
            middles = np.array(ndimage.center_of_mass(source, numbers, range(1, count + 1)))
            places = np.linalg.solve(matrix, (middles - warp.centre).T).T + 11.5
            inside = int(((places >= 0) & (places <= 23)).all(axis=1).sum())
            found = label_components(warp.label(source) > 0, connectivity=26)[1]
            assert inside > 40
            assert found >= inside

    def test_a_held_lesion_stays_in_the_patch(self) -> None:
        label = np.zeros((70, 70, 70), np.uint8)
        label[20:23, 20:22, 20] = 1  # in the corner of the patch
        for index in range(40):
            matrix = draw_matrix(np.random.default_rng(index), ISOTROPIC, degrees=45, scale=1.5)
            warp = Warp.around((20, 20, 20), (32, 32, 32), matrix, ((20, 23), (20, 22), (20, 21)))
            alone = Warp.around((20, 20, 20), (32, 32, 32), matrix, None)
            found = warp.label(read_patch(label, warp.first, warp.box))
            lost = alone.label(read_patch(label, alone.first, alone.box))
            grown = abs(np.linalg.det(np.linalg.inv(matrix)))
            assert found.sum() >= max(1, 6 * grown - 5)
            assert found.sum() >= lost.sum()

    def test_empty_label(self) -> None:
        warp = Warp.around((0, 0, 0), (6, 6, 6), rotation(10, (1, 2)), None)
        assert warp.label(np.zeros(warp.box, np.uint8)).shape == (6, 6, 6)


class TestMatrix:
    def test_angles_and_factors_stay_within_limits(self) -> None:
        scales, angles = [], []
        for index in range(300):
            matrix = draw_matrix(np.random.default_rng(index), ISOTROPIC, degrees=15, scale=1.25)
            size = np.cbrt(np.linalg.det(matrix))
            scales.append(1 / size)
            turn = matrix / size
            np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
            angles.append(np.degrees(np.arccos((np.trace(turn) - 1) / 2)))
        assert 0.8 <= min(scales) < 0.82
        assert 1.22 < max(scales) <= 1.25
        assert max(angles) <= 15 * np.sqrt(3) + 1
        assert abs(np.mean(np.log(scales))) < 0.03

    def test_thick_slices_are_turned_within_themselves_only(self) -> None:
        matrix = draw_matrix(np.random.default_rng(0), (0.5, 0.5, 3.0), degrees=30, scale=1.2)
        np.testing.assert_array_equal(matrix[2], [0, 0, 1])
        np.testing.assert_array_equal(matrix[:, 2], [0, 0, 1])
        assert abs(matrix[0, 1]) > 0.01

    def test_rotation_is_one_in_mm(self) -> None:
        spacing = np.array((1.0, 1.5, 1.2))
        matrix = draw_matrix(np.random.default_rng(3), spacing, degrees=30, scale=1.0)
        turn = np.diag(spacing) @ matrix @ np.diag(1 / spacing)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)


class TestSymmetries:
    def test_all_48_of_a_cube_as_albumentations_has_them(self) -> None:
        volume = np.arange(27).reshape(3, 3, 3)
        orders = axis_orders(ISOTROPIC, (3, 3, 3))
        ours = {
            Symmetry(order, mirrored).apply(volume).tobytes()
            for order in orders
            for mirrored in itertools.product((False, True), repeat=3)
        }
        turn = A.CubicSymmetry(p=1)
        theirs = {np.ascontiguousarray(turn.apply_to_volume(volume, index)).tobytes() for index in range(48)}
        assert len(ours) == 48
        assert ours == theirs

    def test_spacing_and_size_limit_the_turns(self) -> None:
        assert axis_orders((1.0, 1.0, 3.0), (8, 8, 8)) == ((0, 1, 2), (1, 0, 2))
        assert axis_orders(ISOTROPIC, (8, 4, 8)) == ((0, 1, 2), (2, 1, 0))
        assert axis_orders((1.0, 1.2, 1.4), (8, 8, 8)) == ((0, 1, 2),)

    def test_every_one_comes_equally_often(self) -> None:
        orders = axis_orders(ISOTROPIC, (2, 2, 2))
        drawn = [draw_symmetry(np.random.default_rng(index), orders, flip=True) for index in range(2400)]
        counts = [drawn.count(one) for one in set(drawn)]
        assert len(counts) == 48
        assert min(counts) > 20  # 50 expected, standard deviation 7
        assert max(counts) < 85
        assert not any(any(draw_symmetry(np.random.default_rng(i), orders, flip=False).mirrored) for i in range(20))
