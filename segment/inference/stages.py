"""What happens to one scan: stages, each of which may fail without harm to the other scans."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import tensorflow as tf

from segment.data.label_files import LabelFiles
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
from segment.evaluation.class_values import values_outside
from segment.evaluation.lesion_map import lesion_map, write_lesion_map
from segment.evaluation.metrics import CaseResult, measure
from segment.files import sha256_of
from segment.inference.memory import Wanted
from segment.inference.outputs import MAPS, REPORT
from segment.inference.point_in_use import PointInUse
from segment.inference.predictor import NetworkScan, Prediction, Predictor
from segment.inference.records import Record, Shard, is_complete, read_record, without_results, write_record
from segment.inference.tiles import remove_doubtful
from segment.memory_use import peak_bytes

CHOSE_THE_POINT = "this scan is among those that chose the operating point: its figures there are too good"


@dataclass(frozen=True, eq=False)
class Job:
    """What is done with every scan.

    Attributes:
        predictor: The runs.
        output: The folder that is written.
        labels: Expert masks for the report, or None.
        probabilities: Whether probability maps are written too.
        point: Threshold, smallest lesion and the peak that a lesion must reach.
        settings: SHA-256 of all that the outputs depend on beside the inputs.
        resume: Whether cases that are complete are left as they are.
        shard: Which part of the cases this is, or None for all.
    """

    predictor: Predictor
    output: Path
    labels: LabelFiles | None
    probabilities: bool
    point: PointInUse
    settings: str
    resume: bool
    shard: Shard | None

    @property
    def wanted(self) -> Wanted:
        """What is made of each scan beside its mask."""
        return self.predictor.wanted(
            probabilities=self.probabilities,
            scored=self.labels is not None,
            peaks=self.point.min_peak > self.point.threshold,
        )

    def outputs_of(self, case_id: str) -> list[str]:
        """The files that are written for a case, by path below the output folder; the mask is the last."""
        uncertainty = self.predictor.config.inference.uncertainty != "none"
        folders = ["probabilities"] * self.probabilities + ["uncertainty"] * uncertainty + ["masks"]
        return [f"{folder}/{case_id}.nii.gz" for folder in folders]


@dataclass(eq=False)
class Passage:
    """A case on its way through the stages: what each leaves for the next, what remains, and the failure if any."""

    case: Case
    path: Path  # that a stage works on, for the row in failures.csv
    record: Record | None = None  # of an earlier prediction, where nothing has to be done again
    grid: Grid | None = None
    header: nib.Nifti1Header | None = None
    scans: list[NetworkScan] = field(default_factory=list)
    prediction: Prediction | None = None
    results: list[CaseResult] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    label: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failure: dict[str, str] | None = None


Stage = Callable[[Job, Passage], None]


def take_through(job: Job, passage: Passage, stages: Sequence[Stage]) -> Passage:
    """Takes a case through stages; after a failure nothing more is done with it and what it held is freed."""
    for stage in stages:
        if passage.failure is not None or passage.record is not None:
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
            _fail(passage, name, f"{cause.filename or passage.path}: {cause.strerror or cause}")
        else:
            if stage is not look_up:
                passage.seconds[name] = round(time.perf_counter() - begun, 3)
    if passage.failure is not None or evaluate in stages:
        passage.scans, passage.prediction = [], None
    return passage


def close(job: Job, passage: Passage) -> Record:
    """Writes the record of a case that has been through all stages, or has failed in one, and returns it."""
    if passage.record is not None:
        return passage.record
    record = Record(
        case_id=passage.case.case_id,
        images=tuple(os.path.abspath(path) for path in passage.case.image_paths),
        image_volumes=passage.case.image_volumes,
        inputs=passage.inputs,
        label=passage.label,
        outputs=passage.outputs,
        failure=passage.failure,
        seconds=passage.seconds,
        peak_memory_mib=_peak_memory_mib(),
        settings=job.settings,
        results=tuple(passage.results),
    )
    try:
        write_record(job.output, record)
    except InputError as cause:
        if passage.failure is None:
            _fail(passage, "write", str(cause))
            record = replace(record, failure=passage.failure)
    return record


def _fail(passage: Passage, kind: str, message: str) -> None:
    named = [str(path) for path in passage.case.image_paths if str(path) in message]
    path = max(named, key=len, default=str(passage.path))  # which of the channels it was
    passage.failure = {"case": passage.case.case_id, "path": path, "kind": kind, "message": message}


def look_up(job: Job, passage: Passage) -> None:
    """Takes over what an earlier run made of the case, where all that it depends on is the same."""
    if not job.resume:
        return
    case_id = passage.case.case_id
    path = None if job.labels is None else job.labels.files.get(case_id)
    try:
        found = read_record(job.output, case_id)
        if found is None or not found.written:
            return
        label = None if path is None else sha256_of(path)
        digests = [sha256_of(path) for path in dict.fromkeys(passage.case.image_paths)]  # 4D files hold several
    except (InputError, OSError):
        return  # what cannot be read is no reason to skip the case; the stages after this one say what is wrong
    unscored = path is None and _without_label(found, job)
    mask = replace(found, failure=None) if unscored else found
    files = job.outputs_of(case_id)
    if not is_complete(mask, job.output, digests=digests, settings=job.settings, label=label, files=files):
        return
    if job.labels is None:
        passage.record = without_results(mask)
        if unscored:
            write_record(job.output, passage.record)
    elif path is not None or unscored:
        passage.record = found


def _without_label(record: Record, job: Job) -> bool:
    """Whether nothing but the comparison failed, and for a reason that still holds or no longer matters."""
    failure = record.failure
    if failure is None or failure["kind"] != evaluate.__name__:
        return False
    return job.labels is None or os.path.abspath(failure["path"]) == os.path.abspath(job.labels.source)


def read(job: Job, passage: Passage) -> None:
    """Reads the scan and brings it to the networks' grids."""
    job.predictor.memory.require(passage.case, job.wanted)
    scan = read_scan(passage.case, with_label=False)
    passage.inputs = {str(path): sha256_of(path) for path in dict.fromkeys(passage.case.image_paths)}
    passage.grid, passage.header = scan.grid, scan.header
    passage.scans = job.predictor.prepare(scan)


def predict(job: Job, passage: Passage) -> None:
    """Runs the networks, the only stage that does."""
    passage.prediction = job.predictor.predict_prepared(
        passage.scans,
        threshold=job.point.threshold,
        keep_probabilities=job.probabilities or job.labels is not None,
        min_peak=job.point.min_peak,
    )
    passage.scans = []


def write(job: Job, passage: Passage) -> None:
    """Writes the mask on the scan's own grid and, on request, the probabilities and the uncertainty."""
    found = passage.prediction
    if passage.grid is None or found is None:
        raise ValueError(f"case {passage.case.case_id}: written before it was predicted")
    remove_doubtful(
        found.mask,
        job.predictor.plan,
        min_lesion_mm3=job.point.min_lesion_mm3,
        voxel_mm3=passage.grid.voxel_mm3,
        peaks=found.peaks,
    )
    maps = {"probabilities": found.probabilities, "uncertainty": found.uncertainty}
    names = job.outputs_of(passage.case.case_id)
    for name in names:
        passage.path = job.output / name
        values = maps.get(name.split("/")[0])
        if values is not None:
            write_probability(passage.path, values, passage.grid, passage.header)
        else:
            write_mask(passage.path, found.mask, passage.grid, passage.header)
    passage.outputs = {name: sha256_of(job.output / name) for name in names}


def evaluate(job: Job, passage: Passage) -> None:
    """Compares the mask with the expert's, where there are labels, and writes the map of its lesions."""
    found, case_id = passage.prediction, passage.case.case_id
    if job.labels is None or found is None or found.probabilities is None or passage.grid is None:
        return
    passage.path = job.labels.source
    passage.path = job.labels.of(case_id)
    label, grid = read_mask(passage.path)
    require_same_grid(passage.grid, passage.case.image_paths[0], grid, passage.path)
    passage.label = {os.path.abspath(passage.path): sha256_of(passage.path)}
    results = []
    classes = job.predictor.plan.label_values
    others = _other_values(label, classes, passage.path)
    for index, (name, value) in enumerate(classes.items()):
        result, pair = measure(
            case_id,
            label,
            found.mask,
            grid,
            config=job.predictor.config.evaluation,
            values=(value,),
            class_name=name,
            probability=found.probabilities[..., index],
            distances=True,
            froc=True,
        )
        results.append(_noted(result, job, passage, others))
        suffix = f"_{value}" if len(classes) > 1 else ""
        path = job.output / REPORT / MAPS / f"{case_id}{suffix}.nii.gz"
        write_lesion_map(path, np.asarray(lesion_map(pair, grid.shape)), grid)
    passage.results = results


def _other_values(label: np.ndarray, classes: Mapping[str, int], path: Path) -> tuple[str, ...]:
    """A note on values of a label that belong to no class. Raises InputError where it has no others."""
    others = values_outside({name: (value,) for name, value in classes.items()}, (label,))
    if not others:
        return ()
    found = ", ".join(map(str, others))
    if not np.isin(label, list(classes.values())).any():
        known = ", ".join(f"{name} ({value})" for name, value in classes.items())
        raise InputError(f"{path}: expected the values of {known}, found only {found}; change the label's values")
    return (f"the label also has values that belong to no class: {found}",)


def _noted(result: CaseResult, job: Job, passage: Passage, others: tuple[str, ...]) -> CaseResult:
    chose = (CHOSE_THE_POINT,) * bool(job.point.seen & set(passage.inputs.values()))
    return replace(result, notes=(*result.notes, *others, *chose))


def _peak_memory_mib() -> float:
    return round(peak_bytes() / 2**20, 1)
