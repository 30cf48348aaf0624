"""The page of a comparison, from a comparison.json written by hand."""

from __future__ import annotations

import re

import pytest
from report_fixture import SCRIPT

from segment.errors import InputError
from segment.evaluation.compare_page import difference_chart, figure_lines, write_comparison
from segment.evaluation.page import DASH, page_labels

LABELS = page_labels("en")


def figure(first, second, interval=None):
    difference = None if first is None or second is None else second - first
    return {"first": first, "second": second, "difference": difference, "interval": interval}


def lesion(number, side, **changes):
    row = {
        "case_id": "case_1",
        "class": "lesion",
        "lesion_id": number,
        "volume_mm3": 10.0 * number,
        "size_bin": "10-50",
        "centroid_world_mm": [1.0, -2.0, 3.0],
        "iou_first": None,
        "iou_second": None,
    }
    return row | {f"iou_{side}": 0.5} | changes


def comparison(**changes):
    counts = {"both": 5, "first_only": 1, "second_only": 2, "neither": 3}
    return {
        "first": "runs/a",
        "second": SCRIPT,
        "n_cases": 8,
        "figures": {
            "small_lesion_recall": figure(0.5, 0.75, [0.1, 0.4]),
            "recall": figure(0.75, 0.5, [-0.4, -0.1]),
            "precision": figure(None, 0.5),
            "fp_per_scan": figure(3.0, 1.0, [-3.0, -1.0]),
            "iou10.10-50": figure(0.5, 0.6, [-0.1, 0.3]),
            "macro.hd95_mm": figure(2.0, 5.0, [1.0, 5.0]),
        },
        "lesions": {"all": counts, "small": counts, "10-50": counts},
        "found_by_first_only": [lesion(1, "first")],
        "found_by_second_only": [lesion(2, "second", case_id=SCRIPT), lesion(3, "second")],
        "left_out": ["case_9"],
    } | changes


def page_of(path, values, language="en"):
    write_comparison(path / "comparison.html", comparison=values, language=language)
    return (path / "comparison.html").read_text(encoding="utf-8")


class TestFigures:
    def test_better_and_worse_know_which_way_is_up(self):
        verdicts = {line.key: line.verdict for line in figure_lines(comparison(), LABELS)}
        assert verdicts == {
            "small_lesion_recall": "better",
            "recall": "worse",
            "precision": "unclear",  # no interval
            "fp_per_scan": "better",  # fewer
            "iou10.10-50": "unclear",  # the interval holds 0
            "macro.hd95_mm": "worse",  # longer
        }

    @pytest.mark.parametrize(("n_cases", "verdict"), [(5, "few"), (6, "better")])
    def test_few_cases_prove_nothing(self, n_cases, verdict):
        first = next(iter(figure_lines(comparison(n_cases=n_cases), LABELS)))
        assert (first.key, first.verdict) == ("small_lesion_recall", verdict)
        figures = {"macro.iou": figure(0.5, 0.75, [0.1, 0.3]) | {"n": n_cases, "of": 8}}
        (line,) = figure_lines(comparison(figures=figures), LABELS)
        assert line.verdict == verdict

    def test_as_printed(self):
        lines = {line.key: line for line in figure_lines(comparison(), LABELS)}
        assert (lines["recall"].change, lines["recall"].bounds) == ("-0.250", "-0.400 … -0.100")
        assert (lines["precision"].change, lines["precision"].bounds) == (DASH, DASH)

    def test_the_chart_has_short_names(self):
        figures = {"macro.iou": figure(0.5, 0.75, [0.1, 0.3]) | {"n": 3, "of": 4}}
        (line,) = figure_lines(comparison(figures=figures), LABELS)
        assert line.name == "IoU, mean over cases (where both have it: 3 of 4 cases)"
        assert ">IoU, mean over cases<" in str(difference_chart([line], "chart"))

    def test_chart_is_symmetric_about_zero(self):
        lines = [line for line in figure_lines(comparison(), LABELS) if line.key == "iou10.10-50"]
        svg = difference_chart(lines, "name")
        grid = [float(x) for x in re.findall(r'<line[^>]* x1="([\d.]+)"', svg)]
        point = float(re.findall(r'<circle[^>]* cx="([\d.]+)"', svg)[0])
        # The axis reaches 0.3, the largest bound, on both sides; 0.1 stands a third of the way from its middle.
        assert point == pytest.approx(grid[2] + (grid[4] - grid[2]) / 3, abs=0.1)

    def test_chart_without_any_difference(self):
        assert "<svg" in difference_chart([], "name")

    def test_two_cases_that_agree_prove_nothing(self):
        figures = {"small_lesion_recall": figure(0.5, 0.75, [0.25, 0.25])}
        (line,) = figure_lines(comparison(figures=figures), LABELS)
        assert line.verdict == "no_spread"


class TestPage:
    def test_headline(self, tmp_path):
        text = page_of(tmp_path, comparison())
        assert "Small-lesion recall 50% in the first, 75% in the second: +25.0 points" in text
        assert "(95% interval +10.0 to +40.0)" in text

    def test_without_small_lesions(self, tmp_path):
        figures = comparison()["figures"] | {"small_lesion_recall": figure(None, None)}
        assert "There are no small lesions to compare." in page_of(tmp_path, comparison(figures=figures))

    def test_names_are_text(self, tmp_path):
        text = page_of(tmp_path, comparison())
        assert SCRIPT not in text
        assert text.count("&lt;script&gt;") == 2

    def test_lesions_that_only_one_finds_the_largest_first(self, tmp_path):
        text = page_of(tmp_path, comparison())
        table = text[text.index('<table id="only-table"') :]
        assert re.findall(r'<td class="t">(L\d|first|second)<', table) == [
            "L3",
            "second",
            "L2",
            "second",
            "L1",
            "first",
        ]

    def test_where_both_find_the_same_there_is_no_empty_table(self, tmp_path):
        text = page_of(tmp_path, comparison(found_by_first_only=[], found_by_second_only=[]))
        assert "None: both find the same lesions." in text
        assert 'id="only-table"' not in text

    def test_cases_left_out_are_named(self, tmp_path):
        assert "one of the two failed on them: case_9" in page_of(tmp_path, comparison())

    def test_the_same_bytes(self, tmp_path):
        assert page_of(tmp_path, comparison()) == page_of(tmp_path, comparison())

    def test_chinese(self, tmp_path):
        assert "两组结果的比较" in page_of(tmp_path, comparison(), "zh")

    def test_unknown_language(self, tmp_path):
        with pytest.raises(InputError, match="language 'xx'"):
            page_of(tmp_path, comparison(), "xx")
