"""Many scans: reading, predicting and writing overlap, and a scan that fails does not stop the others."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow as tf

from segment.data.bids import input_filters
from segment.data.cases import find_inputs
from segment.data.label_files import LabelFiles, find_labels
from segment.data.scan import Case
from segment.errors import InputError
from segment.evaluation.definitions import versions
from segment.files import MARKER, claim_folder
from segment.inference.operating_point import point_in_words
from segment.inference.outputs import report_records, write_failures, write_manifest
from segment.inference.point_in_use import PointInUse, point_in_use
from segment.inference.predictor import Predictor
from segment.inference.records import Record, Shard
from segment.inference.stages import Job, Passage, close, evaluate, look_up, predict, read, take_through, write
from segment.progress import CONSOLE, progress_bar

# Options of the section `inference` that change no mask, or are replaced by the point in use.
_WITHOUT_EFFECT = {"threshold", "min_lesion_mm3", "operating_point", "window_batch", "max_memory_gb"}


def predict_cases(
    runs: Sequence[Path],
    source: Path,
    output: Path,
    *,
    labels: Path | None,
    probabilities: bool,
    threshold: float | None,
    changes: Mapping[str, Any],
    force: bool,
    resume: bool,
    shard: Shard | None,
    max_fp_per_scan: float | None = None,
) -> int:
    """Predicts scans: masks/CASE.nii.gz, failures.csv, manifest.json and, on request, probabilities/ and report/.

    Args:
        runs: Run folders; the probabilities of several are averaged.
        source: What `find_inputs` takes: a file, a folder, a dataset or a CSV.
        output: New folder.
        labels: What `find_labels` takes: a folder of expert masks CASE.nii.gz, or a dataset; with it the report on the
            scans that succeeded is written.
        probabilities: Write the probability maps too.
        threshold: Probability from which a voxel is foreground, in (0, 1); None takes the runs' operating point.
        changes: Options of the section `inference` that replace those of the runs.
        force: Replaces an output folder of an earlier prediction.
        resume: Keeps what an earlier prediction with the same models, settings and inputs has completed.
        shard: Which part of the cases to predict; its manifest and failures get names of their own, and the report is
            left to `merge_reports`.
        max_fp_per_scan: Chooses the operating point again, for so many false positives a scan; without a threshold.

    Returns:
        0, or 1 when some scans failed; they stand in failures.csv (case, path, kind, message).

    Raises:
        InputError: A run, the source, the labels or the output folder cannot be used.
    """
    predictor = Predictor.load(runs, changes=changes)
    _require_votes(predictor)
    filters = input_filters(predictor.config.data.bids, predictor.plan.channel_names)
    cases = find_inputs(source, channels=predictor.plan.channel_names, bids=filters)
    experts = None if labels is None else _labels_of(labels, cases, predictor)
    point = point_in_use(
        [member.run_dir for member in predictor.members],
        [member.model_sha256 for member in predictor.members],
        predictor.config,
        threshold=threshold,
        max_fp_per_scan=max_fp_per_scan,
    )
    _claim(output, force=force, resume=resume, shard=shard, inputs=(*runs, source, labels))
    _say(point)
    settings = settings_digest(predictor, point)
    job = Job(predictor, output, experts, probabilities, point, settings, resume, shard)
    return run_job(job, cases)


def settings_digest(predictor: Predictor, point: PointInUse) -> str:
    """SHA-256 of all that a mask depends on beside the scan: models, plans, options, operating point."""
    values = {
        "models": [
            {
                "sha256": member.model_sha256,
                "plan": member.plan.to_json(),
                "inference": member.config.inference.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
            }
            for member in predictor.members
        ],
        "point": [point.threshold, point.min_lesion_mm3, point.min_peak],
        "evaluation": predictor.config.evaluation.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _require_votes(predictor: Predictor) -> None:
    """Raises InputError for maps of how far one vote agrees with itself: zeros, which a reader takes for certainty."""
    options = predictor.config.inference
    if options.uncertainty == "deviation" and len(predictor.members) == 1 and not options.flips:
        raise InputError(
            "inference.uncertainty deviation: expected several votes, found one network without flips; add --flips or "
            "another --run, or take --uncertainty entropy"
        )


def _labels_of(labels: Path, cases: Sequence[Case], predictor: Predictor) -> LabelFiles:
    found = find_labels(labels, bids=predictor.config.data.bids)
    if not any(case.case_id in found.files for case in cases):
        raise InputError(
            f"labels {labels}: expected masks named as the cases, such as {cases[0].case_id}.nii.gz, found none for "
            f"any of {len(cases)}; give another folder or dataset or leave --labels out"
        )
    return found


def _claim(output: Path, *, force: bool, resume: bool, shard: Shard | None, inputs: Sequence[Path | None]) -> None:
    """Makes the output folder ready; shards share one, and each refuses only to do its own part twice."""
    if (resume or shard) and output.is_dir() and any(output.iterdir()) and not (output / MARKER).exists():
        raise InputError(f"output folder {output} holds files that segment did not write; choose another path")
    if shard is None:
        claim_folder(output, force=force, resume=resume, inputs=inputs, kind="predictions")
        return
    if force:
        raise InputError("--force would remove what the other shards have written; pass --resume, or empty the folder")
    if (output / f"manifest{shard.suffix}.json").exists() and not resume:
        raise InputError(f"shard {shard} has been predicted into {output}; pass --resume to complete it")
    claim_folder(output, resume=True, inputs=inputs, kind="predictions")


def _say(point: PointInUse) -> None:
    print(f"{point_in_words(point.threshold, point.min_lesion_mm3, point.min_peak)} ({point.source})")
    for note in point.notes:
        print(f"  {note}")


def run_job(job: Job, cases: Sequence[Case]) -> int:
    """Predicts the cases, or the job's shard of them, into a claimed folder. Returns 0, or 1 when some failed."""
    (job.output / "masks").mkdir(exist_ok=True)
    own = cases if job.shard is None else cases[job.shard.index - 1 :: job.shard.count]
    suffix = "" if job.shard is None else job.shard.suffix
    records: list[Record] = []
    kept = 0
    write_failures(job.output, records, suffix=suffix)
    begun = time.perf_counter()
    with progress_bar("predict", len(own)) as bar:
        for record, was_there in _records(job, own):
            records.append(record)
            kept += was_there
            if record.failure is not None:
                outcome = "mask written, not scored" if record.written else "failed"
                CONSOLE.print(f"{outcome}: {record.failure['message']}", markup=False, soft_wrap=True)
                write_failures(job.output, records, suffix=suffix)
            bar.advance(note=f"{len(records) / (time.perf_counter() - begun):.2f} scans/s")
    seconds = time.perf_counter() - begun
    head = _head(job, cases)
    write_manifest(job.output, head, records, suffix=suffix)
    written = sum(record.written for record in records)
    before = f", {kept} of them before" if kept else ""
    print(f"{written} of {len(own)} scans predicted{before} in {seconds:.1f} s: {job.output / 'masks'}")
    if job.labels is not None and job.shard is None:
        report_records(job.output, records, head)
    elif job.shard is not None:
        print(f"when all {job.shard.count} shards are done: segment merge-reports {job.output}")
    return int(any(record.failure is not None for record in records))


def _records(job: Job, cases: Sequence[Case]) -> Iterator[tuple[Record, bool]]:
    """Yields the record of each case when it is done, and whether it was complete before.

    One thread beside this one first writes the last case, then reads the next, while the network computes the present
    one; that order keeps at most two cases in memory. Where the limit allows only one, the next waits for its end.
    """

    def begin(case: Case) -> Passage:
        return take_through(job, Passage(case, case.image_paths[0]), (look_up, read))

    def end(passage: Passage) -> tuple[Record, bool]:
        return close(job, take_through(job, passage, (write, evaluate))), passage.record is not None

    with ThreadPoolExecutor(1) as beside:
        begun = [beside.submit(begin, case) for case in cases[:1]]
        ending: Future[tuple[Record, bool]] | None = None
        for index in range(len(cases)):
            present = begun.pop().result()
            following = cases[index + 1 : index + 2]
            together = job.predictor.memory.fit_together(cases[index : index + 2], job.wanted)
            if together:
                begun += [beside.submit(begin, case) for case in following]
            take_through(job, present, (predict,))
            if ending is not None:
                yield ending.result()
            ending = beside.submit(end, present)
            if not together:
                begun += [beside.submit(begin, case) for case in following]
            del present
        if ending is not None:
            yield ending.result()


def _head(job: Job, cases: Sequence[Case]) -> dict[str, Any]:
    """What the masks came from."""
    return {
        "versions": versions() | {"tensorflow": tf.__version__},
        "runs": [
            {
                "run": member.run_dir,
                "model_sha256": member.model_sha256,
                "inference": member.config.inference.model_dump(),
            }
            for member in job.predictor.members
        ],
        "plan": job.predictor.plan.to_json(),
        "operating_point": job.point.to_json(),
        "settings_sha256": job.settings,
        "evaluation": job.predictor.config.evaluation.model_dump(mode="json"),
        "seed": job.predictor.config.seed,
        "shard": None if job.shard is None else str(job.shard),
        "n_inputs": len(cases),
    }
