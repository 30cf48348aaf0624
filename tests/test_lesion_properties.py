"""The evaluation against the plain-Python oracle on random masks, and what must not change under symmetries."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import lesion_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.evaluation.distances import surface_table
from segment.evaluation.metrics import CaseResult, evaluate_case

CONFIG = EvaluationConfig()
PAIRS = settings(max_examples=500, deadline=None, derandomize=True, database=None)
FEWER = settings(PAIRS, max_examples=60)


@st.composite
def pairs(draw: st.DrawFn, axes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A label, a prediction (on its own, or a changed and shifted label), and an affine that flips and turns."""
    longest = 6 if axes == 3 else 9
    shape = tuple(draw(st.lists(st.integers(2, longest), min_size=axes, max_size=axes)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.03, 0.1, 0.2]))
    label = rng.random(shape) < density
    if draw(st.booleans()):
        label = label | np.roll(label, 1, axis=0)
    prediction = rng.random(shape) < draw(st.sampled_from([0.0, 0.05, 0.15]))
    if draw(st.booleans()):
        shift = draw(st.lists(st.integers(-1, 1), min_size=axes, max_size=axes))
        kept = np.roll(label, shift, axis=tuple(range(axes))) & (rng.random(shape) < 0.8)
        prediction = kept | (rng.random(shape) < 0.02)
    spacing = rng.uniform(0.4, 4.0, 3).astype(np.float32).astype(np.float64)
    affine = np.eye(4)
    affine[:3, :3] = rng.choice([-1.0, 1.0], 3) * spacing * np.eye(3)
    affine[:3, :3] = np.roll(affine[:3, :3], rng.integers(0, 3), axis=0)
    if draw(st.booleans()):  # oblique: axes stay at right angles, as scanners write them
        affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ affine[:3, :3]
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return label.astype(np.uint8), prediction.astype(np.uint8), affine


def evaluate(label: np.ndarray, prediction: np.ndarray, affine: np.ndarray) -> CaseResult:
    shape = (*label.shape, 1)[:3]
    return evaluate_case("case", label, prediction, Grid(shape, affine), config=CONFIG)


def surface_dice(label: np.ndarray, prediction: np.ndarray, spacing: np.ndarray) -> float:
    """By looking at every pair of surface elements; the areas come from the table, which has tests of its own."""
    table = surface_table(tuple(float(side) for side in spacing))
    sides = [
        {
            place: table[sum(1 << bit for bit, inside in enumerate(corners) if inside)]
            for place, corners in oracle.cells(mask).items()
        }
        for mask in (label, prediction)
    ]
    within = 0.0
    for own, other in (sides, sides[::-1]):
        within += sum(
            area
            for place, area in own.items()
            if min(oracle.distance_mm(place, near, spacing) for near in other) <= 1.000001
        )
    return within / sum(sum(side.values()) for side in sides)


def check(label: np.ndarray, prediction: np.ndarray, affine: np.ndarray) -> None:
    result = evaluate(label, prediction, affine)
    case = result.case
    gt, pred = oracle.components(label), oracle.components(prediction)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    voxel_mm3 = float(spacing.prod())  # the axes are at right angles
    assert (case["n_gt"], case["n_pred"]) == (len(gt), len(pred))
    hit = [any(one & other for other in pred) for one in gt]
    true = [any(one & other for other in gt) for one in pred]
    assert case["any"] == {
        "tp_gt": sum(hit),
        "fn": len(gt) - sum(hit),
        "tp_pred": sum(true),
        "fp": len(pred) - sum(true),
    }
    total, count = oracle.best_matching(gt, pred)
    assert case["iou10"]["tp"] == count
    assert (case["iou10"]["fp"], case["iou10"]["fn"]) == (len(pred) - count, len(gt) - count)
    assert (case["mean_matched_iou"] or 0.0) * count == pytest.approx(float(total))
    assert case["n_split"] == sum(sum(bool(one & other) for other in pred) > 1 for one in gt)
    assert case["n_merge"] == sum(sum(bool(one & other) for other in gt) > 1 for one in pred)
    bins = Counter(oracle.small_bin(len(one) * voxel_mm3) for one in gt)
    hits = Counter(oracle.small_bin(len(one) * voxel_mm3) for one, found in zip(gt, hit, strict=True) if found)
    for name, entry in case["recall_by_bin"]["any"].items():
        assert (entry["n"], entry["hit"]) == (bins[name], hits[name])
    first, second = set().union(*gt), set().union(*pred)
    if first or second:
        assert case["dice"] == pytest.approx(2 * len(first & second) / (len(first) + len(second)))
        assert case["iou"] == pytest.approx(len(first & second) / len(first | second))
    else:
        assert case["dice"] is case["iou"] is case["surface_dice_1mm"] is None
    check_distances(case, label, prediction, spacing[: label.ndim])


def check_distances(case: dict[str, Any], label: np.ndarray, prediction: np.ndarray, spacing: np.ndarray) -> None:
    expected = oracle.hd95_mm(label, prediction, spacing)
    assert (case["hd95_mm"] is None) == (expected is None)
    if expected is not None:
        assert case["hd95_mm"] == pytest.approx(expected)
        assert case["surface_dice_1mm"] == pytest.approx(surface_dice(label, prediction, spacing))


class TestAgainstTheOracle:
    @PAIRS
    @given(pairs(3))
    def test_3d(self, made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        check(*made)

    @PAIRS
    @given(pairs(2))
    def test_2d(self, made: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        check(*made)


def without_names(case: dict[str, Any]) -> dict[str, Any]:
    """What must be the same however the axes lie: everything but shape and spacing, rounded."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return round(value, 9) if isinstance(value, float) else value

    return {key: rounded(value) for key, value in case.items() if key not in ("shape", "spacing_mm")}


class TestSymmetries:
    @FEWER
    @given(pairs(3), st.permutations(range(3)), st.lists(st.booleans(), min_size=3, max_size=3))
    def test_flips_and_permutations_change_nothing(
        self, made: tuple[np.ndarray, np.ndarray, np.ndarray], order: list[int], flips: list[bool]
    ) -> None:
        label, prediction, affine = made
        turn = np.eye(4)[:, [*order, 3]]
        turned = [np.transpose(mask, order) for mask in (label, prediction)]
        for axis in itertools.compress(range(3), flips):
            flip = np.eye(4)
            flip[axis, axis], flip[axis, 3] = -1, turned[0].shape[axis] - 1
            turn = turn @ flip
            turned = [np.flip(mask, axis) for mask in turned]
        before, after = evaluate(label, prediction, affine), evaluate(*turned, affine @ turn)
        assert without_names(before.case) == without_names(after.case)
        for side in ("gt", "pred"):
            places = [
                sorted(
                    (row["n_voxels"], *np.round(row["centroid_world_mm"], 6))
                    for row in result.lesions
                    if row["side"] == side
                )
                for result in (before, after)
            ]
            assert np.allclose(*places, atol=1e-5) if places[0] else places[1] == []

    @FEWER
    @given(pairs(3))
    def test_swapping_both_masks_swaps_misses_and_false_positives(
        self, made: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> None:
        label, prediction, affine = made
        here, there = evaluate(label, prediction, affine).case, evaluate(prediction, label, affine).case
        for name in ("iou", "dice", "hd95_mm", "surface_dice_1mm", "mean_matched_iou"):
            assert here[name] == (None if there[name] is None else pytest.approx(there[name]))
        assert [here["iou10"][key] for key in ("tp", "fp", "fn")] == [there["iou10"][key] for key in ("tp", "fn", "fp")]
        assert (here["n_split"], here["n_merge"]) == (there["n_merge"], there["n_split"])

    @FEWER
    @given(pairs(3))
    def test_a_far_away_false_positive_changes_only_what_it_should(
        self, made: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> None:
        label, prediction, affine = made
        label, prediction = (np.pad(mask, ((0, 8), (0, 0), (0, 0))) for mask in (label, prediction))
        more = prediction.copy()
        more[-2:, 0, 0] = 1
        before, after = evaluate(label, prediction, affine).case, evaluate(label, more, affine).case
        for name in (
            "n_gt",
            "gt_voxels",
            "shared_voxels",
            "n_split",
            "n_merge",
            "fp_touching",
            "small_lesion_recall",
            "recall_by_bin",
        ):
            assert before[name] == after[name], name
        for name in ("tp", "fn", "recall"):
            assert before["iou10"][name] == after["iou10"][name]
        assert (before["any"]["tp_gt"], before["any"]["tp_pred"]) == (after["any"]["tp_gt"], after["any"]["tp_pred"])
        assert after["n_pred"] == before["n_pred"] + 1
        assert after["pred_voxels"] == before["pred_voxels"] + 2
        for way in ("any", "iou10"):
            assert after[way]["fp"] == before[way]["fp"] + 1
            assert sum(after["fp_by_bin"][way].values()) == sum(before["fp_by_bin"][way].values()) + 1
