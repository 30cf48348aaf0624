"""One case read through once: what is wrong with its files, and what its label holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from segment.data.cases import Case, Dataset
from segment.data.census import LesionLoad, lesion_load
from segment.data.geometry import canonical_spacing
from segment.data.scan import LABEL_TOLERANCE, ChannelReader, Grid, ScanError, load_volume, require_same_grid

Severity = Literal["error", "warning"]
FORM_TOLERANCE = 0.1  # of the smallest voxel side; quaternions in float32 move a corner by far less


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a case, or with the whole dataset (`case_id` is then empty).

    Attributes:
        case_id: The case, or "".
        path: The file, or the dataset's root.
        severity: Training leaves out or stops at a case with an error; a warning is only said.
        kind: A kind of `ScanError`, or constant, empty_label, forms, spacing, duplicate or all_labels_empty.
        message: One line with case, file, what was expected, what was found, and what to do.
    """

    case_id: str
    path: str
    severity: Severity
    kind: str
    message: str


@dataclass(frozen=True)
class Inspection:
    """What is kept of a case after its arrays are gone.

    Attributes:
        findings: Of this case alone.
        digests: File, channel and hash of the voxels of channels that can be read and are not constant.
        has_foreground: Of the label; None where it cannot be read.
        load: Lesions of the label; None where it cannot be read or holds values that mean nothing.
        spacing_mm: Voxel spacing per canonical axis; None where no channel can be read.
    """

    findings: tuple[Finding, ...]
    digests: tuple[tuple[str, str], ...]
    has_foreground: bool | None
    load: LesionLoad | None
    spacing_mm: tuple[float, float, float] | None


def inspect_case(case: Case, dataset: Dataset) -> Inspection:
    """Reads all files of a case, one at a time, and lists what is wrong; never raises for what a file holds."""
    findings: list[Finding] = []
    digests: list[tuple[str, str]] = []
    expected = len(dataset.channel_names)
    if len(case.image_paths) != expected:
        what = f"expected {expected} channels ({', '.join(dataset.channel_names)}), found {len(case.image_paths)}"
        findings.append(_error(case, None, "channels", f"{what}; list one file a channel"))
    reference: tuple[Grid, Path] | None = None
    told: set[tuple[Path, str]] = set()  # a 4D file that cannot be used is said once, not once a channel
    reader = ChannelReader(case)
    for index, path in enumerate(case.image_paths):
        name = dataset.channel_names[index] if index < expected else str(index)
        try:
            values, grid, header = reader.load(index)
        except ScanError as cause:
            if (path, cause.kind) not in told:
                findings.append(_error(case, path, cause.kind, f"channel {name}: {cause}"))
            told.add((path, cause.kind))
            continue
        reference = reference or (grid, path)
        findings += _grid_findings(case, path, reference, grid)
        if index == 0 or path != case.image_paths[index - 1]:
            findings += _form_findings(case, path, header, grid)
        found = _image_findings(case, path, name, values)
        findings += found
        if not found:
            digests.append((str(path) if not case.image_volumes else f"{path} ({name})", _digest(values)))
        del values
    label_findings, has_foreground, load = _inspect_label(case, dataset, reference)
    spacing = None if reference is None else canonical_spacing(reference[0])
    return Inspection((*findings, *label_findings), tuple(digests), has_foreground, load, spacing)


def _error(case: Case, path: Path | None, kind: str, message: str) -> Finding:
    return Finding(case.case_id, str(path or ""), "error", kind, f"case {case.case_id}: {message}")


def _grid_findings(case: Case, path: Path, reference: tuple[Grid, Path], found: Grid) -> list[Finding]:
    try:
        require_same_grid(*reference, found, path)
    except ScanError as cause:
        return [_error(case, path, cause.kind, str(cause))]
    return []


def _form_findings(case: Case, path: Path, header: nib.Nifti1Header, grid: Grid) -> list[Finding]:
    """A warning when both forms are set and place a corner of the scan apart."""
    if not (int(header["qform_code"]) > 0 and int(header["sform_code"]) > 0):
        return []
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in grid.shape])).reshape(3, -1)
    try:
        gap = (header.get_qform() - header.get_sform())[:3] @ np.vstack([corners, np.ones(8)])
        apart = float(np.linalg.norm(gap, axis=0).max())
        found = f"that they place its corners up to {apart:.3g} mm apart"
    except (ValueError, nib.spatialimages.HeaderDataError) as cause:
        apart, found = np.inf, f"a qform that is not valid ({cause})"
    if apart <= FORM_TOLERANCE * min(grid.spacing_mm):
        return []
    message = (
        f"case {case.case_id}: {path}: expected qform and sform to agree, found {found}; the sform is used, other "
        "programs may take the qform: repair the header"
    )
    return [Finding(case.case_id, str(path), "warning", "forms", message)]


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
) -> tuple[list[Finding], bool | None, LesionLoad | None]:
    """Findings, whether it holds any foreground of the dataset, and its lesions (None: it cannot be read)."""
    path = case.label_path
    if path is None:
        what = "expected a label, found none; name one or leave the case out"
        return [_error(case, None, "missing", what)], None, None
    try:
        values, grid, header = load_volume(path)
    except ScanError as cause:
        return [_error(case, path, cause.kind, f"label: {cause}")], None, None
    findings = _grid_findings(case, path, reference, grid) if reference is not None else []
    findings += _form_findings(case, path, header, grid)
    problem = _label_problem(values, dataset)
    if problem is not None:
        kind, text = problem
        findings.append(_error(case, path, kind, f"label: {path}: {text}"))
        return findings, bool(np.isin(np.rint(values), list(dataset.label_values.values())).any()), None
    load = lesion_load(np.rint(values), tuple(dataset.label_values.values()), voxel_mm3=grid.voxel_mm3)
    if not load.count:
        text = f"case {case.case_id}: label: {path}: expected foreground, found only 0; fine if the scan has no lesion"
        findings.append(Finding(case.case_id, str(path), "warning", "empty_label", text))
    return findings, load.count > 0, load


def _label_problem(values: np.ndarray, dataset: Dataset) -> tuple[str, str] | None:
    """Kind and message of the first thing that is wrong with a label's values."""
    unusable = values.size - int(np.count_nonzero(np.isfinite(values)))
    if unusable:
        found = f"NaN or infinity in {unusable} of {values.size} voxels"
        return "non_finite", f"expected finite values, found {found}; export the label again"
    rounded = np.rint(values)
    difference = np.subtract(values, rounded)
    broken = np.abs(difference, out=difference) > LABEL_TOLERANCE
    del difference
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
