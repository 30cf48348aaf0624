"""What `segment check` shows: findings, lesion census and resampling audit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segment.data.audit import ResampledCase, ceiling_on_recall
from segment.data.cases import Dataset
from segment.data.census import bin_names, census_table
from segment.data.checks import Audit

ROWS = 30  # of each table; all of them stand in audit.json
PLAIN_WIDTH = 200  # columns where no terminal says how many it has


def print_audit(
    dataset: Dataset,
    audit: Audit,
    resampled: Sequence[ResampledCase],
    *,
    spacing_mm: Sequence[float] | None,
    edges_mm3: Sequence[float],
    output: Path | None,
) -> None:
    """Prints the tables on standard output; findings as plain lines where that is no terminal, for grep.

    `output` is where all of it stands, None where that could not be written.
    """
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else PLAIN_WIDTH)
    if terminal and audit.findings:
        console.print(_finding_table(audit))
    for finding in [] if terminal else audit.findings:
        print(f"{finding.severity}: {finding.message}")
    if audit.loads:
        console.print(_census(audit, edges_mm3, len(dataset.cases)))
    if spacing_mm is not None:
        _print_resampling(console, resampled, spacing_mm)
    patients = len({case.patient_id for case in dataset.cases})
    warnings = len(audit.findings) - audit.errors
    whose = f" of {patients} patients" if patients < len(dataset.cases) else ""
    where = "" if output is None else f"; all of it: {output}"
    print(f"{len(dataset.cases)} cases{whose}; errors: {audit.errors}, warnings: {warnings}{where}")


def _finding_table(audit: Audit) -> Table:
    table = Table(title="Findings", title_justify="left")
    for name in ("severity", "case", "what"):
        table.add_column(name, overflow="fold")
    # Errors first: a long list of warnings must not hide them.
    ordered = sorted(audit.findings, key=lambda finding: finding.severity != "error")
    for finding in ordered[:ROWS]:
        style = "red" if finding.severity == "error" else "yellow"
        message = finding.message.removeprefix(f"case {finding.case_id}: ")
        table.add_row(Text(finding.severity, style), Text(finding.case_id), Text(message))
    if len(ordered) > ROWS:
        table.add_row("", "", f"and {len(ordered) - ROWS} more")
    return table


def _census(audit: Audit, edges_mm3: Sequence[float], cases: int) -> Table:
    table = Table(title="Lesions by size in mm3: number (mm3)", title_justify="left")
    table.add_column("case", overflow="fold")
    for name in ("all", *bin_names(edges_mm3)):
        table.add_column(Text(name), justify="right")
    *rows, everything = census_table(audit.loads, edges_mm3)
    for row in [*rows[:ROWS], everything]:
        if row is everything and len(rows) > ROWS:
            table.add_row(f"and {len(rows) - ROWS} more cases")
        volumes = row["mm3_by_size"].values()
        bins = [f"{n} ({mm3:,.0f})" for n, mm3 in zip(row["lesions_by_size"].values(), volumes, strict=True)]
        name = f"all {len(rows)} of {cases}" if row is everything else row["case"]
        table.add_row(Text(name), f"{row['lesions']} ({row['mm3']:,.0f})", *bins)
    return table


def _print_resampling(console: Console, resampled: Sequence[ResampledCase], spacing_mm: Sequence[float]) -> None:
    lost = [(case.case_id, "vanishes", [lesion]) for case in resampled for lesion in case.vanished]
    lost += [(case.case_id, "merge", list(group)) for case in resampled for group in case.merged]
    if lost:
        table = Table(title="Lesions that the network's grid loses", title_justify="left")
        for name in ("case", "what", "mm3", "voxel of the file"):
            table.add_column(name, overflow="fold")
        for case_id, what, lesions in lost[:ROWS]:
            volumes = " + ".join(f"{lesion.volume_mm3:.3g}" for lesion in lesions)
            table.add_row(Text(case_id), what, volumes, " + ".join(str(lesion.voxel) for lesion in lesions))
        if len(lost) > ROWS:
            table.add_row(f"and {len(lost) - ROWS} more")
        console.print(table)
    ceiling = ceiling_on_recall(resampled)
    total = sum(case.lesions for case in resampled)
    grid = "x".join(f"{side:.3g}" for side in spacing_mm)
    vanished = sum(len(case.vanished) for case in resampled)
    merged = sum(len(group) for case in resampled for group in case.merged)
    print(
        f"labels sent to the grid of {grid} mm and back: of {total} lesions {vanished} vanish and {merged} merge"
        + ("" if ceiling is None else f"; recall on that grid is at most {ceiling:.3f}")
    )
