"""The audit of a dataset: reads every file once and says what is wrong, before training stumbles over it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from segment.data.cases import Case, Dataset
from segment.data.scan import LABEL_TOLERANCE, Grid, ScanError, load_volume, require_same_grid
from segment.errors import InputError
from segment.progress import progress_bar

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a case, or with the whole dataset (`case_id` is then empty).

    Attributes:
        case_id: The case, or "".
        path: The file, or the dataset's root.
        severity: Training leaves out or stops at a case with an error; a warning is only said.
        kind: A kind of `ScanError`, or channels, constant, empty_label, duplicate or all_labels_empty.
        message: One line with case, file, what was expected, what was found, and what to do.
    """

    case_id: str
    path: str
    severity: Severity
    kind: str
    message: str


@dataclass(frozen=True)
class _Report:
    """What is kept of a case after its arrays are gone."""

    findings: tuple[Finding, ...]
    digests: tuple[tuple[Path, str], ...]  # of channels that can be read and are not constant
    has_foreground: bool | None  # None where the label cannot be read


def check_case(case: Case, dataset: Dataset) -> list[Finding]:
    """Reads all files of a case, one at a time, and lists what is wrong; never raises for what a file holds.

    Errors: a file that is missing, cannot be read, is truncated, or lies on another grid than the first channel; a
    wrong number of channels; NaN or infinity; a constant image; no label; label values that are no integers or that the
    dataset does not name. Warning: a label without foreground.
    """
    return list(_inspect(case, dataset).findings)


def audit_dataset(dataset: Dataset, *, workers: int) -> list[Finding]:
    """All findings of all cases, in the order of the cases, then those that concern several cases.

    The latter: the same image in cases of different patients (warning: it may fall on both sides of a split), and all
    labels that can be read are empty (error). Shows a progress bar; holds one channel a worker in memory.

    Args:
        dataset: As `find_dataset` gives it.
        workers: Cases read at a time.
    """
    pool = ThreadPoolExecutor(workers)
    reports = []
    try:
        with progress_bar("Checking cases", len(dataset.cases)) as bar:
            for report in pool.map(lambda case: _inspect(case, dataset), dataset.cases):
                reports.append(report)
                bar.advance()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C the cases that have not begun are not waited for
    findings = [finding for report in reports for finding in report.findings]
    findings += _duplicates(dataset, reports)
    known = [report.has_foreground for report in reports if report.has_foreground is not None]
    if known and not any(known):
        findings.append(Finding("", str(dataset.root), "error", "all_labels_empty", _all_empty(dataset, len(known))))
    return findings


def check_dataset(dataset: Dataset, *, workers: int, skip_invalid: bool) -> tuple[Dataset, list[Finding]]:
    """Audits a dataset before it is used.

    Args:
        dataset: As `find_dataset` gives it.
        workers: Cases read at a time.
        skip_invalid: Leave cases with errors out instead of stopping.

    Returns:
        The dataset of the cases without errors, and all findings.

    Raises:
        InputError: A case has an error and `skip_invalid` is false (says the first and how many there are); no case is
            left; or all labels that are left are empty.
    """
    findings = audit_dataset(dataset, workers=workers)
    errors = [finding for finding in findings if finding.severity == "error"]
    of_cases = [finding for finding in errors if finding.case_id]
    invalid = {finding.case_id for finding in of_cases}
    if of_cases and not skip_invalid:
        more = f"; {len(of_cases)} errors in {len(invalid)} cases" if len(of_cases) > 1 else ""
        raise InputError(f"{of_cases[0].message}{more}; or set data.skip_invalid=true to leave invalid cases out")
    cases = tuple(case for case in dataset.cases if case.case_id not in invalid)
    if not cases:
        first = f"; first: {errors[0].message}" if errors else ""
        raise InputError(f"dataset {dataset.root}: expected a valid case, found none of {len(dataset.cases)}{first}")
    empty = {finding.case_id for finding in findings if finding.kind == "empty_label"}
    if all(case.case_id in empty for case in cases):
        raise InputError(_all_empty(dataset, len(cases)))
    return replace(dataset, cases=cases), findings


def _all_empty(dataset: Dataset, labels: int) -> str:
    return (
        f"dataset {dataset.root}: expected a label with foreground, found {labels} empty ones; add cases with lesions"
    )


def _inspect(case: Case, dataset: Dataset) -> _Report:
    findings: list[Finding] = []
    digests: list[tuple[Path, str]] = []
    expected = len(dataset.channel_names)
    if len(case.image_paths) != expected:
        what = f"expected {expected} channels ({', '.join(dataset.channel_names)}), found {len(case.image_paths)}"
        findings.append(_error(case, None, "channels", f"{what}; list one file a channel"))
    reference: tuple[Grid, Path] | None = None
    for index, path in enumerate(case.image_paths):
        name = dataset.channel_names[index] if index < expected else str(index)
        try:
            values, grid, _ = load_volume(path)
        except ScanError as cause:
            findings.append(_error(case, path, cause.kind, f"channel {name}: {cause}"))
            continue
        reference = reference or (grid, path)
        findings += _grid_findings(case, path, reference, grid)
        found = _image_findings(case, path, name, values)
        findings += found
        if not found:
            digests.append((path, _digest(values)))
    label_findings, has_foreground = _inspect_label(case, dataset, reference)
    return _Report((*findings, *label_findings), tuple(digests), has_foreground)


def _error(case: Case, path: Path | None, kind: str, message: str) -> Finding:
    return Finding(case.case_id, str(path or ""), "error", kind, f"case {case.case_id}: {message}")


def _grid_findings(case: Case, path: Path, reference: tuple[Grid, Path], found: Grid) -> list[Finding]:
    try:
        require_same_grid(*reference, found, path)
    except ScanError as cause:
        return [_error(case, path, cause.kind, str(cause))]
    return []


def _image_findings(case: Case, path: Path, channel: str, values: np.ndarray) -> list[Finding]:
    unusable = values.size - int(np.count_nonzero(np.isfinite(values)))
    if unusable:
        found = f"NaN or infinity in {unusable} of {values.size} voxels"
        message = f"channel {channel}: {path}: expected finite values, found {found}; repair or leave out the case"
        return [_error(case, path, "non_finite", message)]
    if values.min() == values.max():
        found = f"the constant {float(values.min()):g}"
        message = f"channel {channel}: {path}: expected an image, found {found} in all voxels; export it again"
        return [_error(case, path, "constant", message)]
    return []


def _digest(values: np.ndarray) -> str:
    """Of shape and voxels, not of the file: the same scan compressed twice differs in its bytes."""
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values.T).data)  # no copy: the arrays are column-major
    return digest.hexdigest()


def _inspect_label(
    case: Case, dataset: Dataset, reference: tuple[Grid, Path] | None
) -> tuple[list[Finding], bool | None]:
    """Findings of the label, and whether it holds any foreground of the dataset (None: it cannot be read)."""
    path = case.label_path
    if path is None:
        return [_error(case, None, "missing", "expected a label, found none; name one or leave the case out")], None
    try:
        values, grid, _ = load_volume(path)
    except ScanError as cause:
        return [_error(case, path, cause.kind, f"label: {cause}")], None
    findings = _grid_findings(case, path, reference, grid) if reference is not None else []
    problem = _label_problem(values, dataset)
    if problem is not None:
        kind, text = problem
        findings.append(_error(case, path, kind, f"label: {path}: {text}"))
    has_foreground = bool(np.isin(np.rint(values), list(dataset.label_values.values())).any())
    if not has_foreground and problem is None:
        text = f"case {case.case_id}: label: {path}: expected foreground, found only 0; fine if the scan has no lesion"
        findings.append(Finding(case.case_id, str(path), "warning", "empty_label", text))
    return findings, has_foreground


def _label_problem(values: np.ndarray, dataset: Dataset) -> tuple[str, str] | None:
    """Kind and message of the first thing that is wrong with a label's values."""
    unusable = values.size - int(np.count_nonzero(np.isfinite(values)))
    if unusable:
        found = f"NaN or infinity in {unusable} of {values.size} voxels"
        return "non_finite", f"expected finite values, found {found}; export the label again"
    rounded = np.rint(values)
    broken = np.abs(values - rounded) > LABEL_TOLERANCE
    if broken.any():
        found = f"{float(values[broken][0]):g} ({int(broken.sum())} such voxels)"
        return "label_values", f"expected integers, found {found}; export the label without interpolation"
    named = {"background": 0, **dataset.label_values}
    unknown = sorted(set(np.unique(rounded).tolist()) - set(named.values()))
    if unknown:
        found = ", ".join(f"{value:g}" for value in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        text = ", ".join(f"{value} ({name})" for name, value in named.items())
        return "label_values", f"expected the values {text}, found {found} too; relabel or name them in the dataset"
    return None


def _duplicates(dataset: Dataset, reports: list[_Report]) -> list[Finding]:
    """A warning for each image that an earlier case of another patient holds too."""
    seen: dict[str, list[tuple[Case, Path]]] = defaultdict(list)
    findings = []
    for case, report in zip(dataset.cases, reports, strict=True):
        for path, digest in report.digests:
            other = next((entry for entry in seen[digest] if entry[0].patient_id != case.patient_id), None)
            if other is not None:
                message = (
                    f"case {case.case_id}: {path}: expected another image than case {other[0].case_id} of another "
                    f"patient, found the same voxels as {other[1]}; remove one or name one patient for both"
                )
                findings.append(Finding(case.case_id, str(path), "warning", "duplicate", message))
            seen[digest].append((case, path))
    return findings
