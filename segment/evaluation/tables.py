"""The files of a report: lesions.csv, cases.json, summary.json and report.html. The same input gives the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segment.config import EvaluationConfig
from segment.evaluation.metrics import CaseResult
from segment.evaluation.pictures import CasePictures
from segment.evaluation.report import DrawAll, write_html
from segment.evaluation.rows import COLUMNS
from segment.evaluation.summary import summarise
from segment.files import write_json, write_text

_DIGITS = 6


def write_report(
    results: Sequence[CaseResult],
    output: Path,
    *,
    config: EvaluationConfig,
    seed: int,
    inputs: Mapping[str, str],
    scans: Callable[[str], CasePictures | None],
    operating_point: Mapping[str, Any] | None = None,
    language: str = "en",
    draw_all: DrawAll | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes lesions.csv, cases.json, summary.json and report.html into a folder, replacing files of these names.

    Args:
        results: At least one, in any order.
        output: The folder; made when missing.
        config: As the results were made with.
        seed: Of the resampling for the intervals.
        inputs: SHA-256 by path of what was read.
        scans: What a case's pictures are drawn from, by case id; None leaves its pictures out.
        operating_point: What the masks were made with (`threshold`, `min_lesion_mm3`, `min_peak`), where it is known.
        language: Of the page's labels: `en` or `zh`.
        draw_all: As in `write_html`.
        notes: As in `summarise`.

    Returns:
        The summary.

    Raises:
        InputError: There is no result, or a file cannot be written.
    """
    summary = summarise(results, config=config, seed=seed, inputs=inputs, operating_point=operating_point, notes=notes)
    cases, lesions = sorted_cases(results), sorted_lesions(results)
    write_text(output / "lesions.csv", csv_text(COLUMNS, lesions))
    write_json(output / "cases.json", cases)
    write_json(output / "summary.json", summary)
    write_html(
        output / "report.html",
        summary=summary,
        cases=cases,
        lesions=lesions,
        pictures=scans,
        language=language,
        draw_all=draw_all,
    )
    return summary


def sorted_cases(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """The objects of cases.json, by case_id and class."""
    return sorted((result.case for result in results), key=lambda case: (case["case_id"], case["class"]))


def sorted_lesions(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """The rows of lesions.csv, by case_id, class, side and lesion_id."""
    rows = (row for result in results for row in result.lesions)
    return sorted(rows, key=lambda row: (row["case_id"], row["class"], row["side"], row["lesion_id"]))


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header line. None is an empty cell, truth is a word, a list is separated by blanks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(round(value, _DIGITS) + 0.0)
    return " ".join(_cell(item) for item in value) if isinstance(value, (list, tuple)) else str(value)
