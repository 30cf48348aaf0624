"""The files of an output folder that are about all its cases: manifest.json, failures.csv and report/.

They are made from the records of the cases, so a prediction, a resumed one, a shard and `segment merge-reports` write
them alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from segment.config import EvaluationConfig
from segment.data.case import Case
from segment.data.scan import ChannelReader, read_mask
from segment.errors import InputError
from segment.evaluation.folders import FAILURE_COLUMNS, headline
from segment.evaluation.lesion_map import write_colours
from segment.evaluation.notes import left_out_notes
from segment.evaluation.pictures import CasePictures
from segment.evaluation.tables import csv_text, write_report
from segment.files import write_json, write_text
from segment.inference.records import Record
from segment.progress import CONSOLE

REPORT, MAPS = "report", "lesion_maps"
HALF = 0.5  # the threshold that is always reported beside the one in use


def write_failures(output: Path, records: Sequence[Record], *, suffix: str) -> None:
    """Writes failures.csv, with a header alone when nothing failed."""
    rows = [record.failure for record in records if record.failure is not None]
    write_text(output / f"failures{suffix}.csv", csv_text(FAILURE_COLUMNS, rows))


def write_manifest(output: Path, head: Mapping[str, Any], records: Sequence[Record], *, suffix: str) -> None:
    """Writes manifest.json: what the masks were made with, and what became of each case.

    Args:
        head: Versions, runs, plan, operating point and settings.
        records: Of the cases; `peak_memory_mib` is the process's largest up to the end of that case.
        suffix: What the name ends with, for a shard.
    """
    cases = {record.case_id: record.manifest_entry() for record in records}
    write_json(output / f"manifest{suffix}.json", {**head, "cases": cases})


def report_records(output: Path, records: Sequence[Record], head: Mapping[str, Any]) -> None:
    """Writes report/ on the cases that were compared with a label, and prints its headline.

    Args:
        output: The output folder.
        records: Of all cases.
        head: Of the manifest; `evaluation`, `seed` and `operating_point` are used.
    """
    done = {record.case_id: record for record in records if record.results}
    if not done:
        CONSOLE.print("no report: no scan was compared with a label", markup=False)
        return

    write_colours(output / REPORT / MAPS)
    summary = write_report(
        [result for record in done.values() for result in record.results],
        output / REPORT,
        config=_evaluation_of(head, output),
        seed=head["seed"],
        inputs=_named_inputs(done.values()),
        scans=lambda case_id: _pictures(output, done[case_id]),
        operating_point=head["operating_point"],
        notes=left_out_notes(len(records), len(done)),
    )
    _print_points(summary)
    print(headline(summary, output / REPORT))


def _evaluation_of(head: Mapping[str, Any], output: Path) -> EvaluationConfig:
    try:
        return EvaluationConfig.model_validate(head["evaluation"])
    except ValidationError as cause:
        fault = cause.errors()[0]["msg"]
        raise InputError(f"{output}: expected the section evaluation in its manifests, found: {fault}") from cause


def _named_inputs(records: Iterable[Record]) -> dict[str, str]:
    """SHA-256 by case, number and file name: folders above may name a patient, and a report is passed on.

    The numbers count a case's files, the label last, for scan and label often have one name in two folders.
    """
    return {
        f"{record.case_id}/{number}/{Path(path).name}": digest
        for record in records
        for number, (path, digest) in enumerate((record.inputs | record.label).items())
    }


def _pictures(output: Path, record: Record) -> CasePictures | None:
    """What the report draws of a case; None where the scan is not at hand or does not fit in memory."""
    case = Case(
        case_id=record.case_id,
        patient_id=record.case_id,
        image_paths=tuple(map(Path, record.images)),
        label_path=None,
        image_volumes=record.image_volumes,
    )
    (label_path,) = record.label
    try:
        image, grid, _ = ChannelReader(case).load(0)
        mask, _ = read_mask(output / "masks" / f"{record.case_id}.nii.gz")
        label, _ = read_mask(Path(label_path))
    except (InputError, MemoryError):
        return None
    return CasePictures(image, label, mask, grid)


def _print_points(summary: Mapping[str, Any]) -> None:
    """A table of what threshold 0.5 would have found and what the operating point in use found on these scans."""
    used, micro = summary["operating_point"], summary["micro"]
    half = next((point for point in summary["froc"]["points"] if point["threshold"] == HALF), None)
    peak = used.get("min_peak", 0.0)  # manifests of before peaks, which may still be merged, have none
    if half is None or (used["threshold"], used["min_lesion_mm3"], peak) == (HALF, 0.0, 0.0):
        return
    table = Table(title=f"on these {summary['n_cases']} scans", title_justify="left")
    table.add_column("threshold", no_wrap=True)
    for name in ("recall", "small-lesion recall", "false pos. a scan"):
        table.add_column(name, justify="right")
    reached = f", peak {peak:g}" if peak > 0 else ""
    name = f"{used['threshold']:g}{reached}, from {used['min_lesion_mm3']:g} mm3 (used)"
    rows = (
        ("0.5", half["recall"], half["small_lesion_recall"], half["fp_per_scan"]),
        (name, micro["iou10"]["recall"], micro["small_lesion_recall"], micro["fp_per_scan"]),
    )
    for title, *figures in rows:
        table.add_row(title, *("undefined" if figure is None else f"{figure:.2f}" for figure in figures))
    Console(highlight=False).print(table)
