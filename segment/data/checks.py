"""The check of a dataset: reads every file once and says what is wrong, before training stumbles over it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from segment.data.cases import Case, Dataset
from segment.data.census import LesionLoad
from segment.data.inspection import Finding as Finding
from segment.data.inspection import Inspection, Severity, inspect_case
from segment.errors import InputError
from segment.progress import in_threads

SPACING_RATIO = 3.0  # to the dataset's median, in either direction
ABSURD_RATIO = 30.0  # no scanner does that: a header in micrometres or metres
SPACING_CASES = 3  # with fewer there is no telling which of them is the odd one


@dataclass(frozen=True)
class Audit:
    """What reading a dataset through has shown.

    Attributes:
        findings: Of single cases, in the order of the cases, then those that concern several.
        loads: Lesions by case id, of the cases whose label can be used.
        spacing_mm: Voxel spacing per canonical axis by case id, of the cases with a channel that can be read.
    """

    findings: tuple[Finding, ...]
    loads: dict[str, LesionLoad]
    spacing_mm: dict[str, tuple[float, float, float]]

    @property
    def errors(self) -> int:
        """Number of error-level findings."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def invalid(self) -> frozenset[str]:
        """Ids of the cases with an error."""
        return frozenset(finding.case_id for finding in self.findings if finding.severity == "error") - {""}


def check_case(case: Case, dataset: Dataset) -> list[Finding]:
    """Reads all files of a case, one at a time, and lists what is wrong; never raises for what a file holds.

    Errors: a file that is missing, cannot be read, is truncated, or lies on another grid than the first channel; a
    wrong number of channels; a singular affine; NaN or infinity; a constant image; no label; label values that are no
    integers or that the dataset does not name. Warnings: a label without foreground; qform and sform that disagree.
    """
    return list(inspect_case(case, dataset).findings)


def audit_dataset(dataset: Dataset, *, workers: int) -> Audit:
    """Checks all cases, and compares them with each other.

    The latter: the same image in cases of different patients (warning: it may fall on both sides of a split), voxels
    more than three times as large or small as the median (warning; thirty times: error), and all labels that can be
    read are empty (error).
    Shows a progress bar; holds one file a worker in memory.

    Args:
        dataset: As `find_dataset` gives it.
        workers: Cases read at a time, in threads: reading, decompressing and hashing let each other run.
    """
    inspections = in_threads("Checking cases", lambda case: inspect_case(case, dataset), dataset.cases, workers=workers)
    findings = [finding for inspection in inspections for finding in inspection.findings]
    findings += _duplicates(dataset, inspections) + _odd_spacings(dataset, inspections)
    known = [inspection.has_foreground for inspection in inspections if inspection.has_foreground is not None]
    if known and not any(known):
        findings.append(Finding("", str(dataset.root), "error", "all_labels_empty", _all_empty(dataset, len(known))))
    by_id = {case.case_id: inspection for case, inspection in zip(dataset.cases, inspections, strict=True)}
    return Audit(
        tuple(findings),
        {case_id: inspection.load for case_id, inspection in by_id.items() if inspection.load is not None},
        {case_id: inspection.spacing_mm for case_id, inspection in by_id.items() if inspection.spacing_mm is not None},
    )


def check_dataset(dataset: Dataset, *, workers: int, skip_invalid: bool) -> tuple[Dataset, Audit]:
    """Audits a dataset before it is used.

    Args:
        dataset: As `find_dataset` gives it.
        workers: Cases read at a time.
        skip_invalid: Leave cases with errors out instead of stopping.

    Returns:
        The dataset of the cases without errors, and what the audit of all has shown.

    Raises:
        InputError: A case has an error and `skip_invalid` is false (says the first and how many there are); no case is
            left; or all labels that are left are empty.
    """
    audit = audit_dataset(dataset, workers=workers)
    errors = [finding for finding in audit.findings if finding.severity == "error"]
    of_cases = [finding for finding in errors if finding.case_id]
    invalid = audit.invalid
    if of_cases and not skip_invalid:
        more = f"; {len(of_cases)} errors in {len(invalid)} cases" if len(of_cases) > 1 else ""
        raise InputError(f"{of_cases[0].message}{more}; or set data.skip_invalid=true to leave invalid cases out")
    sound = valid_cases(dataset, audit)
    if not sound.cases:
        first = f"; first: {errors[0].message}" if errors else ""
        raise InputError(f"dataset {dataset.root}: expected a valid case, found none of {len(dataset.cases)}{first}")
    if all(not audit.loads[case.case_id].count for case in sound.cases):
        raise InputError(_all_empty(dataset, len(sound.cases)))
    return sound, audit


def valid_cases(dataset: Dataset, audit: Audit) -> Dataset:
    """The dataset without the cases that have an error; none may be left."""
    return replace(dataset, cases=tuple(case for case in dataset.cases if case.case_id not in audit.invalid))


def _all_empty(dataset: Dataset, labels: int) -> str:
    return (
        f"dataset {dataset.root}: expected a label with foreground, found {labels} empty ones; add cases with lesions"
    )


def _duplicates(dataset: Dataset, inspections: list[Inspection]) -> list[Finding]:
    """A warning for each image that an earlier case of another patient holds too."""
    seen: dict[str, list[tuple[Case, str]]] = defaultdict(list)
    findings = []
    for case, inspection in zip(dataset.cases, inspections, strict=True):
        for path, digest in inspection.digests:
            other = next((entry for entry in seen[digest] if entry[0].patient_id != case.patient_id), None)
            if other is not None:
                message = (
                    f"case {case.case_id}: {path}: expected another image than case {other[0].case_id} of another "
                    f"patient, found the same voxels as {other[1]}; remove one or name one patient for both"
                )
                findings.append(Finding(case.case_id, path, "warning", "duplicate", message))
            seen[digest].append((case, path))
    return findings


def _odd_spacings(dataset: Dataset, inspections: list[Inspection]) -> list[Finding]:
    known = [inspection.spacing_mm for inspection in inspections if inspection.spacing_mm is not None]
    if len(known) < SPACING_CASES:
        return []
    median = np.median(known, axis=0)
    findings = []
    for case, inspection in zip(dataset.cases, inspections, strict=True):
        ratio = np.ones(3) if inspection.spacing_mm is None else np.asarray(inspection.spacing_mm) / median
        if np.maximum(ratio, 1 / ratio).max() > SPACING_RATIO * (1 + 1e-3):
            found, expected = (
                "x".join(f"{side:.3g}" for side in spacing) for spacing in (inspection.spacing_mm or (), median)
            )
            absurd = np.maximum(ratio, 1 / ratio).max() > ABSURD_RATIO
            message = (
                f"case {case.case_id}: {case.image_paths[0]}: expected voxels near the dataset's median of {expected} "
                f"mm (right, front, up), found {found} mm; "
                + ("mend the header" if absurd else "resampling changes it more than threefold")
            )
            severity: Severity = "error" if absurd else "warning"
            findings.append(Finding(case.case_id, str(case.image_paths[0]), severity, "spacing", message))
    return findings
