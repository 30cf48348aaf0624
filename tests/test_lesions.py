"""Components, size bins and matching, counted by hand on visible masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.errors import InputError
from segment.evaluation import metrics
from segment.evaluation.lesions import (
    Overlaps,
    below,
    bin_names,
    bounding_box,
    find_components,
    look_up,
    match_one_to_one,
    size_bins,
)
from segment.evaluation.metrics import CaseResult, evaluate_case

CONFIG = EvaluationConfig()


def mask(text: str) -> np.ndarray:
    """Uint8 [x, y]: rows are x; every character but a dot is 1."""
    return np.array([[int(character != ".") for character in row] for row in text.split()], np.uint8)


def evaluate(
    label: np.ndarray, prediction: np.ndarray, *, spacing: tuple[float, ...] = (1, 1, 1), **options: Any
) -> CaseResult:
    shape = (*label.shape, 1)[:3]
    options.setdefault("config", CONFIG)
    return evaluate_case("case", label, prediction, Grid(shape, np.diag([*spacing, 1.0])), **options)


class TestComponents:
    def test_corners_connect_in_2d_and_3d(self) -> None:
        flat = find_components(mask("1.. .1. ..1")[..., None] > 0)
        assert flat.n_voxels.tolist() == [3]
        deep = np.zeros((3, 3, 3), bool)
        deep[0, 0, 0] = deep[1, 1, 1] = True
        assert find_components(deep).n_voxels.tolist() == [2]

    def test_the_largest_comes_first_and_ties_by_place(self) -> None:
        found = find_components(mask("1...11 ...... 1..1..")[..., None] > 0)
        assert found.n_voxels.tolist() == [2, 1, 1, 1]
        assert found.start[:, :2].tolist() == [[0, 4], [0, 0], [2, 0], [2, 3]]
        assert found.stop[0].tolist() == [1, 6, 1]
        assert found.centroid[0].tolist() == [0.0, 4.5, 0.0]

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_numbers_do_not_depend_on_the_memory_layout(self, order: Any) -> None:
        rng = np.random.default_rng(3)
        array = rng.random((9, 8, 7)) < 0.1
        found = find_components(np.asarray(array, order=order))
        assert np.array_equal(found.labels, find_components(array).labels)
        assert (found.labels.flags.f_contiguous, found.labels.flags.c_contiguous) == (order == "F", order == "C")

    @pytest.mark.parametrize("shape", [(3, 1, 1), (1, 1, 9), (3, 3, 3), (9, 5, 1), (7, 7, 7)])
    def test_the_densest_packing_of_single_voxels(self, shape: tuple[int, int, int]) -> None:
        array = np.zeros(shape, bool)
        array[::2, ::2, ::2] = True
        assert len(find_components(array)) == array.sum()

    @pytest.mark.parametrize("shape", [(0, 0, 0), (4, 4, 4), (5, 1, 1)])
    def test_an_empty_mask_has_none(self, shape: tuple[int, int, int]) -> None:
        found = find_components(np.zeros(shape, bool))
        assert len(found) == 0
        assert found.labels.shape == shape
        assert not found.labels.any()

    def test_bounding_box(self) -> None:
        array = np.zeros((5, 6, 7), np.uint8)
        assert bounding_box(array) is None
        array[1, 2, 3] = array[3, 2, 5] = 2
        assert bounding_box(array) == (slice(1, 4), slice(2, 3), slice(3, 6))

    def test_look_up_is_indexing(self) -> None:
        labels = np.asfortranarray(np.arange(24, dtype=np.uint16).reshape(2, 3, 4) % 5)
        table = np.array([7, 3, 0, 9, 1], np.uint8)
        assert np.array_equal(look_up(table, labels), table[labels])


class TestSizeBins:
    def test_names(self) -> None:
        assert bin_names((10.0, 50.0, 200.0)) == ["<=10", "10-50", "50-200", ">200"]
        assert bin_names((2.5,)) == ["<=2.5", ">2.5"]

    def test_the_upper_edge_is_inside_up_to_float32_rounding(self) -> None:
        volumes = np.array([10.0, 10.000009, 10.00002, 50.0, 200.0001, 200.1])
        assert size_bins(volumes, (10.0, 50.0, 200.0)).tolist() == [0, 0, 1, 1, 2, 3]
        # 0.1 mm isotropic in float32: 10,000 voxels are 10 mm3 and a little more.
        voxel_mm3 = float(np.float32(0.1)) ** 3
        assert size_bins(np.array([10_000, 10_001]) * voxel_mm3, (10.0,)).tolist() == [0, 1]

    def test_below_leaves_the_limit_itself(self) -> None:
        assert below(np.array([2.9, 2.9999999, 3.0]), 3.0).tolist() == [True, False, False]

    def test_under_resolved_is_less_than_four_voxels(self) -> None:
        ones = np.ones((2, 2, 2), np.uint8)
        assert evaluate(ones, ones, spacing=(1, 1, 2.5)).case["under_resolved"] == []
        assert evaluate(ones, ones, spacing=(1, 1, 2.6)).case["under_resolved"] == ["<=10"]


def overlaps(*rows: tuple[int, int, float]) -> Overlaps:
    gt, pred, iou = zip(*rows, strict=True)
    return Overlaps(np.array(gt), np.array(pred), np.ones(len(rows), np.int64), np.array(iou, float))


class TestMatching:
    def matched(self, *rows: tuple[int, int, float]) -> list[tuple[int, int]]:
        found = match_one_to_one(overlaps(*rows), min_iou=0.1)
        return list(zip(found.gt.tolist(), found.pred.tolist(), strict=True))

    def test_greedy_would_be_wrong(self) -> None:
        # Greedy takes 0.5 and stops; the two others have 0.4 + 0.4.
        assert self.matched((0, 0, 0.5), (0, 1, 0.4), (1, 0, 0.4)) == [(0, 1), (1, 0)]

    def test_one_large_iou_beats_two_small_ones(self) -> None:
        assert self.matched((0, 0, 0.5), (0, 1, 0.2), (1, 0, 0.2)) == [(0, 0)]

    def test_equal_totals_take_more_matches(self) -> None:
        assert self.matched((0, 0, 0.5), (0, 1, 0.25), (1, 0, 0.25)) == [(0, 1), (1, 0)]

    def test_the_bound_is_inclusive_with_a_tolerance(self) -> None:
        assert self.matched((0, 0, 0.1), (1, 1, 0.1 - 5e-10), (2, 2, 0.1 - 2e-9)) == [(0, 0), (1, 1)]

    def test_blocks_are_solved_apart(self) -> None:
        rows = [(3, 4, 0.9), (0, 0, 0.5), (0, 1, 0.4), (1, 0, 0.4), (5, 7, 0.3), (5, 8, 0.2)]
        assert self.matched(*sorted(rows)) == [(0, 1), (1, 0), (3, 4), (5, 7)]

    def test_nothing_allowed(self) -> None:
        assert self.matched((0, 0, 0.05)) == []


class TestCounts:
    def test_iou_of_exactly_a_tenth_is_found(self) -> None:
        # 1 shared voxel of 10: 6 in the label, 5 in the prediction.
        result = evaluate(mask("111111...."), mask(".....11111"))
        assert result.case["iou10"]["tp"] == 1
        assert result.lesions[0]["matched_iou"] == pytest.approx(0.1)
        # 1 of 11.
        assert evaluate(mask("111111....."), mask(".....111111")).case["iou10"]["tp"] == 0

    def test_one_blob_over_everything_is_found_by_any_alone(self) -> None:
        label, blob = mask("1...1 ..... 1...1"), mask("11111 11111 11111")
        case = evaluate(label, blob).case
        assert case["any"] == {"tp_gt": 4, "fn": 0, "tp_pred": 1, "fp": 0}
        assert (case["iou10"]["tp"], case["iou10"]["fp"], case["iou10"]["fn"]) == (0, 1, 4)
        assert (case["n_split"], case["n_merge"], case["fp_touching"]) == (0, 1, 1)

    def test_a_split_lesion_has_one_match_and_one_touching_false_positive(self) -> None:
        case = evaluate(mask("1111111"), mask("111.111")).case
        assert (case["iou10"]["tp"], case["iou10"]["fp"], case["n_split"], case["fp_touching"]) == (1, 1, 1, 1)
        assert (case["iou10"]["recall"], case["iou10"]["precision"]) == (1.0, 0.5)
        assert case["iou10"]["f1"] == pytest.approx(2 / 3)

    def test_false_positives_are_binned_by_their_own_volume(self) -> None:
        case = evaluate(mask("...... ......"), mask("1.111. ..111."), spacing=(1, 1, 2)).case
        assert case["fp_by_bin"]["iou10"] == {"<=10": 1, "10-50": 1, "50-200": 0, ">200": 0}
        assert case["fp_by_bin"]["any"] == case["fp_by_bin"]["iou10"]

    def test_small_lesion_recall(self) -> None:
        label = mask("11..1... ........ 1.......")
        # Of 50, 25 and 25 mm3 at 25 mm3 a voxel all are small; the first is found.
        assert evaluate(label, mask("11...... ........ ........"), spacing=(5, 5, 1)).case[
            "small_lesion_recall"
        ] == pytest.approx(1 / 3)
        # At 50 mm3 a voxel the first is not small any more.
        assert evaluate(label, mask("11...... ........ ........"), spacing=(5, 5, 2)).case["small_lesion_recall"] == 0.0
        assert evaluate(mask("11"), mask("11"), spacing=(5, 5, 2)).case["small_lesion_recall"] is None

    @pytest.mark.parametrize(
        ("label", "prediction", "status", "dice", "surface"),
        [
            ("1.", "..", "pred_empty", 0.0, 0.0),
            ("..", "1.", "gt_empty", 0.0, 0.0),
            ("..", "..", "both_empty", None, None),
        ],
    )
    def test_empty_masks(
        self, label: str, prediction: str, status: str, dice: float | None, surface: float | None
    ) -> None:
        case = evaluate(mask(label), mask(prediction)).case
        assert (case["status"], case["dice"], case["iou"], case["surface_dice_1mm"]) == (status, dice, dice, surface)
        assert case["hd95_mm"] is None
        assert "empty" in case["undefined"]["hd95_mm"]
        assert (case["iou10"]["recall"] is None) == (case["n_gt"] == 0)
        assert (case["iou10"]["precision"] is None) == (case["n_pred"] == 0)

    def test_distances_can_be_left_out(self) -> None:
        case = evaluate(mask("11"), mask("11"), distances=False).case
        assert case["undefined"] == {"hd95_mm": "not computed", "surface_dice_1mm": "not computed"}
        assert case["dice"] == 1.0


class TestMinimumSize:
    CONFIG = EvaluationConfig(min_lesion_mm3=2.0)

    def test_small_label_lesions_are_neither_found_nor_missed(self) -> None:
        result = evaluate(mask("111...1 ......."), mask("111.... ......."), config=self.CONFIG)
        case = result.case
        assert (case["n_gt"], case["n_ignored_gt"], case["iou10"]["fn"], case["dice"]) == (1, 1, 0, 1.0)
        ignored = result.lesions[1]
        assert (ignored["n_voxels"], ignored["detected_any"], ignored["detected_iou10"]) == (1, None, None)

    def test_a_prediction_over_ignored_lesions_only_is_no_false_positive(self) -> None:
        result = evaluate(mask("111...1"), mask("111..11"), config=self.CONFIG)
        case = result.case
        assert (case["n_pred"], case["iou10"]["fp"], case["any"]["fp"], case["n_ignored_pred"]) == (1, 0, 0, 1)
        assert case["dice"] == 1.0
        assert [row["is_fp"] for row in result.lesions if row["side"] == "pred"] == [False, False]

    def test_a_prediction_over_an_ignored_and_a_counted_lesion_counts(self) -> None:
        case = evaluate(mask("11.1"), mask("1111"), config=self.CONFIG).case
        assert (case["iou10"]["tp"], case["n_merge"], case["n_ignored_pred"]) == (1, 0, 0)

    def test_small_predicted_components_are_removed_and_counted(self) -> None:
        result = evaluate(mask("111...."), mask("1.1..11"), config=self.CONFIG)
        assert (result.case["n_pred"], result.case["n_removed_pred"], result.case["pred_voxels"]) == (1, 2, 2)
        assert [row["n_voxels"] for row in result.lesions if row["side"] == "pred"] == [2]

    def test_only_ignored_lesions_is_an_empty_label(self) -> None:
        assert evaluate(mask("1..."), mask("...."), config=self.CONFIG).case["status"] == "both_empty"


class TestRows:
    def test_places_in_the_world(self) -> None:
        affine = np.array([[0, -2, 0, 10], [3, 0, 0, -5], [0, 0, 4, 1], [0, 0, 0, 1]], float)
        label = np.zeros((6, 6, 6), np.uint8)
        label[1:3, 2, 4:6] = 1
        row = evaluate_case("c", label, label, Grid((6, 6, 6), affine), config=CONFIG).lesions[0]
        # The centre is voxel (1.5, 2, 4.5): x = 10 - 2 * 2, y = -5 + 3 * 1.5, z = 1 + 4 * 4.5.
        assert row["centroid_world_mm"] == [6.0, -0.5, 19.0]
        assert row["bbox"] == [1, 2, 4, 3, 3, 6]
        assert (row["volume_mm3"], row["touches_border"]) == (pytest.approx(4 * 24), True)

    def test_a_2d_slice_does_not_touch_the_border_by_its_thickness(self) -> None:
        assert [row["touches_border"] for row in evaluate(mask("1.. ... ..."), mask("... .1. ...")).lesions] == [
            True,
            False,
        ]

    def test_matches_name_each_other(self) -> None:
        rows = evaluate(mask("11..1"), mask("1...1")).lesions
        assert [(row["side"], row["lesion_id"], row["matched_id"]) for row in rows] == [
            ("gt", 1, 1), ("gt", 2, 2), ("pred", 1, 1), ("pred", 2, 2)
        ]  # fmt: skip
        assert [row["best_iou"] for row in rows] == [0.5, 1.0, 0.5, 1.0]

    def test_the_greatest_probability_inside(self) -> None:
        probability = np.array([[0.3, 0.9, 0.8, 0.0, 0.2]], np.float32)
        rows = evaluate(mask("11..1"), mask("..1.."), probability=probability).lesions
        assert [row["score_max"] for row in rows] == pytest.approx([0.9, 0.2, 0.8])

    def test_other_classes_are_background(self) -> None:
        label = np.array([[1, 2, 0, 1]], np.uint8)
        result = evaluate(label, label, value=2, class_name="core")
        assert (result.case["n_gt"], result.case["class"], result.lesions[0]["class"]) == (1, "core", "core")


class TestOtherInput:
    def test_shapes_must_agree(self) -> None:
        with pytest.raises(InputError, match=r"case case: expected the prediction .*\(2, 2, 1\), found \(2, 3\)"):
            evaluate(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))

    def test_very_many_components_are_said_and_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metrics, "MANY_COMPONENTS", 3)
        result = evaluate(mask("1.1.1.1.1"), mask("1........"))
        assert result.case["n_gt"] == 5
        assert len(result.notes) == 1
        assert result.notes[0].startswith("the label has 5 components, more than 3")

    def test_layouts_may_differ(self) -> None:
        rng = np.random.default_rng(5)
        label, prediction = (rng.random((7, 8, 9)) < 0.1 for _ in range(2))
        found = evaluate(np.asfortranarray(label), prediction).case
        assert found == evaluate(label, prediction).case
