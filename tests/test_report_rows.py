"""Order and words of the report's tables, from rows written by hand; charts against arithmetic on their frame."""

from __future__ import annotations

import re

import pytest

from segment.evaluation import charts
from segment.evaluation.charts import CasePoint, FrocPoint, RecallBar, percent
from segment.evaluation.page import DASH, page_labels
from segment.evaluation.report_rows import case_anchors, case_table, lesion_table

LABELS = page_labels("en")


def lesion(**changes):
    """A missed label lesion of 27 mm3 that no prediction touches."""
    row = {
        "case_id": "a",
        "class": "lesion",
        "side": "gt",
        "lesion_id": 1,
        "volume_mm3": 27.0,
        "size_bin": "10-50",
        "centroid_world_mm": [1.0, -2.04, 3.0],
        "bbox": [0, 0, 0, 3, 3, 3],
        "best_iou": 0.0,
        "matched_iou": None,
        "detected_any": False,
        "detected_iou10": False,
        "score_max": None,
        "is_fp": None,
        "fp_touching": None,
    }
    return row | changes


def predicted(**changes):
    return lesion(side="pred", detected_any=None, detected_iou10=None, is_fp=True, fp_touching=False) | changes


def rows(*lesions, threshold=0.5):
    return lesion_table(lesions, {"a": "case-1"}, threshold=threshold)


class TestLesionTable:
    @pytest.mark.parametrize(
        ("changes", "outcome", "reason"),
        [
            ({}, "missed", ""),
            ({"score_max": 0.049}, "missed", "reason_unseen"),
            ({"score_max": 0.05}, "missed", "reason_threshold"),
            ({"score_max": 0.499}, "missed", "reason_threshold"),
            ({"score_max": 0.5}, "missed", "reason_removed"),
            ({"score_max": 0.9, "detected_any": True}, "missed", "reason_overlap"),
            ({"detected_any": True, "detected_iou10": True, "matched_iou": 0.4}, "found", ""),
            ({"detected_any": None, "detected_iou10": None}, "ignored", ""),
        ],
    )
    def test_why_a_lesion_was_missed(self, changes, outcome, reason):
        (row,) = rows(lesion(**changes))
        assert (row.outcome, row.reason) == (outcome, reason)

    def test_an_unknown_threshold_blames_none(self):
        (row,) = rows(lesion(score_max=0.9), threshold=None)
        assert row.reason == "reason_seen"

    @pytest.mark.parametrize(("touching", "reason"), [(True, "reason_touching"), (False, "reason_apart")])
    def test_false_positives(self, touching, reason):
        (row,) = rows(predicted(fp_touching=touching))
        assert (row.outcome, row.reason, row.name) == ("false_positive", reason, "P1")

    def test_matched_and_ignored_predictions_have_no_line(self):
        assert rows(predicted(is_fp=False, matched_iou=0.4)) == []

    def test_iou_of_the_match_or_else_the_best(self):
        found = lesion(detected_any=True, detected_iou10=True, matched_iou=0.4, best_iou=0.6)
        assert [row.iou for row in rows(found, lesion(lesion_id=2, best_iou=0.07))] == [0.07, 0.4]

    def test_misses_first_and_the_largest_first(self):
        found = {"detected_any": True, "detected_iou10": True, "matched_iou": 0.4}
        names = [
            row.name
            for row in rows(
                lesion(lesion_id=1, volume_mm3=500.0, **found),
                lesion(lesion_id=2, volume_mm3=5.0),
                lesion(lesion_id=3, volume_mm3=50.0),
                predicted(lesion_id=4, volume_mm3=900.0),
            )
        ]
        assert names == ["L3", "L2", "P4", "L1"]

    def test_coordinates_as_typed_into_a_viewer(self):
        (row,) = rows(lesion())
        assert row.point == "1.0, -2.0, 3.0"


def case(name, tp, fp, fn, iou=0.5, **changes):
    both = 2 * tp + fp + fn
    return {
        "case_id": name,
        "class": "lesion",
        "status": "ok",
        "n_gt": tp + fn,
        "n_small": 3,
        "n_small_found": 1,
        "iou10": {"tp": tp, "fp": fp, "fn": fn, "f1": 2 * tp / both if both else None},
        "iou": iou,
        "dice": None,
        "hd95_mm": None,
        "gt_mm3": 10.0,
        "pred_mm3": 12.0,
    } | changes


class TestCaseTable:
    def test_worst_first(self):
        # F1: good 2*4/(8+1+1) = 0.8; poor 2/(2+3+5) = 0.2; nothing has no lesion on either side.
        table = case_table([case("nothing", 0, 0, 0, iou=None), case("good", 4, 1, 1), case("poor", 1, 3, 5)])
        assert [row.case_id for row in table] == ["poor", "good", "nothing"]

    def test_equal_f1_by_errors_then_by_iou(self):
        table = case_table([case("few", 0, 1, 1), case("many", 0, 4, 4), case("flat", 0, 1, 1, iou=0.1)])
        assert [row.case_id for row in table] == ["many", "flat", "few"]

    def test_small_lesions_missed(self):
        assert case_table([case("a", 1, 1, 2)])[0].small_missed == 2

    def test_anchors_are_numbers_in_the_order_of_the_cases(self):
        table = [case("<b>", 1, 0, 0), case("a", 1, 0, 0), case("a", 1, 0, 0, **{"class": "other"})]
        assert case_anchors(table) == {"<b>": "case-1", "a": "case-2"}


def attribute(svg, element, name):
    return [float(value) for value in re.findall(rf'<{element}[^>]* {name}="([\d.]+)"', svg)]


class TestCharts:
    # The plot is the drawing's height less the room above and below it.
    PLOT = charts.HEIGHT - charts.TOP - charts.BOTTOM

    def test_recall_bars_and_their_figures(self):
        bars = [
            RecallBar("≤10", 1, 4, 0.25, 0.0, 0.5, 0.75, under_resolved=True),
            RecallBar(">10", 0, 0, None, None, None, None, under_resolved=False),
        ]
        svg = charts.recall_chart(bars, LABELS)
        assert attribute(svg, "rect", "height") == pytest.approx([self.PLOT * 0.25], abs=0.06)
        assert ">25%<" in svg
        assert ">1/4<" in svg
        assert "≤10 †" in svg
        assert "no lesions" in svg

    def test_histogram_with_its_misses(self):
        svg = charts.histogram_chart([4, 0, 1], 3, LABELS)
        # Of an axis up to 4: the first bin, the misses in it, an empty bin, one lesion.
        heights = [self.PLOT, self.PLOT * 3 / 4, 0, self.PLOT / 4]
        assert attribute(svg, "rect", "height") == pytest.approx(heights, abs=0.06)

    def test_empty_histogram(self):
        assert "<svg" in charts.histogram_chart([0] * 10, 0, LABELS)

    def test_froc_is_logarithmic_and_marks_the_operating_point(self):
        points = [FrocPoint(0.9, 0.0, 0.0, None), FrocPoint(0.5, 1.0, 0.5, 0.25), FrocPoint(0.1, 20.0, 1.0, None)]
        svg = charts.froc_chart(points, points[1], LABELS)
        width = charts.WIDTH - charts.LEFT - charts.RIGHT
        left, middle, right = charts.LEFT, charts.LEFT + width / 2, charts.LEFT + width
        # 1 is the middle of 1/8 to 8; rates beyond the axis sit at its ends. All lesions, small ones, then both rings.
        assert attribute(svg, "circle", "cx") == pytest.approx([left, middle, right, middle, middle, middle], abs=0.06)
        heights = [charts.TOP + self.PLOT * share for share in (1, 0.5, 0, 0.75, 0.5, 0.75)]
        assert attribute(svg, "circle", "cy") == pytest.approx(heights, abs=0.06)
        assert "Operating point 0.5" in svg

    def test_cases_from_worst_to_best_and_undefined_last(self):
        points = [CasePoint("good", 0.9, "case-1"), CasePoint("none", None, "case-2"), CasePoint("bad", 0.1, "case-3")]
        svg = charts.case_chart(points, LABELS)
        assert re.findall(r'href="#(case-\d)"', svg) == ["case-3", "case-1", "case-2"]
        assert svg.count('class="undefined"') == 1

    def test_names_are_escaped(self):
        svg = charts.case_chart([CasePoint("<script>", 0.5, "case-1")], LABELS)
        assert "&lt;script&gt;" in svg
        assert "<script>" not in svg

    @pytest.mark.parametrize(
        ("share", "text"), [(None, DASH), (0.0, "0%"), (0.001, "1%"), (0.666, "67%"), (0.999, "99%"), (1.0, "100%")]
    )
    def test_percent_rounds_to_all_or_none_only_where_it_is(self, share, text):
        assert percent(share) == text
