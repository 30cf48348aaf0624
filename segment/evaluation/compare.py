"""Two folders of predictions on the same cases, evaluated and compared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segment.config import EvaluationConfig
from segment.errors import InputError
from segment.evaluation.case_files import CaseJob, CaseOutcome
from segment.evaluation.class_values import ClassValues
from segment.evaluation.compare_page import write_comparison
from segment.evaluation.folders import FAILURE_COLUMNS, MAPS, Missing, find_jobs, report_outcomes, run_jobs
from segment.evaluation.lesion_map import write_colours
from segment.evaluation.metrics import CaseResult
from segment.evaluation.paired import LESION_COLUMNS, SIDES, compare_results, compared_lesions, headline
from segment.evaluation.tables import csv_text
from segment.evaluation.workers import Workers
from segment.files import claim_folder, write_json, write_text


def compare_folders(
    first: Path,
    second: Path,
    labels: Path,
    output: Path,
    *,
    config: EvaluationConfig,
    seed: int,
    images: Path | None,
    classes: ClassValues | None,
    missing: Missing,
    workers: int,
    language: str,
    force: bool,
) -> int:
    """Evaluates two folders of masks against the same labels and compares them.

    Writes comparison.json, comparison.html, compared_lesions.csv and failures.csv, and the full report of each side in
    `first` and `second`. A case that fails in one is left out of the comparison and of both reports.

    Args:
        first, second: Folders of masks; differences are second minus first.
        labels, output, config, seed, images, classes, missing, workers, language, force: As in `evaluate_folders`.

    Returns:
        0, or 1 when some cases failed.

    Raises:
        InputError: As `evaluate_folders`, or no case succeeded in both, or the folders hold different cases or classes.
    """
    folders = dict(zip(SIDES, (first, second), strict=True))
    jobs = {
        side: find_jobs(
            folder,
            labels,
            config=config,
            probabilities=None,
            images=images,
            classes=classes,
            missing=missing,
            maps=output / side / MAPS,
        )
        for side, folder in folders.items()
    }
    _require_same_cases(folders, {side: {job.case_id for job in jobs[side]} for side in SIDES})
    _share_classes(folders, jobs)
    claim_folder(output, force=force, inputs=(first, second, labels, images), kind="comparison")
    with Workers(min(workers, len(jobs["first"]))) as pool:
        outcomes = {side: run_jobs(jobs[side], pool) for side in SIDES}
        bad = _write_failures(folders, outcomes, output)
        kept = {side: [outcome for outcome in outcomes[side] if outcome.case_id not in bad] for side in SIDES}
        for side in SIDES:
            write_colours(output / side / MAPS)
            report_outcomes(jobs[side], kept[side], output / side, pool, config=config, seed=seed, language=language)
    results = [[result for outcome in kept[side] for result in outcome.results] for side in SIDES]
    comparison = compare_results(*results, names=_names(first, second), config=config, seed=seed) | {"left_out": bad}
    _write(output, comparison, results, language=language)
    print(headline(comparison))
    return int(bool(bad))


def _write(
    output: Path, comparison: Mapping[str, Any], results: Sequence[Sequence[CaseResult]], *, language: str
) -> None:
    write_json(output / "comparison.json", comparison)
    write_comparison(output / "comparison.html", comparison=comparison, language=language)
    write_text(output / "compared_lesions.csv", csv_text(LESION_COLUMNS, compared_lesions(*results)))


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The folders by as much of the end of their paths as tells them apart: folders above may name a patient."""
    parts = [Path(os.path.abspath(folder)).parts for folder in (first, second)]
    for count in range(1, max(map(len, parts)) + 1):
        names = tuple(str(Path(*one[-count:])) for one in parts)
        if names[0] != names[1]:
            return names[0], names[1]
    return first.name, second.name


def _share_classes(folders: Mapping[str, Path], jobs: dict[str, list[CaseJob]]) -> None:
    """Lets a folder without dataset.json take the other's classes. Raises InputError where both have others."""
    named = [side for side in SIDES if jobs[side][0].classes is not None]
    if not named:
        return
    known = jobs[named[0]][0]
    for side in SIDES:
        if jobs[side][0].classes not in (None, known.classes):
            raise InputError(
                f"{folders[side]}: expected the classes {known.classes} of {folders[named[0]]}, found "
                f"{jobs[side][0].classes} in dataset.json; pass --classes NAME=VALUE"
            )
        jobs[side] = [replace(job, classes=known.classes, closed=known.closed) for job in jobs[side]]


def _require_same_cases(folders: Mapping[str, Path], cases: Mapping[str, set[str]]) -> None:
    for side, other in (SIDES, SIDES[::-1]):
        alone = sorted(cases[side] - cases[other])
        if alone:
            raise InputError(
                f"{folders[other]}: expected the cases of {folders[side]}, found no {alone[0]}; compare the same cases"
            )


def _write_failures(
    folders: Mapping[str, Path], outcomes: Mapping[str, Sequence[CaseOutcome]], output: Path
) -> list[str]:
    """Writes failures.csv and returns the cases that failed on either side; InputError when that is all of them."""
    rows = [
        outcome.failure() | {"message": f"{folders[side]}: {outcome.error}"}
        for side in SIDES
        for outcome in outcomes[side]
        if outcome.error is not None
    ]
    rows.sort(key=lambda row: row["case"])
    write_text(output / "failures.csv", csv_text(FAILURE_COLUMNS, rows))
    bad = sorted({row["case"] for row in rows})
    if len(bad) == len(outcomes["first"]):
        raise InputError(
            f"no case could be evaluated in both folders, see {output / 'failures.csv'}; "
            f"the first: {rows[0]['message']}"
        )
    return bad
