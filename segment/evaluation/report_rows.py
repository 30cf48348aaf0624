"""What the report's tables show, worked out of the rows of cases.json and lesions.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from segment.evaluation.page import number
from segment.evaluation.pictures import Spot

Outcome = Literal["found", "missed", "false_positive", "ignored"]

# The lowest threshold of the FROC sweep: a lesion whose highest probability is below it is found at no threshold.
SEEN_PROBABILITY = 0.05


@dataclass(frozen=True)
class CaseRow:
    """A line of the case table. Shares are 0 to 1; None is undefined. `anchor` names the case's section in the page."""

    anchor: str
    case_id: str
    class_name: str
    status: str
    n_gt: int
    found: int
    missed: int
    false_positives: int
    small_missed: int
    f1: float | None
    iou: float | None
    dice: float | None
    hd95_mm: float | None
    gt_mm3: float
    pred_mm3: float


@dataclass(frozen=True)
class LesionRow:
    """A line of the lesion table: a label lesion, or a predicted one that matches none.

    `iou` is that of the match, or the greatest one with any lesion of the other side where there is no match.
    `reason` is the key of the label that says why it was missed or what a false positive is.
    """

    anchor: str
    case_id: str
    class_name: str
    class_place: int
    side: Literal["gt", "pred"]
    lesion_id: int
    outcome: Outcome
    size_bin: str
    volume_mm3: float
    spot: Spot
    iou: float
    score_max: float | None
    reason: str

    @property
    def name(self) -> str:
        """`L3` for the label's lesion 3, `P3` for the prediction's; the numbers are those of lesions.csv."""
        return f"{'L' if self.side == 'gt' else 'P'}{self.lesion_id}"

    @property
    def point(self) -> str:
        """World coordinates as they are typed into a viewer: `12.0, -33.5, 18.0`."""
        return ", ".join(number(value, 1) for value in self.spot.point_mm)

    @property
    def picture(self) -> str:
        """The page's anchor of the lesion's pictures, unique over cases and classes, which number their own lesions."""
        return f"{self.anchor}-{self.class_place}-{self.name}"


def case_anchors(cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Case id -> anchor in the page. Numbers, never names: a name may hold anything."""
    names = dict.fromkeys(str(case["case_id"]) for case in cases)
    return {name: f"case-{place}" for place, name in enumerate(names, start=1)}


def case_table(cases: Sequence[Mapping[str, Any]]) -> list[CaseRow]:
    """The case table, worst first: lowest lesion F1, then most misses and false positives, then lowest IoU.

    Args:
        cases: rows of cases.json.
    """
    anchors = case_anchors(cases)
    rows = [_case_row(case, anchors[str(case["case_id"])]) for case in cases]
    return sorted(rows, key=_badness)


def _case_row(case: Mapping[str, Any], anchor: str) -> CaseRow:
    counts = case["iou10"]
    return CaseRow(
        anchor=anchor,
        case_id=str(case["case_id"]),
        class_name=str(case["class"]),
        status=str(case["status"]),
        n_gt=int(case["n_gt"]),
        found=int(counts["tp"]),
        missed=int(counts["fn"]),
        false_positives=int(counts["fp"]),
        small_missed=int(case["n_small"]) - int(case["n_small_found"]),
        f1=counts["f1"],
        iou=case["iou"],
        dice=case["dice"],
        hd95_mm=case["hd95_mm"],
        gt_mm3=float(case["gt_mm3"]),
        pred_mm3=float(case["pred_mm3"]),
    )


def _badness(row: CaseRow) -> tuple[float, int, float, str, str]:
    errors = row.missed + row.false_positives
    # F1 is undefined without lesions on one side: then any error is as bad as can be, and none is perfect.
    f1 = row.f1 if row.f1 is not None else float(errors == 0)
    return f1, -errors, 1.0 if row.iou is None else row.iou, row.case_id, row.class_name


def lesion_table(
    lesions: Sequence[Mapping[str, Any]], anchors: Mapping[str, str], *, threshold: float | None
) -> list[LesionRow]:
    """The lesion table: misses, then false positives, then the rest; the largest first in each.

    Matched predictions are left out: they are the same line as the lesion that they match.

    Args:
        lesions: rows of lesions.csv.
        anchors: case id -> anchor, from `case_anchors`.
        threshold: probability from which a voxel counts as lesion, None where it is not known.
    """
    classes = sorted({str(lesion["class"]) for lesion in lesions})
    rows = [
        _lesion_row(lesion, anchors[str(lesion["case_id"])], classes.index(str(lesion["class"])), threshold)
        for lesion in lesions
        if lesion["side"] == "gt" or lesion["is_fp"]
    ]
    order = ("missed", "false_positive", "found", "ignored")
    return sorted(
        rows, key=lambda row: (order.index(row.outcome), -row.volume_mm3, row.case_id, row.class_name, row.lesion_id)
    )


def _lesion_row(lesion: Mapping[str, Any], anchor: str, place: int, threshold: float | None) -> LesionRow:
    outcome = _outcome(lesion)
    iou = lesion["matched_iou"] if outcome == "found" else lesion["best_iou"]
    x, y, z = lesion["centroid_world_mm"]
    score = lesion["score_max"]
    return LesionRow(
        anchor=anchor,
        case_id=str(lesion["case_id"]),
        class_name=str(lesion["class"]),
        class_place=place,
        side=lesion["side"],
        lesion_id=int(lesion["lesion_id"]),
        outcome=outcome,
        size_bin=str(lesion["size_bin"]),
        volume_mm3=float(lesion["volume_mm3"]),
        spot=Spot((float(x), float(y), float(z)), lesion["side"], tuple(int(edge) for edge in lesion["bbox"])),
        iou=float(iou or 0.0),
        score_max=None if score is None else float(score),
        reason=_reason(lesion, outcome, threshold),
    )


def _outcome(lesion: Mapping[str, Any]) -> Outcome:
    if lesion["side"] == "pred":
        return "false_positive"
    if lesion["detected_iou10"] is None:
        return "ignored"
    return "found" if lesion["detected_iou10"] else "missed"


def _reason(lesion: Mapping[str, Any], outcome: Outcome, threshold: float | None) -> str:
    """Which label tells why: "threshold too high" has another cure than "never seen"."""
    if outcome == "false_positive":
        return "reason_touching" if lesion["fp_touching"] else "reason_apart"
    if outcome != "missed":
        return ""
    score = lesion["score_max"]
    if lesion["detected_any"]:
        return "reason_overlap"
    if score is None:
        return ""
    if threshold is not None and score >= threshold:
        return "reason_removed"
    if score < SEEN_PROBABILITY:
        return "reason_unseen"
    return "reason_seen" if threshold is None else "reason_threshold"
