"""What a report says of all its cases together: who is missing, and which classes are in no mask."""

from __future__ import annotations

from collections.abc import Sequence

from segment.errors import InputError
from segment.evaluation.case_files import CaseOutcome
from segment.evaluation.class_values import ClassValues, absent_classes


def left_out_notes(expected: int, reported: int) -> list[str]:
    """A note on cases that are not in a report, whose number is `expected`; none where all are."""
    if reported == expected:
        return []
    return [f"{expected - reported} of {expected} cases are left out, see failures.csv of this evaluation"]


def class_notes(classes: ClassValues | None, outcomes: Sequence[CaseOutcome]) -> list[str]:
    """Notes on classes that no mask holds.

    Args:
        classes: As they were given; None takes the only value above 0.
        outcomes: Of all cases.

    Raises:
        InputError: No mask holds any of them, or the only value of one case is not that of another.
    """
    if classes is None:
        _require_one_value(outcomes)
        return []
    counts = ("n_gt", "n_pred", "n_ignored_gt", "n_removed_pred")
    cases = [result.case for outcome in outcomes for result in outcome.results]
    present = {case["class"] for case in cases if any(case[name] for name in counts)}
    return absent_classes(classes, present, {value for outcome in outcomes for value in outcome.outside})


def _require_one_value(outcomes: Sequence[CaseOutcome]) -> None:
    """Raises InputError where the only value of one case is not that of another: they need not be one class."""
    cases = {outcome.only: outcome.case_id for outcome in reversed(outcomes) if outcome.only is not None}
    if len(cases) > 1:
        (value, case_id), (other_value, other_id) = sorted(cases.items())[:2]
        raise InputError(
            f"expected one value above 0 in all masks, found {value} in case {case_id} and {other_value} in case "
            f"{other_id}; pass --classes NAME=VALUE for each class"
        )
