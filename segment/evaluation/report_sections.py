"""The report's case sections: which lesions are pictured, drawn one case at a time under a cap on the page's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from segment.evaluation.page import page_labels, render
from segment.evaluation.pictures import CasePictures, CaseViewer, View
from segment.evaluation.report_rows import CaseRow, LesionRow

PICTURES_MIB = 11  # with tables and charts of 100 cases the page stays below 15 MiB
PICTURED_CASES = 100
PANELS = 200  # pictured errors of a case: noise has thousands, and nobody looks at more
ERRORS = ("missed", "false_positive")
WHOLE_PIXELS = 256
WHOLE_PIXELS_OF_MANY = 160  # where more than MANY_CASES share the cap
MANY_CASES = 30
LOCATOR_PIXELS = 112
CLOSE_UP_MM = (50.0, 120.0)
# Screen units: the longest side of a whole slice, and the side of the pictures beside each other in a panel.
_WHOLE_SIZE, _CLOSE_SIZE = 320.0, 225.0
_BARS_MM = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Picture:
    """A view, how large it is drawn in screen units a millimetre, and the length of its scale bar."""

    view: View
    scale: float
    bar_mm: int
    focus: bool
    close: bool
    anchor: str


@dataclass(frozen=True)
class Panel:
    """The pictures of one place in a case: a lesion (`row`), or the middle of a scan without any (`row` is None)."""

    title: str
    anchor: str
    row: LesionRow | None
    lines: tuple[tuple[Picture, ...], ...]


@dataclass(frozen=True)
class Thumbnail:
    """A gallery entry: shows the first close-up of the lesion's panel again, without a second copy of it."""

    row: LesionRow
    plane: str
    box: str


@dataclass(frozen=True)
class SectionPlan:
    """What a case's section is drawn from, apart from its arrays, in any process.

    Attributes:
        case_id: the case.
        rows: its lines of the case table, one for each class.
        lesions: its lines of the lesion table, in their order.
        pictured: whether it is among the worst `PICTURED_CASES`; only these are loaded.
        shared_by: how many cases share the cap on pictures.
        language: of the labels.
        several_classes: whether the rows need the names of their classes.
    """

    case_id: str
    rows: tuple[CaseRow, ...]
    lesions: tuple[LesionRow, ...]
    pictured: bool
    shared_by: int
    language: str
    several_classes: bool


@dataclass(frozen=True)
class Section:
    """A rendered section, its thumbnails for the galleries, and whether it has any picture."""

    text: Markup
    thumbnails: tuple[Thumbnail, ...]
    pictured: bool


def plan_sections(
    cases: Sequence[CaseRow], lesions: Sequence[LesionRow], *, language: str, several_classes: bool
) -> list[SectionPlan]:
    """The sections in the order of the case table, the worst first.

    Args:
        cases: rows in the order of the table; a case of several classes has several rows.
        lesions: rows in the order of the table.
    """
    by_case: dict[str, list[CaseRow]] = {}
    for row in cases:
        by_case.setdefault(row.case_id, []).append(row)
    of_case: dict[str, list[LesionRow]] = {name: [] for name in by_case}
    for lesion in lesions:
        of_case[lesion.case_id].append(lesion)
    shared_by = min(len(by_case), PICTURED_CASES)
    return [
        SectionPlan(
            case_id=case_id,
            rows=tuple(rows),
            lesions=tuple(of_case[case_id]),
            pictured=place < PICTURED_CASES,
            shared_by=shared_by,
            language=language,
            several_classes=several_classes,
        )
        for place, (case_id, rows) in enumerate(by_case.items())
    ]


def draw_section(plan: SectionPlan, arrays: CasePictures | None) -> Section:
    """A case's section with as many pictures as its share of the page's cap allows; none where there are no arrays."""
    return CaseDrawing(plan).section(arrays)


class CaseDrawing:
    """One case's section."""

    def __init__(self, plan: SectionPlan) -> None:
        self._plan, self._lesions = plan, plan.lesions
        self._labels = page_labels(plan.language)

    def section(self, arrays: CasePictures | None) -> Section:
        """The section; it says why where it has no pictures."""
        viewer = None if arrays is None else CaseViewer(arrays)
        if viewer is None or not viewer.planes:
            missing = self._labels["no_pictures" if self._plan.pictured else "not_pictured"]
            return Section(self._render(panels=[], missing=missing, capped=""), (), False)
        return self._draw(viewer, self._plan.shared_by)

    def _draw(self, viewer: CaseViewer, cases: int) -> Section:
        """As many pictures as the case's share of the page's cap allows."""
        share = PICTURES_MIB * 2**20 // cases
        whole_pixels = WHOLE_PIXELS if cases <= MANY_CASES else WHOLE_PIXELS_OF_MANY
        first = self._first_panel(viewer, whole_pixels)
        panels, used = [first], _size(first)
        errors = [row for row in self._lesions if row.outcome in ERRORS]
        for row in errors[:PANELS]:
            if row is first.row:
                continue
            panel = self._lesion_panel(viewer, row)
            used += _size(panel)
            if used > share:
                break
            panels.append(panel)
        shown = [panel for panel in panels if panel.row is not None and panel.row.outcome in ERRORS]
        capped = ""
        if len(shown) < len(errors):
            capped = self._labels["pictures_capped"].format(
                shown=len(shown), all=len(errors), mib=PICTURES_MIB, panels=PANELS
            )
        text = self._render(panels=panels, missing="", capped=capped)
        return Section(text, tuple(_thumbnail(panel) for panel in shown), True)

    def _first_panel(self, viewer: CaseViewer, whole_pixels: int) -> Panel:
        """The largest lesion of the label; without one the largest false positive, else the middle of the scan."""
        found = [row for row in self._lesions if row.side == "gt"] or list(self._lesions)
        row = max(found, key=lambda row: row.volume_mm3, default=None)
        if row is None:
            whole = viewer.views(viewer.middle(), pixels=whole_pixels)
            return Panel(self._labels["middle"], "", None, (_at_scale(whole, _WHOLE_SIZE, focus=False),))
        whole = viewer.views(row.spot, pixels=whole_pixels)
        title = f"{self._labels['largest_lesion' if row.side == 'gt' else 'largest_fp']} {row.name}"
        return Panel(title, row.picture, row, (_at_scale(whole, _WHOLE_SIZE, focus=True), self._close_ups(viewer, row)))

    def _lesion_panel(self, viewer: CaseViewer, row: LesionRow) -> Panel:
        where = _at_scale([viewer.locator(row.spot, pixels=LOCATOR_PIXELS)], _CLOSE_SIZE, focus=True)
        title = f"{self._labels['lesion']} {row.name}"
        return Panel(title, row.picture, row, (where + self._close_ups(viewer, row),))

    def _close_ups(self, viewer: CaseViewer, row: LesionRow) -> tuple[Picture, ...]:
        field_mm = min(max(CLOSE_UP_MM[0], 1.4 * viewer.extent_mm(row.spot)), CLOSE_UP_MM[1])
        views = viewer.close_ups(row.spot, field_mm=field_mm)
        return _at_scale(views, _CLOSE_SIZE, focus=False, close=True, anchor=f"{row.picture}-drawing")

    def _render(self, **values: Any) -> Markup:
        return render(
            "case.html",
            language=self._plan.language,
            values={
                "anchor": self._plan.rows[0].anchor,
                "case_id": self._plan.case_id,
                "rows": self._plan.rows,
                "several_classes": self._plan.several_classes,
                **values,
            },
        )


def _at_scale(
    views: Sequence[View], size: float, *, focus: bool, close: bool = False, anchor: str = ""
) -> tuple[Picture, ...]:
    """Views drawn at one scale, so that a millimetre is as long in all of them; the anchor goes to the first."""
    scale = size / max((max(view.width_mm, view.height_mm) for view in views), default=1.0)
    narrowest = min((view.width_mm for view in views), default=0.0)
    bar_mm = max((bar for bar in _BARS_MM if bar <= 0.4 * narrowest), default=_BARS_MM[0])
    return tuple(
        Picture(view, scale, bar_mm, focus, close, anchor if place == 0 else "") for place, view in enumerate(views)
    )


def _size(panel: Panel) -> int:
    """Bytes that a panel takes in the page: base64 and paths, and about 1 KiB of markup a view."""
    views = [picture.view for line in panel.lines for picture in line]
    return sum(len(view.png) * 4 // 3 + len(view.label_path) + len(view.prediction_path) + 1024 for view in views)


def _thumbnail(panel: Panel) -> Thumbnail:
    if panel.row is None:
        raise ValueError("a panel of the middle of a scan has no thumbnail")
    picture = next(picture for line in panel.lines for picture in line if picture.anchor)
    view, scale = picture.view, picture.scale
    return Thumbnail(panel.row, view.plane, f"0 0 {view.width_mm * scale:.1f} {view.height_mm * scale:.1f}")
