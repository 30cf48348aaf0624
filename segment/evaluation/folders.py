"""Evaluation of a folder of masks, from any tool, against a folder of labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from segment.config import EvaluationConfig
from segment.data.nifti import ENDINGS
from segment.errors import InputError
from segment.evaluation.case_files import CaseJob, CaseOutcome, case_pictures, draw_files, evaluate_files, failed
from segment.evaluation.class_values import ClassValues, find_class_values
from segment.evaluation.lesion_map import write_colours
from segment.evaluation.notes import class_notes, left_out_notes
from segment.evaluation.report_sections import Section, SectionPlan, draw_section
from segment.evaluation.tables import csv_text, write_report
from segment.evaluation.workers import Workers
from segment.files import claim_folder, write_text
from segment.progress import CONSOLE, progress_bar

Missing = Literal["error", "empty"]
FAILURE_COLUMNS = ("case", "path", "kind", "message")  # of an inference folder too
MAPS = "lesion_maps"
_NAMED = 3  # so many examples in a message
_ENDED = "its process was ended from outside, perhaps for lack of memory; use fewer workers or a larger machine"


def evaluate_folders(
    predictions: Path,
    labels: Path,
    output: Path,
    *,
    config: EvaluationConfig,
    seed: int,
    probabilities: Path | None,
    images: Path | None,
    classes: ClassValues | None,
    missing: Missing,
    workers: int,
    language: str,
    force: bool,
) -> int:
    """Evaluates every case of two folders and writes the report.

    Files are paired by their names without .nii.gz or .nii; other files are left aside, so that an nnU-Net output
    folder can be given as it is. An inference folder of ours may be given for its `masks`.

    Args:
        predictions: Folder of masks.
        labels: Folder of expert masks.
        output: New folder: lesions.csv, cases.json, summary.json, report.html, failures.csv and lesion_maps/.
        config: Size bins, minimum size, matching, draws.
        seed: Of the resampling for the intervals.
        probabilities: Folder of probability maps named as the masks, for FROC and the greatest one in each lesion.
        images: Folder of scans for the pictures, CASE_0000 or CASE; None looks beside an nnU-Net labels folder.
        classes: Values by class name; None takes them from a dataset.json, else the only value above 0 is the class.
        missing: Whether a case that is in one folder only is an error, or is scored with an empty mask.
        workers: Processes; the results do not depend on it.
        language: Of the report's labels: `en` or `zh`.
        force: Replaces an output folder of an earlier evaluation.

    Returns:
        0, or 1 when some cases failed; they stand in failures.csv.

    Raises:
        InputError: The folders have no case in common, a case is in one only, none could be evaluated, no case has one
            of `images`, the only value differs from case to case, or the output folder exists or cannot be written.
    """
    jobs = find_jobs(
        predictions,
        labels,
        config=config,
        probabilities=probabilities,
        images=images,
        classes=classes,
        missing=missing,
        maps=output / MAPS,
    )
    claim_folder(output, force=force, inputs=(predictions, labels, probabilities, images), kind="report")
    write_colours(output / MAPS)
    with Workers(min(workers, len(jobs))) as pool:
        outcomes = run_jobs(jobs, pool)
        write_failures(outcomes, output)
        summary = report_outcomes(jobs, outcomes, output, pool, config=config, seed=seed, language=language)
    for note in summary["notes"]:
        CONSOLE.print(note, markup=False, soft_wrap=True)
    print(headline(summary, output))
    return int(any(outcome.error is not None for outcome in outcomes))


def find_jobs(
    predictions: Path,
    labels: Path,
    *,
    config: EvaluationConfig,
    probabilities: Path | None,
    images: Path | None,
    classes: ClassValues | None,
    missing: Missing,
    maps: Path | None,
) -> list[CaseJob]:
    """Pairs the files of two folders, sorted by case. Raises InputError as `evaluate_folders` does."""
    found, expected = mask_files(predictions), mask_files(labels)
    _require_pairs(predictions, found, labels, expected, missing)
    table = None if classes is not None else find_class_values((predictions, labels, labels.parent))
    closed = None
    if table is not None:
        classes, closed = table[0], str(table[1])
    scores = {} if probabilities is None else mask_files(probabilities)
    jobs = []
    for case_id in sorted(found.keys() | expected.keys()):
        if probabilities is not None and case_id in found and case_id not in scores:
            raise InputError(
                f"case {case_id}: expected its probabilities in {probabilities}, found none; leave them out or add them"
            )
        jobs.append(
            CaseJob(
                case_id=case_id,
                prediction=found.get(case_id),
                label=expected.get(case_id),
                probability=scores.get(case_id) if case_id in found else None,
                froc=probabilities is not None,
                image=_image_of(case_id, images, labels),
                classes=classes,
                closed=closed,
                config=config,
                maps=maps,
            )
        )
    if images is not None and not any(job.image for job in jobs):
        raise InputError(
            f"--images {images}: expected {jobs[0].case_id}_0000.nii.gz or {jobs[0].case_id}.nii.gz, found none"
        )
    return jobs


def mask_files(folder: Path) -> dict[str, Path]:
    """Case id -> NIfTI file of a folder, or of its subfolder `masks` where it holds none itself.

    Raises:
        InputError: It is not a folder, holds no NIfTI file, or two files are of one case.
    """
    if not os.path.isdir(folder):
        found = "a file" if os.path.exists(folder) else "nothing that can be read"
        raise InputError(f"{folder}: expected a folder of masks, found {found}")
    files: dict[str, Path] = {}
    try:
        for path in sorted(folder.iterdir()):
            ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
            if ending is None or path.name.startswith("."):
                continue
            case_id = path.name.removesuffix(ending)
            if case_id in files:
                raise InputError(
                    f"{folder}: expected one file for case {case_id}, found {files[case_id].name} and {path.name}"
                )
            files[case_id] = path
    except OSError as cause:
        raise InputError(f"{folder}: cannot be read: {cause.strerror or cause}; check its permissions") from cause
    if not files and os.path.isdir(folder / "masks"):
        return mask_files(folder / "masks")
    if not files:
        raise InputError(f"{folder}: expected masks named CASE.nii.gz or CASE.nii, found none")
    return files


def _require_pairs(
    predictions: Path, found: Mapping[str, Path], labels: Path, expected: Mapping[str, Path], missing: Missing
) -> None:
    if not found.keys() & expected.keys():
        raise InputError(
            f"no case is in both folders: {predictions} has {_examples(found)} and {labels} has {_examples(expected)}; "
            "expected files of the same names"
        )
    for kind, folder, absent in (
        ("prediction", predictions, expected.keys() - found.keys()),
        ("label", labels, found.keys() - expected.keys()),
    ):
        if absent and missing == "error":
            raise InputError(
                f"{folder}: expected a {kind} for each case, found none for {_examples(absent)}; add the files, "
                "or pass --missing empty to score them as empty masks"
            )


def _examples(case_ids: Mapping[str, Path] | set[str]) -> str:
    names = sorted(case_ids)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _image_of(case_id: str, images: Path | None, labels: Path) -> Path | None:
    folder = images
    if folder is None and labels.name.startswith("labels"):
        folder = labels.with_name("images" + labels.name.removeprefix("labels"))
    if folder is None:
        return None
    names = (f"{case_id}{channel}{ending}" for channel in ("_0000", "") for ending in ENDINGS)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def run_jobs(jobs: Sequence[CaseJob], pool: Workers) -> list[CaseOutcome]:
    """The outcome of every job, in their order; one that fails does not stop the others."""
    with progress_bar("evaluate", len(jobs)) as bar:

        def done(outcome: CaseOutcome | None) -> None:
            if outcome is not None and outcome.error is not None:
                CONSOLE.print(f"case {outcome.case_id} failed: {outcome.error}", markup=False, soft_wrap=True)
            bar.advance()

        outcomes = pool.run(evaluate_files, jobs, done=done)
        for index, outcome in enumerate(outcomes):
            if outcome is None:
                outcomes[index] = failed(jobs[index], _ENDED, kind="ended")
                CONSOLE.print(f"case {jobs[index].case_id} failed: {_ENDED}", markup=False, soft_wrap=True)
    return [outcome for outcome in outcomes if outcome is not None]


def write_failures(outcomes: Sequence[CaseOutcome], output: Path) -> None:
    """Writes failures.csv, with a header alone when nothing failed.

    Raises:
        InputError: Every case failed.
    """
    rows = [outcome.failure() for outcome in outcomes if outcome.error is not None]
    write_text(output / "failures.csv", csv_text(FAILURE_COLUMNS, rows))
    if len(rows) == len(outcomes):
        raise InputError(
            f"none of {len(rows)} cases could be evaluated, see {output / 'failures.csv'}; "
            f"the first: {rows[0]['message']}"
        )


def report_outcomes(
    jobs: Sequence[CaseJob],
    outcomes: Sequence[CaseOutcome],
    output: Path,
    pool: Workers,
    *,
    config: EvaluationConfig,
    seed: int,
    language: str,
) -> dict[str, Any]:
    """Writes the report of the cases that have results and returns its summary; its pictures are drawn in `pool`."""
    by_case = {job.case_id: job for job in jobs}
    evaluated = sum(outcome.error is None for outcome in outcomes)

    def draw_all(plans: Sequence[SectionPlan]) -> list[Section]:
        with progress_bar("report", len(plans)) as bar:
            drawings = [(by_case[plan.case_id], plan) for plan in plans]
            sections = pool.run(draw_files, drawings, done=lambda _: bar.advance())
        return [section or draw_section(plan, None) for plan, section in zip(plans, sections, strict=True)]

    return write_report(
        [result for outcome in outcomes for result in outcome.results],
        output,
        config=config,
        seed=seed,
        inputs={name: digest for outcome in outcomes for name, digest in outcome.inputs.items()},
        scans=lambda case_id: case_pictures(by_case[case_id]),
        language=language,
        draw_all=draw_all,
        notes=[*left_out_notes(len(jobs), evaluated), *class_notes(jobs[0].classes, outcomes)],
    )


def headline(summary: Mapping[str, Any], output: Path) -> str:
    """The result in one line."""
    micro = summary["micro"]
    recall = micro["small_lesion_recall"]
    small = (
        "no small lesions"
        if recall is None
        else f"small-lesion recall {recall:.2f} ({micro['n_small_found']} of {micro['n_small']})"
    )
    rate = f"{micro['fp_per_scan']:.2f} false positives a scan"
    return f"{summary['n_cases']} cases: {small}, {rate}; {output / 'report.html'}"
