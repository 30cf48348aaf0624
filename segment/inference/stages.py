"""What happens to one scan: four stages, each of which may fail without harm to the other scans."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import tensorflow as tf

from segment.data.cases import find_label
from segment.data.scan import (
    Case,
    Grid,
    ScanError,
    read_mask,
    read_scan,
    require_same_grid,
    write_mask,
    write_probability,
)
from segment.errors import InputError
from segment.evaluation.metrics import CaseResult, evaluate_case
from segment.files import sha256_of
from segment.inference.predictor import NetworkScan, Predictor
from segment.inference.tiles import to_mask


@dataclass(frozen=True, eq=False)
class Job:
    """What is done with every scan.

    Attributes:
        predictor: The runs.
        output: The folder that is written.
        labels: Folder of expert masks CASE.nii.gz for the report, or None.
        probabilities: Whether probability maps are written too.
        threshold: Probability from which a voxel is foreground, in (0, 1).
        min_lesion_mm3: Smaller components are removed.
    """

    predictor: Predictor
    output: Path
    labels: Path | None
    probabilities: bool
    threshold: float
    min_lesion_mm3: float

    @property
    def operating_point(self) -> dict[str, float]:
        """What the masks are made with."""
        return {"threshold": self.threshold, "min_lesion_mm3": self.min_lesion_mm3}

    def mask_path(self, case: Case) -> Path:
        """Where a case's mask is written."""
        return self.output / "masks" / f"{case.case_id}.nii.gz"


@dataclass(eq=False)
class Passage:
    """A case on its way through the stages: what each leaves for the next, what remains, and the failure if any."""

    case: Case
    path: Path  # that a stage works on, for the row in failures.csv
    grid: Grid | None = None
    header: nib.Nifti1Header | None = None
    scans: list[NetworkScan] = field(default_factory=list)
    mask: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    results: list[CaseResult] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: float = 0.0
    failure: dict[str, str] | None = None


Stage = Callable[[Job, Passage], None]


def take_through(job: Job, passage: Passage, stages: Sequence[Stage]) -> Passage:
    """Takes a case through stages; after a failure nothing more is done with it and what it held is freed."""
    for stage in stages:
        if passage.failure is not None:
            break
        name = stage.__name__
        begun = time.perf_counter()
        try:
            stage(job, passage)
        except (MemoryError, tf.errors.ResourceExhaustedError):
            _fail(passage, "memory", f"case {passage.case.case_id}: not enough memory to {name} it")
        except InputError as cause:
            _fail(passage, cause.kind if isinstance(cause, ScanError) else name, str(cause))
        except OSError as cause:
            _fail(passage, name, f"{passage.path}: {cause.strerror or cause}")
        else:
            passage.seconds[name] = round(time.perf_counter() - begun, 3)
    if passage.failure is not None or evaluate in stages:
        passage.scans, passage.mask, passage.probabilities = [], None, None
        passage.peak_memory_mib = _peak_memory_mib()
    return passage


def _fail(passage: Passage, kind: str, message: str) -> None:
    named = [str(path) for path in passage.case.image_paths if str(path) in message]
    path = max(named, key=len, default=str(passage.path))  # which of the channels it was
    passage.failure = {"case": passage.case.case_id, "path": path, "kind": kind, "message": message}


def read(job: Job, passage: Passage) -> None:
    """Reads the scan and brings it to the networks' grids."""
    scan = read_scan(passage.case, with_label=False)
    passage.inputs = {str(path): sha256_of(path) for path in passage.case.image_paths}
    passage.grid, passage.header = scan.grid, scan.header
    passage.scans = job.predictor.prepare(scan)


def predict(job: Job, passage: Passage) -> None:
    """Runs the networks, the only stage that does."""
    passage.scans = job.predictor.predict_prepared(passage.scans)


def write(job: Job, passage: Passage) -> None:
    """Writes the mask on the scan's own grid and, on request, the probabilities."""
    if passage.grid is None:
        raise ValueError(f"case {passage.case.case_id}: written before it was read")
    passage.probabilities = job.predictor.restore(passage.scans)
    passage.scans = []
    passage.mask = to_mask(
        passage.probabilities, job.predictor.plan, **job.operating_point, voxel_mm3=passage.grid.voxel_mm3
    )
    if job.probabilities:
        passage.path = job.output / "probabilities" / f"{passage.case.case_id}.nii.gz"
        write_probability(passage.path, passage.probabilities, passage.grid, passage.header)
    passage.path = job.mask_path(passage.case)
    write_mask(passage.path, passage.mask, passage.grid, passage.header)


def evaluate(job: Job, passage: Passage) -> None:
    """Compares the mask with the expert's, where there are labels."""
    if job.labels is None or passage.mask is None or passage.probabilities is None or passage.grid is None:
        return
    passage.path = job.labels
    passage.path = find_label(job.labels, passage.case.case_id)
    label, grid = read_mask(passage.path)
    require_same_grid(passage.grid, passage.case.image_paths[0], grid, passage.path)
    passage.inputs[str(passage.path)] = sha256_of(passage.path)
    passage.results = [
        evaluate_case(
            passage.case.case_id,
            label,
            passage.mask,
            grid,
            config=job.predictor.config.evaluation,
            value=value,
            class_name=name,
            probability=passage.probabilities[..., index],
            distances=True,
            froc=True,
        )
        for index, (name, value) in enumerate(job.predictor.plan.label_values.items())
    ]


def _peak_memory_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
