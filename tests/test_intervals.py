"""Intervals that have no width, and what the page says in their place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_fixture import make_report

from segment.evaluation.bootstrap import is_spread, wilson_interval
from segment.evaluation.page import DASH


class TestWilson:
    def test_all_and_none(self) -> None:
        # By hand: 10 / (10 + 1.959964^2) = 10 / 13.841459.
        assert wilson_interval(10, 10) == (pytest.approx(0.7224672), 1.0)
        assert wilson_interval(0, 10) == (0.0, pytest.approx(1 - 0.7224672))

    def test_half(self) -> None:
        # Symmetric, and half its width is 1.959964 * sqrt(0.25 / 4 + 3.841459 / 64) / (1 + 3.841459 / 4).
        low, high = wilson_interval(2, 4)
        assert low + high == pytest.approx(1.0)
        assert high - 0.5 == pytest.approx(1.959964 * (0.0625 + 3.841459 / 64) ** 0.5 / 1.96036475)


def test_equal_bounds_say_nothing() -> None:
    assert is_spread([0.5, 0.6])
    assert not is_spread([1.0, 1.0])
    assert not is_spread(None)


@pytest.fixture(scope="module")
def made():
    return make_report(["case_0", "case_1"], side=32, lesions=3)


class TestPage:
    def words(self, made, tmp_path: Path, interval: list[float] | None) -> str:
        micro = {**made.summary["micro"], "small_lesion_recall": 1.0, "n_small": 10, "n_small_found": 10}
        micro["intervals"] = {**micro["intervals"], "small_lesion_recall": interval, "fp_per_scan": [0.0, 0.0]}
        bins = {name: {**entry, "interval": [1.0, 1.0]} for name, entry in micro["recall_by_bin"]["iou10"].items()}
        micro["recall_by_bin"] = {**micro["recall_by_bin"], "iou10": bins}
        page = replace(made, summary={**made.summary, "micro": micro}).write(tmp_path / "report.html")
        return re.sub(r"<[^>]+>", " ", page)

    @pytest.mark.parametrize("interval", [[1.0, 1.0], None])
    def test_all_draws_agree_or_there_is_one_case(self, made, tmp_path, interval) -> None:
        words = self.words(made, tmp_path, interval)
        assert "100% to 100%" not in words
        assert "for 10 independent lesions the 95% interval would be 72% to 100%" in words
        assert f"95% if lesions were independent: 72%{DASH}100%" in words
        assert "no spread between these cases" in words
        assert "the interval is that of independent lesions (Wilson)" in words

    def test_of_two_cases_the_wider_interval_is_shown(self, made, tmp_path) -> None:
        words = self.words(made, tmp_path, [0.9, 1.0])
        assert "90% to 100%" not in words
        assert "for 10 independent lesions the 95% interval would be 72% to 100%" in words

    def test_an_interval_with_a_width_is_shown_as_it_is(self, made, tmp_path) -> None:
        words = self.words(made, tmp_path, [0.5, 1.0])
        assert "(95% interval 50% to 100%)" in words
        assert "for 10 independent lesions" not in words
