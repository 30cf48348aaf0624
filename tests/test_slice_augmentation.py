"""2D and 2.5D patches through albumentations: exact where nothing is drawn, no lesion lost, channels of any number."""

from __future__ import annotations

import numpy as np
import pytest
from augmentation_helpers import OFF, options, seed

from segment.data.components import label_components
from segment.data.slice_augmentation import SliceAugmenter

SIZE = (40, 32)
MOVES = {"flip": True, "turn": True, "affine_share": 1, "elastic_share": 1, "dropout_share": 1}
CHANGES = ("gamma_share", "brightness_contrast_share", "blur_share", "low_resolution_share", "noise_share")


def made(size: tuple[int, int] = SIZE, **changes: object) -> SliceAugmenter:
    return SliceAugmenter(options(**changes), (1.0, 1.0), size)


def source(augmenter: SliceAugmenter, layers: int, slices: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rows, columns = augmenter.source_size
    image = rng.normal(size=(rows, columns, layers)).astype(np.float32)
    image[: rows // 4] = 0
    return image, (rng.random((rows, columns, slices)) < 0.01).astype(np.uint8) * 3


class TestMove:
    def test_nothing_drawn_gives_the_middle_bit_for_bit(self) -> None:
        augmenter = made(affine_share=1e-9, elastic_share=1e-9)
        rows, columns = augmenter.source_size
        assert rows > 40
        assert columns > 32
        image, label = source(augmenter, 4, 3)
        image[rows // 2, columns // 2] = -0.0
        found, moved = augmenter.move(image, label, seed(0), keep=True)
        middle = np.s_[(rows - 40) // 2 : (rows + 40) // 2, (columns - 32) // 2 : (columns + 32) // 2]
        np.testing.assert_array_equal(found.view(np.uint32), np.ascontiguousarray(image[middle]).view(np.uint32))
        np.testing.assert_array_equal(moved, label[middle])
        assert moved.dtype == np.uint8

    @pytest.mark.parametrize(("channels", "slices"), [(1, 1), (2, 3), (3, 5)])
    def test_everything_at_once_keeps_shapes_types_and_values(self, channels: int, slices: int) -> None:
        augmenter = made(**MOVES)
        image, label = source(augmenter, channels * slices, slices)
        kept = image.copy(), label.copy()
        for index in range(5):
            found, moved = augmenter.move(image, label, seed(index), keep=False)
            assert (found.shape, found.dtype) == ((*SIZE, channels * slices), np.float32)
            assert (moved.shape, moved.dtype) == ((*SIZE, slices), np.uint8)
            assert set(np.unique(moved)) <= {0, 3}
        np.testing.assert_array_equal(image, kept[0])
        np.testing.assert_array_equal(label, kept[1])

    def test_flips_move_image_and_label_alike(self) -> None:
        augmenter = made(flip=True)
        image, label = source(augmenter, 1)
        image[..., 0] = label[..., 0]
        seen = set()
        for index in range(40):
            found, moved = augmenter.move(image, label, seed(index), keep=False)
            np.testing.assert_array_equal(found[..., 0], moved[..., 0])
            seen.add(moved.tobytes())
        assert len(seen) == 4

    def test_turns_of_squares_only(self) -> None:
        for size, count in (((32, 32), 4), (SIZE, 1)):
            augmenter = made(size, turn=True)
            image, label = source(augmenter, 1)
            assert len({augmenter.move(image, label, seed(i), keep=False)[1].tobytes() for i in range(40)}) == count

    @pytest.mark.parametrize("share", ["affine_share", "elastic_share"])
    def test_no_single_pixel_vanishes(self, share: str) -> None:
        augmenter = made((48, 48), **{share: 1}, scale=1.25)
        rows, columns = augmenter.source_size
        label = np.zeros((rows, columns, 1), np.uint8)
        label[4::6, 4::6] = 1
        # The same seed moves a finely drawn map of numbers: what is left of it says which lesions should be there.
        image = label.astype(np.float32)
        for index in range(8):
            found, moved = augmenter.move(image, label, seed(index), keep=False)
            parts = label_components(found[..., 0] > 0.02, connectivity=8)[1]
            assert parts > 20
            assert label_components(moved[..., 0] > 0, connectivity=8)[1] >= parts - 4  # cut at the patch's edge

    def test_ball_moves_as_the_image_does(self) -> None:
        augmenter = made((64, 64), affine_share=1)
        rows, columns = augmenter.source_size
        y, x = np.indices((rows, columns)) - np.array([rows // 2 - 8, columns // 2 + 5])[:, None, None]
        ball = ((y**2 + x**2) <= 81)[..., None]
        for index in range(10):
            found, moved = augmenter.move(ball.astype(np.float32), ball.astype(np.uint8), seed(index), keep=False)
            assert np.abs((found[..., 0] > 0.5) != (moved[..., 0] > 0)).sum() <= 0.08 * ball.sum()

    def test_kept_lesion_comes_back_where_all_would_be_lost(self) -> None:
        augmenter = made(affine_share=1, rotation_degrees=45, dropout_share=1)
        rows, columns = augmenter.source_size
        label = np.zeros((rows, columns, 3), np.uint8)
        label[(rows - 40) // 2, (columns - 32) // 2, 1] = 1  # the patch's very corner
        image = np.zeros((rows, columns, 3), np.float32)
        assert not all(augmenter.move(image, label, seed(i), keep=False)[1][..., 1].any() for i in range(20))
        assert all(augmenter.move(image, label, seed(i), keep=True)[1][..., 1].any() for i in range(20))

    def test_blanked_squares_are_blank_in_both(self) -> None:
        augmenter = made(dropout_share=1)
        image = np.ones((*SIZE, 1), np.float32)
        found, moved = augmenter.move(image, np.ones((*SIZE, 1), np.uint8), seed(1), keep=False)
        assert 0 < (found == 0).sum() < 0.2 * found.size
        np.testing.assert_array_equal(found == 0, moved == 0)

    def test_pixels_that_are_not_square_are_not_turned(self) -> None:
        augmenter = SliceAugmenter(options(affine_share=1, scale=1.0, rotation_degrees=30), (1.0, 1.5), SIZE)
        image, label = source(augmenter, 1)
        found, _ = augmenter.move(image, label, seed(0), keep=False)
        np.testing.assert_array_equal(found, image)


class TestChange:
    @pytest.mark.parametrize("share", CHANGES)
    @pytest.mark.parametrize("layers", [1, 3, 7])
    def test_zeros_stay_and_the_rest_changes_a_little(self, share: str, layers: int) -> None:
        augmenter = made(**{share: 1})
        image, _ = source(augmenter, layers)
        image[20:24, 10:14] = 7  # a lesion far above the rest
        found = augmenter.change(image, seed(3))
        assert found.dtype == np.float32
        assert found.shape == image.shape
        assert (found[:10] == 0).all()
        assert (found[10:] != image[10:]).mean() > 0.9
        assert np.corrcoef(found[10:].ravel(), image[10:].ravel())[0, 1] > 0.5
        assert found.max() > 4  # not clipped

    def test_nothing_drawn_gives_the_very_image(self) -> None:
        augmenter = made(**dict.fromkeys(CHANGES, 1e-9))
        image, _ = source(augmenter, 2)
        assert augmenter.change(image, seed(0)) is image

    def test_constant_image(self) -> None:
        augmenter = made(gamma_share=1, brightness_contrast_share=1, blur_share=1)
        found = augmenter.change(np.full((*SIZE, 1), 2.0, np.float32), seed(0))
        assert np.ptp(found) < 1e-4


class TestRebuilding:
    def test_pure_function_of_the_seed(self) -> None:
        shares = {name: 0.5 for name in OFF if name.endswith("_share")}
        first, second = (made(**{"flip": True, "turn": True, **shares}) for _ in "ab")
        image, label = source(first, 6, 3)

        def sample(augmenter: SliceAugmenter, index: int) -> bytes:
            moved = augmenter.move(image, label, seed(index), keep=False)
            return b"".join(part.tobytes() for part in (*moved, augmenter.change(moved[0], seed(100 + index))))

        expected = [sample(first, index) for index in range(12)]
        assert [sample(second, index) for index in reversed(range(12))][::-1] == expected
        assert len(set(expected)) == 12
