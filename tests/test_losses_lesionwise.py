"""What the terms see: every lesion the same, whatever its place or size; and each alone can learn a tiny one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from loss_oracle import SOFTMAX_TERMS, TERMS, Example, loss_of, make_example

from segment import losses
from segment.data.lesion_maps import cell_map, distance_map


def missing(labels: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """Logits of a near-perfect prediction that lacks one lesion."""
    return np.where((labels > 0) & ~lesion, 9.0, -9.0).astype(np.float32)


class TestComponentDice:
    def two_lesions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels with a 5-voxel and a 5,000-voxel lesion, and the two lesions as masks, [1, 20, 25, 24, 1]."""
        small, large = np.zeros((2, 1, 20, 25, 24, 1), bool)
        small[0, 2, 2, 2:7] = True
        large[0, :, :, 14:24] = True  # 20 x 25 x 10 voxels
        return (small | large).astype(np.uint8), small, large

    def test_a_5_voxel_lesion_has_the_say_of_a_5000_voxel_one(self) -> None:
        labels, small, large = self.two_lesions()
        assert (small.sum(), large.sum()) == (5, 5000)
        # Both lesions fill their cells to the same part, here wholly: then the cross-entropy counts the same as well.
        cells = (small + 2 * large).astype(np.int32)
        ignore_rest = (labels > 0).astype(np.float32)
        costs = [
            float(losses.component_dice(labels, missing(labels, lesion), cells=cells, weight=ignore_rest)[0])
            for lesion in (small, large)
        ]
        assert costs[0] == pytest.approx(costs[1], rel=1e-5)

    def test_within_voronoi_cells_the_dice_part_is_the_same(self) -> None:
        labels, small, large = self.two_lesions()
        cells = cell_map(labels[0, ..., 0], spacing_mm=(1, 1, 1))[None, ..., None]
        perfect = float(losses.component_dice(labels, missing(labels, small & large), cells=cells)[0])
        crossentropy = [9 * lesion.sum() / (cells == cells[lesion][0]).sum() / 2 for lesion in (small, large)]
        for lesion, ce in zip((small, large), crossentropy, strict=True):
            cost = float(losses.component_dice(labels, missing(labels, lesion), cells=cells)[0]) - perfect
            # Half of (Dice 1 + cross-entropy 9 on the lesion's share of its cell); stray exp(-9) remain.
            assert cost - ce == pytest.approx(0.5, abs=0.05)
        for lesion, cost in ((small, 5 / 5005), (large, 5000 / 5005)):  # plain Dice: all that counts is size
            plain = float(losses.dice(labels, missing(labels, lesion), smooth=0.0)[0])
            assert plain == pytest.approx(cost / (2 - cost), abs=2e-3)

    def test_a_patch_without_lesion_costs_its_cross_entropy(self) -> None:
        labels = np.zeros((2, 6, 6, 6, 1), np.uint8)
        logits = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
        value = losses.component_dice(labels, logits, cells=np.zeros_like(labels))
        np.testing.assert_allclose(value, losses.binary_crossentropy(labels, logits), rtol=1e-6)

    def test_more_lesions_than_told_apart_share_cells(self) -> None:
        example = make_example((8, 8), batch=2, channels=1)
        shared = np.where(example.cells > 0, (example.cells - 1) % 2 + 1, 0)
        value = losses.component_dice(example.labels, example.logits, cells=example.cells, max_components=2)
        wanted = losses.component_dice(example.labels, example.logits, cells=shared)
        assert example.cells.max() > 2
        np.testing.assert_allclose(value, wanted, rtol=1e-6)

    def test_a_lesion_whose_cell_is_ignored_does_not_count(self) -> None:
        example = make_example((8, 8), batch=1, channels=1)
        weight = (example.cells != 1).astype(np.float32)
        value = losses.component_dice(example.labels, example.logits, cells=example.cells, weight=weight)
        renumbered = np.where(example.cells == 1, 0, example.cells)
        np.testing.assert_allclose(
            value, losses.component_dice(example.labels, example.logits, cells=renumbered, weight=weight), rtol=1e-6
        )


@pytest.mark.parametrize("term", TERMS)
class TestPlace:
    """Where a voxel lies does not matter as long as everything moves along."""

    example = make_example((6, 5, 4), batch=2, channels=2)

    def check(self, term: str, move) -> None:
        moved = Example(**{name: np.ascontiguousarray(move(value)) for name, value in vars(self.example).items()})
        np.testing.assert_allclose(loss_of(term, moved), loss_of(term, self.example), rtol=1e-6)

    def test_permuted_axes(self, term: str) -> None:
        self.check(term, lambda a: a.transpose(0, 3, 1, 2, 4))

    def test_flipped(self, term: str) -> None:
        self.check(term, lambda a: a[:, ::-1, :, ::-1])

    def test_translated(self, term: str) -> None:
        self.check(term, lambda a: np.roll(a, (2, -1, 1), axis=(1, 2, 3)))


class TestOverfitting:
    """Each term alone brings one 3-voxel lesion in a 32^3 patch to IoU 1."""

    labels = np.zeros((1, 32, 32, 32, 1), np.uint8)
    labels[0, 10, 12, 14:17] = 1

    def check(self, term: str, variables: list[tf.Variable], forward: Callable[[], tf.Tensor]) -> None:
        mask = self.labels[0, ..., 0]
        maps = {
            "component_dice": {"cells": cell_map(mask, spacing_mm=(1, 1, 1))[None, ..., None]},
            "boundary": {"distance": distance_map(mask, spacing_mm=(1, 1, 1), clip_mm=5.0)[None, ..., None]},
        }.get(term, {})
        optimizer = tf.keras.optimizers.Adam(0.1)
        optimizer.build(variables)

        @tf.function
        def step() -> tf.Tensor:
            with tf.GradientTape() as tape:
                logits = forward()
                loss = tf.reduce_mean(getattr(losses, term)(self.labels, logits, **maps))
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return logits[..., -1] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]

        truth = self.labels[..., 0] > 0
        for _ in range(300):
            predicted = step().numpy() > 0
            if np.array_equal(predicted, truth):
                return
        pytest.fail(f"IoU {(predicted & truth).sum() / (predicted | truth).sum():.3f} after 300 steps")

    @pytest.mark.parametrize("term", TERMS)
    def test_with_a_logit_for_each_voxel(self, term: str) -> None:
        channels = 2 if term in SOFTMAX_TERMS else 1
        start = tf.random.stateless_normal([1, 32, 32, 32, channels], [1, 2], stddev=0.1)
        logits = tf.Variable(start)
        self.check(term, [logits], lambda: tf.identity(logits))

    # The boundary term is missing: in shared weights, three voxels' pull is lost among 32,765.
    @pytest.mark.parametrize("term", [term for term in TERMS if term != "boundary"])
    def test_with_a_small_network(self, term: str) -> None:
        noise = np.random.default_rng(0).normal(0.0, 0.3, self.labels.shape)
        image = tf.constant(4.0 * self.labels + noise, tf.float32)
        channels = 2 if term in SOFTMAX_TERMS else 1
        first = tf.Variable(tf.random.stateless_normal([3, 3, 3, 1, 4], [1, 2], stddev=0.3))
        last = tf.Variable(tf.random.stateless_normal([4, channels], [3, 4], stddev=0.3))
        biases = [tf.Variable(tf.zeros([4])), tf.Variable(tf.zeros([channels]))]

        def forward() -> tf.Tensor:
            hidden = tf.nn.leaky_relu(tf.nn.conv3d(image, first, [1] * 5, "SAME") + biases[0])
            return hidden @ last + biases[1]

        self.check(term, [first, last, *biases], forward)
