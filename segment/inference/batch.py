"""Many scans: reading, predicting and writing overlap, and a scan that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow as tf

from segment.data.cases import find_inputs, find_label
from segment.data.scan import Case, read_mask, read_scan
from segment.errors import InputError
from segment.evaluation.definitions import versions
from segment.evaluation.folders import headline
from segment.evaluation.pictures import CasePictures
from segment.evaluation.tables import csv_text, write_report
from segment.files import claim_folder, write_json, write_text
from segment.inference.predictor import Predictor
from segment.inference.stages import Job, Passage, evaluate, predict, read, take_through, write
from segment.progress import CONSOLE, progress_bar

FAILURE_COLUMNS = ("case", "path", "kind", "message")


def predict_cases(
    runs: Sequence[Path],
    source: Path,
    output: Path,
    *,
    labels: Path | None,
    probabilities: bool,
    threshold: float | None,
    force: bool,
) -> int:
    """Predicts scans: masks/CASE.nii.gz, failures.csv, manifest.json and, on request, probabilities/ and report/.

    Args:
        runs: Run folders; the probabilities of several are averaged.
        source: A file, a folder or a CSV, as `find_inputs` takes it.
        output: New folder.
        labels: Folder of expert masks CASE.nii.gz; with it the report on the scans that succeeded is written.
        probabilities: Write the probability maps too.
        threshold: Probability from which a voxel is foreground, in (0, 1); None takes the first run's.
        force: Replaces an output folder of an earlier prediction.

    Returns:
        0, or 1 when some scans failed; they stand in failures.csv (case, path, kind, message).

    Raises:
        InputError: A run, the source, the labels folder or the output folder cannot be used.
    """
    predictor = Predictor.load(runs)
    cases = find_inputs(source, channels=predictor.plan.channels)
    if labels is not None and not labels.is_dir():
        raise InputError(f"labels {labels}: expected a folder of masks CASE.nii.gz, found no folder")
    claim_folder(output, force=force)
    options = predictor.config.inference
    job = Job(
        predictor,
        output,
        labels,
        probabilities,
        options.threshold if threshold is None else threshold,
        options.min_lesion_mm3,
    )
    return run_job(job, cases)


def run_job(job: Job, cases: Sequence[Case]) -> int:
    """Predicts the cases into a claimed output folder. Returns 0, or 1 when some failed."""
    (job.output / "masks").mkdir(exist_ok=True)
    passages: list[Passage] = []
    _write_failures(job, passages)
    with progress_bar("predict", len(cases)) as bar:
        for passage in _passages(job, cases):
            passages.append(passage)
            if passage.failure is not None:
                outcome = "mask written, not scored" if "write" in passage.seconds else "failed"
                note = f"{outcome}: {passage.failure['message']}"
                CONSOLE.print(note, markup=False, soft_wrap=True)
                _write_failures(job, passages)
            bar.advance()
    write_json(job.output / "manifest.json", _manifest(job, passages))
    written = sum("write" in passage.seconds for passage in passages)
    print(f"{written} of {len(cases)} scans predicted: {job.output / 'masks'}")
    if job.labels is not None:
        _report(job, passages, job.labels)
    return int(any(passage.failure is not None for passage in passages))


def _passages(job: Job, cases: Sequence[Case]) -> Iterator[Passage]:
    """Yields each case when it is done.

    One thread beside this one first writes the last case, then reads the next, while the network computes the present
    one; that order keeps at most two cases in memory.
    """
    with ThreadPoolExecutor(1) as beside:
        begun = [beside.submit(take_through, job, Passage(case, case.image_paths[0]), (read,)) for case in cases[:1]]
        ending: Future[Passage] | None = None
        for index in range(len(cases)):
            present = begun.pop().result()
            for case in cases[index + 1 : index + 2]:
                begun.append(beside.submit(take_through, job, Passage(case, case.image_paths[0]), (read,)))
            take_through(job, present, (predict,))
            if ending is not None:
                yield ending.result()
            ending = beside.submit(take_through, job, present, (write, evaluate))
            del present
        if ending is not None:
            yield ending.result()


def _write_failures(job: Job, passages: Sequence[Passage]) -> None:
    rows = [passage.failure for passage in passages if passage.failure is not None]
    write_text(job.output / "failures.csv", csv_text(FAILURE_COLUMNS, rows))


def _manifest(job: Job, passages: Sequence[Passage]) -> dict[str, Any]:
    """What the masks came from. `peak_memory_mib` is the process's largest up to the end of that case."""
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
        "operating_point": job.operating_point,
        "cases": {passage.case.case_id: _case_entry(passage) for passage in passages},
    }


def _case_entry(passage: Passage) -> Mapping[str, Any]:
    return {
        "written": "write" in passage.seconds,
        "failure": None if passage.failure is None else passage.failure["kind"],
        "inputs": passage.inputs,
        "seconds": passage.seconds,
        "peak_memory_mib": passage.peak_memory_mib,
    }


def _report(job: Job, passages: Sequence[Passage], labels: Path) -> None:
    """Writes report/ on the cases that were compared with a label."""
    done = {passage.case.case_id: passage for passage in passages if passage.results}
    if not done:
        CONSOLE.print("no report: no scan was compared with a label", markup=False)
        return

    def pictures(case_id: str) -> CasePictures:
        passage = done[case_id]
        scan = read_scan(passage.case, with_label=False)
        mask, _ = read_mask(job.mask_path(passage.case))
        label, _ = read_mask(find_label(labels, case_id))
        return CasePictures(scan.image[..., 0], label, mask, scan.grid)

    summary = write_report(
        [result for passage in done.values() for result in passage.results],
        job.output / "report",
        config=job.predictor.config.evaluation,
        seed=job.predictor.config.seed,
        inputs={path: digest for passage in done.values() for path, digest in passage.inputs.items()},
        scans=pictures,
        operating_point=job.operating_point,
    )
    print(headline(summary, job.output / "report"))
