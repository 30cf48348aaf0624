"""report.html: the figures, charts, tables and pictures of an evaluation in one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segment.evaluation.page import bin_name, page_labels, write_page
from segment.evaluation.pictures import CasePictures
from segment.evaluation.report_rows import CaseRow, LesionRow, case_anchors, case_table, lesion_table
from segment.evaluation.report_sections import PICTURES_MIB, Section, SectionPlan, draw_section, plan_sections
from segment.evaluation.report_summary import charts, class_table, conventions, headline, provenance
from segment.progress import progress_bar

DrawAll = Callable[[Sequence[SectionPlan]], Sequence[Section]]
LESION_ROWS = 5000  # some 250 bytes each; beyond this a browser sorts too slowly to be pleasant


def write_html(
    path: Path,
    *,
    summary: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    lesions: Sequence[Mapping[str, Any]],
    pictures: Callable[[str], CasePictures | None],
    language: str = "en",
    draw_all: DrawAll | None = None,
) -> None:
    """Writes the report of an evaluation as one HTML file that opens from disk and loads nothing.

    At most 15 MiB for 100 cases: pictures are capped, and the page says so. The same input gives the same bytes.

    Args:
        path: the file, written atomically.
        summary: the content of summary.json; `operating_point`, `froc` and `by_class` are shown where they are there.
        cases: the objects of cases.json; none gives a page that says so.
        lesions: the rows of lesions.csv.
        pictures: case id -> what to draw it from, None where there is nothing; called for one case after the other.
        language: `en` or `zh`, for labels.
        draw_all: draws the sections of the cases that are pictured, for example in several processes; None draws one
            after the other from `pictures`.

    Raises:
        InputError: The language is unknown or the file cannot be written.
    """
    labels = page_labels(language)
    case_rows = case_table(cases)
    threshold = (summary.get("operating_point") or {}).get("threshold")
    lesion_rows = lesion_table(lesions, case_anchors(cases), threshold=threshold)
    several = len(summary["classes"]) > 1
    plans = plan_sections(case_rows, lesion_rows, language=language, several_classes=several)
    drawn = iter((draw_all or _one_by_one(pictures))([plan for plan in plans if plan.pictured]))
    sections = [next(drawn) if plan.pictured else draw_section(plan, None) for plan in plans]
    values = _head_values(summary, case_rows, lesion_rows, sections, labels)
    values |= _table_values(summary, case_rows, lesion_rows, sections, labels)
    write_page(path, "report.html", language=language, values=values)


def _one_by_one(pictures: Callable[[str], CasePictures | None]) -> DrawAll:
    def draw(plans: Sequence[SectionPlan]) -> list[Section]:
        sections = []
        with progress_bar("report", len(plans)) as bar:
            for plan in plans:
                # The arrays live within this call: one case in memory at a time.
                sections.append(draw_section(plan, pictures(plan.case_id)))
                bar.advance()
        return sections

    return draw


def _head_values(
    summary: Mapping[str, Any],
    case_rows: Sequence[CaseRow],
    lesion_rows: Sequence[LesionRow],
    sections: Sequence[Section],
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """What stands above and below the tables: the headline, charts, conventions, galleries and case sections."""
    return {
        "title": labels["report_title"],
        "headline": headline(summary, lesion_rows, labels),
        "notes": summary["notes"] + _cap_note(sections, case_rows, labels),
        "conventions": conventions(summary, labels),
        "provenance": provenance(summary),
        "class_rows": class_table(summary),
        "charts": charts(summary, case_rows, labels),
        "several_classes": len(summary["classes"]) > 1,
        "galleries": [_gallery(sections, lesion_rows, outcome, labels) for outcome in ("missed", "false_positive")],
        "sections": [section.text for section in sections],
    }


def _table_values(
    summary: Mapping[str, Any],
    case_rows: Sequence[CaseRow],
    lesion_rows: Sequence[LesionRow],
    sections: Sequence[Section],
    labels: Mapping[str, str],
) -> dict[str, Any]:
    """What the two tables and the choices of their filters show."""
    return {
        "case_rows": case_rows,
        "statuses": [labels[f"status_{name}"] for name in summary["status"]],
        "lesion_rows": lesion_rows[:LESION_ROWS],
        "all_lesions": len(lesion_rows),
        "pictured": {thumbnail.row.picture for section in sections for thumbnail in section.thumbnails},
        "outcomes": [labels[name] for name in ("missed", "false_positive", "found", "ignored")],
        "size_bins": [bin_name(name) for name in summary["micro"]["recall_by_bin"]["iou10"]],
        "reasons": [labels[name] for name in sorted({row.reason for row in lesion_rows if row.reason})],
    }


def _cap_note(sections: Sequence[Section], case_rows: Sequence[CaseRow], labels: Mapping[str, str]) -> list[str]:
    cases = len({row.case_id for row in case_rows})
    pictured = sum(section.pictured for section in sections)
    if not 0 < pictured < cases:
        return []
    return [labels["cases_capped"].format(shown=pictured, all=cases, mib=PICTURES_MIB)]


def _gallery(
    sections: Sequence[Section], lesion_rows: Sequence[LesionRow], outcome: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    thumbnails = [thumbnail for section in sections for thumbnail in section.thumbnails]
    shown = [thumbnail for thumbnail in thumbnails if thumbnail.row.outcome == outcome]
    return {
        "anchor": "missed" if outcome == "missed" else "false-positives",
        "title": labels["gallery_missed" if outcome == "missed" else "gallery_fp"],
        "all": sum(row.outcome == outcome for row in lesion_rows),
        "shown": sorted(shown, key=lambda thumbnail: (-thumbnail.row.volume_mm3, thumbnail.row.picture)),
    }
