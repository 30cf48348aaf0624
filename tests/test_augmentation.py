"""Cutting and changing patches: bit-exact where nothing is drawn, rebuilt from a seed, and silent on the network."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from augmentation_helpers import OFF, at, augmenter, options, plan_of, seed, stored

from segment.data.augmentation import Augmenter
from segment.data.lesion_paste import LesionPaster
from segment.data.preprocessing import PreparedCase

SIZE = (10, 12, 8)
FLAT = (10, 12, 1)
SHARES = [name for name in OFF if name.endswith("_share")]
ALL = {"flip": True, "turn": True, **dict.fromkeys(SHARES, 0.5)}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> PreparedCase:
    """Two channels of 24 x 22 x 20 z-scores with empty slabs and two lesions."""
    image = np.random.default_rng(0).normal(0, 1, (24, 22, 20, 2)).astype(np.float32)
    image[:3] = 0
    label = np.zeros((24, 22, 20), np.uint8)
    label[8:10, 8:11, 7:10], label[15, 12, 9] = 3, 1
    image[label > 0] = 6
    image[13, 6, 9] = -0.0
    return stored(tmp_path_factory.mktemp("augmentation") / "a", image, label)


def everything(case: PreparedCase, size: tuple[int, int, int], slices: int = 1) -> Augmenter:
    plan = plan_of(size, channels=2, slices=slices)
    paster = LesionPaster([case], plan, bin_edges_mm3=(10.0, 50.0), shapes=[])
    return Augmenter(options(**ALL), plan, paster)


class TestIdentity:
    @pytest.mark.parametrize("shares", [0, 1e-9])
    def test_3d_gives_the_input_bit_for_bit(self, case: PreparedCase, shares: float) -> None:
        change = augmenter(SIZE, channels=2, **dict.fromkeys(SHARES, shares))
        for start in ((5, 4, 3), (-3, 15, 16)):
            image, label = change.cut(case, at(*start), seed(0))
            box = tuple(slice(first + 20, first + 20 + size) for first, size in zip(start, SIZE, strict=True))
            expected = np.pad(case.image(), [(20, 20)] * 3 + [(0, 0)])[box]
            np.testing.assert_array_equal(image.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))
            np.testing.assert_array_equal(label, np.pad(case.label(), 20)[box])
            assert (image.dtype, label.dtype) == (np.float32, np.uint8)
            assert image.flags.c_contiguous
            assert label.flags.c_contiguous

    @pytest.mark.parametrize("slices", [1, 3])
    @pytest.mark.parametrize("shares", [0, 1e-9])
    def test_2d_gives_the_slices_as_channels_bit_for_bit(self, case: PreparedCase, shares: float, slices: int) -> None:
        change = augmenter(FLAT, channels=2, slices=slices, **dict.fromkeys(SHARES, shares))
        image, label = change.cut(case, at(5, 4, 9), seed(0))
        near = range(9 - slices // 2, 10 + slices // 2)
        expected = np.concatenate([case.image()[5:15, 4:16, z] for z in near], axis=-1)  # slice by slice
        np.testing.assert_array_equal(image.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))
        np.testing.assert_array_equal(label, case.label()[5:15, 4:16, 9])

    def test_slices_outside_the_volume_are_0(self, case: PreparedCase) -> None:
        image, _ = augmenter(FLAT, channels=2, slices=3).cut(case, at(5, 4, 0), seed(0))
        assert (image[..., :2] == 0).all()
        np.testing.assert_array_equal(image[..., 2:], np.concatenate([case.image()[5:15, 4:16, z] for z in (0, 1)], -1))

    def test_files_are_not_written_to(self, case: PreparedCase) -> None:
        kept = case.image().copy(), case.label().copy()
        for index in range(5):
            everything(case, SIZE).cut(case, at(5, 4, 3), seed(index))
            everything(case, FLAT).cut(case, at(5, 4, 9), seed(index))
        np.testing.assert_array_equal(case.image(), kept[0])
        np.testing.assert_array_equal(case.label(), kept[1])


class TestGeometry:
    @pytest.mark.parametrize("turn", [False, True])
    def test_flips_and_turns_come_equally_often_and_exactly(self, case: PreparedCase, turn: bool) -> None:
        change = augmenter((8, 8, 8), channels=2, flip=True, turn=turn)
        images, labels = set(), {}
        for index in range(300):
            image, label = change.cut(case, at(5, 5, 5), seed(index))
            images.add(image.tobytes())
            labels[image.tobytes()] = label
        assert len(images) == (48 if turn else 8)
        for key, label in labels.items():
            image = np.frombuffer(key, np.float32).reshape(8, 8, 8, 2)
            np.testing.assert_array_equal((image == 6).all(axis=-1), label > 0)

    def test_turned_patch_has_no_empty_corners(self, case: PreparedCase) -> None:
        for size, start in (((8, 8, 6), (9, 7, 7)), ((8, 8, 1), (9, 7, 9))):
            change = augmenter(size, channels=2, affine_share=1, elastic_share=0, scale=1.0, rotation_degrees=15)
            for index in range(20):
                image, _ = change.cut(case, at(*start), seed(index))
                assert (image != 0).mean() > 0.999  # but for the one voxel that is 0 itself

    def test_lesion_patches_keep_their_lesion(self, case: PreparedCase) -> None:
        """Corner voxels at the largest angles: in 3D the patch follows, in 2D it is left alone."""
        held = ((8, 10), (8, 11), (7, 10))
        for size, start in (((8, 8, 8), (8, 8, 7)), ((8, 8, 1), (8, 8, 8))):
            options = {"affine_share": 1, "rotation_degrees": 45, "scale": 1.5, "dropout_share": 1}
            change = augmenter(size, channels=2, flip=True, **options)
            assert all(change.cut(case, at(*start, held=held), seed(index))[1].any() for index in range(40))


class TestRebuilding:
    @pytest.mark.parametrize(("size", "slices"), [(SIZE, 1), (FLAT, 1), (FLAT, 3)])
    def test_pure_function_of_its_arguments_in_any_order_and_thread(
        self, case: PreparedCase, size: tuple[int, int, int], slices: int
    ) -> None:
        change = everything(case, size, slices)

        def sample(index: int) -> bytes:
            return b"".join(part.tobytes() for part in change.cut(case, at(5, 4, 8), seed(index)))

        alone = [sample(index) for index in range(48)]
        assert len(set(alone)) > 40
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(sample, reversed(range(48))))[::-1] == alone
        again = everything(case, size, slices)
        assert b"".join(part.tobytes() for part in again.cut(case, at(5, 4, 8), seed(7))) == alone[7]


class TestNothingPhonesHome:
    CODE = """
import socket

def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
import segment.data.augmentation
import sys
assert "albumentations" in sys.modules
assert "tensorflow" not in sys.modules
"""

    @pytest.mark.parametrize("setting", [None, "0"])
    def test_import_opens_no_connection(self, setting: str | None) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        if setting is not None:
            environment["NO_ALBUMENTATIONS_UPDATE"] = setting
        done = subprocess.run(
            [sys.executable, "-c", self.CODE], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
