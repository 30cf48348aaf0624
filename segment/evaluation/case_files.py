"""One case from its files to its results; runs in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segment.config import EvaluationConfig
from segment.data.scan import Grid, ScanError, read_mask, read_probability, read_volume, require_same_grid
from segment.errors import InputError
from segment.evaluation.class_values import ClassValues, only_class, require_known, values_outside
from segment.evaluation.lesion_map import lesion_map, write_lesion_map
from segment.evaluation.lesions import class_mask
from segment.evaluation.metrics import CaseResult, measure
from segment.evaluation.pictures import CasePictures
from segment.evaluation.report_sections import Section, SectionPlan, draw_section
from segment.files import sha256_of


@dataclass(frozen=True)
class CaseJob:
    """What to evaluate.

    Attributes:
        case_id: The name in all tables.
        prediction, label: The masks; None for one that is missing and scored as empty, not both.
        probability: [x, y, z] or, for several classes, [x, y, z, class]; None where there is none.
        froc: Whether the thresholds are swept; without a probability file, which then goes with a missing prediction,
            nothing is found at any.
        image: What the pictures show below the outlines; None where there is none.
        classes: None takes the only value above 0 as the only class.
        closed: Where the classes come from, if values of no class are an error, else None.
        config: Size bins and matching.
        maps: Folder for the lesion map, or None.
    """

    case_id: str
    prediction: Path | None
    label: Path | None
    probability: Path | None
    froc: bool
    image: Path | None
    classes: ClassValues | None
    closed: str | None
    config: EvaluationConfig
    maps: Path | None


@dataclass(frozen=True)
class CaseOutcome:
    """A result for each class and the SHA-256 of what was read by role and name; or why there is no result.

    `error` is None where there is one; else `kind` is that of a `ScanError`, `memory`, `ended` or `evaluate`, and
    `path` the file that is to blame. `outside` are values of the masks that belong to no class, where the classes were
    given; `only` is the only value of the masks, where they were not and these are not empty.
    """

    case_id: str
    results: tuple[CaseResult, ...]
    inputs: Mapping[str, str]
    error: str | None
    kind: str = ""
    path: str = ""
    outside: tuple[int, ...] = ()
    only: int | None = None

    def failure(self) -> dict[str, str]:
        """The row in failures.csv."""
        return {"case": self.case_id, "path": self.path, "kind": self.kind, "message": str(self.error)}


def evaluate_files(job: CaseJob) -> CaseOutcome:
    """Reads a case's files and evaluates every class; a file that cannot be used is an outcome with an error."""
    try:
        return _evaluate(job)
    except MemoryError:
        return failed(job, "not enough memory; use fewer workers", kind="memory")
    except (InputError, OSError) as cause:
        return failed(job, str(cause), kind=cause.kind if isinstance(cause, ScanError) else "evaluate")


def failed(job: CaseJob, error: str, *, kind: str) -> CaseOutcome:
    """The outcome of a case that could not be evaluated; its path is the file that the error names first."""
    paths = [str(path) for path in (job.prediction, job.label, job.probability) if path is not None]
    named = [path for path in paths if path in error]
    path = min(named, key=error.index) if named else paths[0]
    return CaseOutcome(job.case_id, (), {}, error, kind, path)


def _evaluate(job: CaseJob) -> CaseOutcome:
    label, prediction, grid = _masks(job)
    classes = _classes(job, label, prediction)
    probabilities = _probabilities(job, grid, len(classes)) if job.froc else None
    results = []
    for index, (name, values) in enumerate(classes.items()):
        result, pair = measure(
            job.case_id,
            label,
            prediction,
            grid,
            config=job.config,
            values=values,
            class_name=name,
            probability=None if probabilities is None else probabilities[..., index],
            distances=True,
            froc=job.froc,
        )
        results.append(replace(result, notes=(*_missing_notes(job), *result.notes)))
        if job.maps is not None:
            # By value: a name may hold what a file name cannot.
            suffix = "_" + "+".join(str(value) for value in values) if len(classes) > 1 else ""
            write_lesion_map(job.maps / f"{job.case_id}{suffix}.nii.gz", lesion_map(pair, grid.shape), grid)
    files = {"labels": job.label, "predictions": job.prediction, "probabilities": job.probability}
    inputs = {f"{role}/{path.name}": sha256_of(path) for role, path in files.items() if path is not None}
    given = job.classes is not None and job.closed is None
    outside = values_outside(classes, (label, prediction)) if given else ()
    only = next(iter(classes.values()))[0] if job.classes is None and (label.any() or prediction.any()) else None
    return CaseOutcome(job.case_id, tuple(results), inputs, None, outside=outside, only=only)


def _missing_notes(job: CaseJob) -> tuple[str, ...]:
    if job.prediction is None:
        return ("there is no prediction; scored as an empty one",)
    return ("there is no label; scored as an empty one",) if job.label is None else ()


def _masks(job: CaseJob) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Label and prediction, uint8 [x, y, z], on one grid; a missing one is empty."""
    if job.label is None and job.prediction is None:
        raise ValueError(f"case {job.case_id}: neither a label nor a prediction")
    found = None if job.prediction is None else _read_prediction(job.prediction)
    if job.label is None:
        prediction, grid = found  # type: ignore[misc] # one of the two is there
        return np.zeros_like(prediction), prediction, grid
    label, grid = read_mask(job.label)
    if found is None or job.prediction is None:
        return label, np.zeros_like(label), grid
    require_same_grid(grid, job.label, found[1], job.prediction)
    return label, found[0], grid


def _read_prediction(path: Path) -> tuple[np.ndarray, Grid]:
    try:
        return read_mask(path)
    except ScanError as cause:
        if cause.kind != "label_values":
            raise
        advice = "if these are probabilities, pass their folder with --probabilities and masks with --predictions"
        raise ScanError(cause.kind, f"{cause}; {advice}") from cause


def _classes(job: CaseJob, label: np.ndarray, prediction: np.ndarray) -> ClassValues:
    masks = {str(path): mask for path, mask in ((job.label, label), (job.prediction, prediction)) if path is not None}
    if job.classes is None:
        return only_class(masks)
    if job.closed is not None:
        require_known(job.classes, masks, job.closed)
    return job.classes


def _probabilities(job: CaseJob, grid: Grid, classes: int) -> np.ndarray:
    """Float32 [x, y, z, classes] on the grid of the masks."""
    path = job.probability
    if path is None:
        return np.zeros((*grid.shape, classes), np.float32)
    values, found = read_probability(path)
    require_same_grid(grid, job.label or job.prediction or path, found, path)
    if values.shape[3] != classes:
        raise InputError(
            f"{path}: expected the probabilities of {classes} class(es), found {values.shape[3]} channel(s)"
        )
    return values


def draw_files(drawing: tuple[CaseJob, SectionPlan]) -> Section:
    """Reads a case's files again and draws its section of the report; without pictures where memory is short."""
    job, plan = drawing
    try:
        return draw_section(plan, case_pictures(job))
    except MemoryError:
        return draw_section(plan, None)


def case_pictures(job: CaseJob) -> CasePictures:
    """What a case's pictures are drawn from; on black where there is no image that can be used."""
    label, prediction, grid = _masks(job)
    classes = _classes(job, label, prediction)
    wanted = sorted({value for values in classes.values() for value in values})
    image = np.zeros(grid.shape, np.float32)
    if job.image is not None:
        try:
            values, found, _ = read_volume(job.image)
            image = values if found.matches(grid) else image
        except InputError:
            pass  # the figures need no image, and the image is not what is evaluated
    label, prediction = (class_mask(mask, wanted).astype(np.uint8) for mask in (label, prediction))
    return CasePictures(image, label, prediction, grid)
