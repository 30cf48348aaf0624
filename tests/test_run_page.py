"""The page of a training run, from files written by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import ClassVar

import pytest

from segment.errors import InputError
from segment.evaluation import charts, curves
from segment.evaluation.curves import Curve, line_chart
from segment.evaluation.operating_chart import froc_points
from segment.evaluation.overlays import slice_path
from segment.evaluation.run_log import read_log
from segment.evaluation.run_page import write_run_page

METRICS = """step,loss,loss/dice,weight/dice,loss_scale,skipped,learning_rate
10,1.5,0.9,1,32768,0,0.001
20,0.75,,1,16384,1,0.0005
"""
VALIDATION = """step,small_lesion_recall,lesion_recall,fp_per_scan,dice,iou,best,note
10,,0.5,3,0.4,0.3,1,
20,0.25,0.6,2.5,0.5,0.4,1,<b>recall low</b>
30,0.125,0.6,2.5,0.5,0.4,0,
"""
MANIFEST = {
    "finished": True,
    "seconds": 90.0,
    "precision": "float32",
    "hardware": {"cpu": "A <CPU>", "cores": 2, "gpus": []},
    "peak_memory_gib": 1.5,
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "metrics.csv").write_text(METRICS, encoding="utf-8")
    (tmp_path / "validation.csv").write_text(VALIDATION, encoding="utf-8")
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("seed: 7\n", encoding="utf-8")
    return tmp_path


def page_of(run_dir: Path, language: str = "en") -> str:
    path = write_run_page(run_dir, language=language)
    assert path == run_dir / "run.html"
    return path.read_text(encoding="utf-8")


class TestPage:
    def test_the_kept_model_in_words(self, run_dir):
        # The last row marked best: step 20.
        words = "Kept model, step 20: small-lesion recall 25%, 2.50 false positives a scan, Dice 0.500"
        assert words in page_of(run_dir)

    def test_what_stands_in_it(self, run_dir):
        text = page_of(run_dir)
        for words in ("1.5 min", "float32", "1.50 GiB", "seed: 7", "Loss and its terms", "Skipped steps so far"):
            assert words in text

    def test_a_figure_that_never_changes_is_a_line_of_text(self, run_dir):
        assert "the same in every row: dice 1" in page_of(run_dir)

    def test_columns_have_names_in_words(self, run_dir):
        text = page_of(run_dir)
        headings = re.findall(r'<th scope="col"><button type="button">([^<]+)</button>', text)
        assert headings[:4] == ["Step", "Small-lesion recall", "Recall, all lesions", "False positives a scan"]
        assert "fp_per_scan" not in text
        assert text.count("<td>yes</td>") == 2

    def test_everything_is_escaped(self, run_dir):
        text = page_of(run_dir)
        assert "<b>" not in text
        assert "A &lt;CPU&gt;" in text

    def test_the_same_files_give_the_same_bytes(self, run_dir):
        assert page_of(run_dir) == page_of(run_dir)

    def test_chinese(self, run_dir):
        assert "每次扫描假阳性数" in page_of(run_dir, "zh")

    def test_a_run_that_has_not_validated(self, run_dir):
        (run_dir / "validation.csv").unlink()
        (run_dir / "manifest.json").write_text('{"finished": false}', encoding="utf-8")
        text = page_of(run_dir)
        assert "No validation yet." in text
        assert "not finished" in text

    def test_links_to_the_report_where_there_is_one(self, run_dir):
        assert 'href="validation/' not in page_of(run_dir)
        report = run_dir / "validation" / "report" / "report.html"
        report.parent.mkdir(parents=True)
        report.touch()
        assert 'href="validation/report/report.html"' in page_of(run_dir)


class TestSlices:
    def made(self, run_dir, cases, steps):
        (run_dir / "slices").mkdir()
        for case_id in cases:
            for step in range(10, 10 * steps + 1, 10):
                slice_path(run_dir, step, case_id).write_bytes(b"\x89PNG\r\n" + f"{case_id} {step}".encode())

    def test_each_validation_of_each_case(self, run_dir):
        self.made(run_dir, ["a", "<b>"], 3)
        text = page_of(run_dir)
        assert "Slices over time" in text
        assert text.count('<img src="data:image/png;base64,') == 6
        assert 'alt="&lt;b&gt; at step 20 with the outlines of label and prediction"' in text
        assert "The page shows" not in text

    def test_the_cap_is_said_and_keeps_the_first_and_the_last(self, run_dir):
        self.made(run_dir, "abcdef", 50)
        text = page_of(run_dir)
        assert text.count("<img ") == 24
        assert "The page shows 24 of 300 pictures" in text
        for step in (10, 500):
            assert f"a at step {step} " in text

    def test_what_is_no_picture_is_left_out(self, run_dir):
        self.made(run_dir, ["a"], 2)
        slice_path(run_dir, 20, "a").write_text("no picture", encoding="utf-8")
        text = page_of(run_dir)
        assert text.count("<img ") == 1
        assert "The page shows 1 of 2 pictures" in text

    def test_a_run_without_any(self, run_dir):
        assert "Slices over time" not in page_of(run_dir)


class TestOperatingPoint:
    VALUES: ClassVar = {
        "threshold": 0.35,
        "min_lesion_mm3": 3.0,
        "chosen": True,
        "notes": ["chosen on 2 validation cases: others may do worse"],
        "max_fp_per_scan": 1.0,
        "at_point": {"small_lesion_recall": 0.75, "fp_per_scan": 0.5},
        "cases": ["a", "b"],
        "counts": {
            "thresholds": [0.35, 0.5],
            "min_volumes_mm3": [0.0, 3.0],
            "n_lesions": 8,
            "n_small": 4,
            "n_scans": 2,
            "tp": [[7, 6], [5, 5]],
            "fp": [[3, 1], [1, 0]],
            "small_tp": [[3, 3], [2, 2]],
        },
    }

    def test_in_words_and_as_a_chart(self, run_dir):
        (run_dir / "operating_point.json").write_text(json.dumps(self.VALUES), encoding="utf-8")
        text = page_of(run_dir)
        assert "Chosen on 2 validation cases for at most 1 false positives a scan: threshold 0.35" in text
        assert "predictions from 3 mm³; there, small-lesion recall 75% at 0.50 false positives a scan" in text
        assert "others may do worse" in text
        assert 'aria-label="FROC: recall against false positives"' in text

    @pytest.mark.parametrize(
        ("language", "words"),
        [
            ("en", "threshold 0.35 in lesions that reach 0.9, predictions from 3 mm³"),
            ("zh", "阈值 0.35（病灶最高概率不低于 0.9），预测体积不小于 3 mm³"),  # noqa: RUF001
        ],
    )
    def test_a_peak_is_said(self, run_dir, language, words):
        (run_dir / "operating_point.json").write_text(json.dumps(self.peaked()), encoding="utf-8")
        assert words in page_of(run_dir, language)

    def test_the_curve_is_that_of_the_chosen_volume_and_peak(self):
        found = [(one.threshold, one.fp_per_scan, one.recall, one.small_recall) for one in froc_points(self.VALUES)]
        assert found == [(0.5, 0.0, 0.625, 0.5), (0.35, 0.5, 0.75, 0.75)]
        found = [(one.threshold, one.fp_per_scan, one.recall, one.small_recall) for one in froc_points(self.peaked())]
        assert found == [(0.5, 0.0, 0.5, 0.25), (0.35, 0.0, 0.625, 0.5)]

    def peaked(self):
        """VALUES with a second peak, 0.9, at which each count is one less or 0."""
        counts = dict(self.VALUES["counts"], min_peaks=[0.0, 0.9])
        for name in ("tp", "fp", "small_tp"):
            counts[name] = [[[count, max(count - 1, 0)] for count in line] for line in counts[name]]
        return self.VALUES | {"min_peak": 0.9, "counts": counts}

    def test_none_was_chosen(self, run_dir):
        (run_dir / "operating_point.json").write_text(json.dumps(self.VALUES | {"chosen": False}), encoding="utf-8")
        assert "None could be chosen on 2 validation cases" in page_of(run_dir)

    def test_a_broken_file(self, run_dir):
        (run_dir / "operating_point.json").write_text('{"threshold": 0.5}', encoding="utf-8")
        with pytest.raises(InputError, match=r"operating_point\.json: expected an operating point as training"):
            page_of(run_dir)


class TestLog:
    def test_empty_cells_and_a_cut_row(self, tmp_path):
        (tmp_path / "metrics.csv").write_text(METRICS + "30,0.5", encoding="utf-8")
        log = read_log(tmp_path / "metrics.csv")
        assert log.steps == (10, 20)
        assert log.columns["loss/dice"] == (0.9, None)

    def test_no_run_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot read .*metrics.csv: No such file.*expected a run folder"):
            write_run_page(tmp_path, language="en")

    def test_no_row_yet(self, tmp_path):
        (tmp_path / "metrics.csv").write_text("step,loss\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"metrics.csv: expected a column `step` and at least one row"):
            write_run_page(tmp_path, language="en")

    def test_broken_manifest(self, run_dir):
        (run_dir / "manifest.json").write_text("[]", encoding="utf-8")
        with pytest.raises(InputError, match=r"manifest.json: expected an object, found list"):
            write_run_page(run_dir, language="en")


def heights(svg: str) -> list[float]:
    """The share of the plot's height at which each point of the first line stands."""
    points = re.search(r'<polyline[^>]* points="([^"]*)"', svg)
    assert points is not None
    plot = charts.HEIGHT - charts.TOP - charts.BOTTOM
    return [1 - (float(pair.split(",")[1]) - charts.TOP) / plot for pair in points[1].split()]


def chart(values: tuple[float, ...], scale: curves.Scale) -> str:
    return line_chart([Curve("a", tuple(range(1, len(values) + 1)), values)], name="n", x_name="Step", scale=scale)


class TestLineChart:
    def test_linear_from_zero_to_a_round_value(self):
        # 4.5 in five steps of 1: the axis ends at 5.
        assert heights(chart((0.5, 4.5), "linear")) == pytest.approx([0.1, 0.9], abs=1e-3)

    def test_logarithmic_where_values_span_far(self):
        assert heights(chart((0.01, 0.1, 10.0), "wide")) == pytest.approx([0, 1 / 3, 1], abs=1e-3)

    def test_close_values_stay_linear(self):
        assert heights(chart((1.0, 4.0), "wide")) == pytest.approx([0.25, 1.0], abs=1e-3)

    def test_unit(self):
        assert heights(chart((0.25, 0.5), "unit")) == pytest.approx([0.25, 0.5], abs=1e-3)

    def test_negative_values_and_a_single_one(self):
        assert heights(chart((-2.0, 2.0), "linear")) == pytest.approx([0, 1], abs=1e-3)
        assert heights(chart((0.0,), "linear")) == pytest.approx([0], abs=1e-3)

    def test_long_lines_are_averaged(self):
        # 800 alternating values in 400 pairs: every mean is 1.5, the end of the axis.
        found = heights(chart((1.0, 2.0) * 400, "linear"))
        assert len(found) == curves.POINTS
        assert found == pytest.approx([1.0] * curves.POINTS, abs=1e-3)
