"""audit.json: everything that `segment check` has found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segment.config import Config
from segment.data.audit import ResampledCase, ceiling_on_recall
from segment.data.cases import Dataset
from segment.data.census import census_table
from segment.data.checks import Audit
from segment.data.fingerprint import target_spacing
from segment.errors import InputError
from segment.files import read_json, write_json

KIND = "segment data audit"


def claim_audit(path: Path) -> None:
    """Raises InputError unless the path is free or holds an audit of an earlier check, which may be replaced."""
    if not os.path.lexists(path):
        return
    try:
        values = None if os.path.isdir(path) else read_json(path)
    except InputError:
        values = None
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise InputError(
            f"--output {path}: expected a new file or an earlier audit, found another; choose another path"
        )


def planned_spacing(audit: Audit, sound: Dataset, config: Config) -> tuple[float, float, float] | None:
    """The spacing that training would take, `data.spacing_mm` or the median; None where no case is left to train on."""
    if not sound.cases:
        return None
    if config.data.spacing_mm is not None:
        return config.data.spacing_mm
    return target_spacing([audit.spacing_mm[case.case_id] for case in sound.cases])


def write_audit(
    path: Path,
    dataset: Dataset,
    audit: Audit,
    resampled: Sequence[ResampledCase],
    *,
    spacing_mm: Sequence[float] | None,
    edges_mm3: Sequence[float],
) -> None:
    """Writes findings, lesion census and resampling audit; the same dataset gives the same bytes.

    Raises:
        InputError: It cannot be written.
    """
    values: dict[str, Any] = {
        "kind": KIND,
        "dataset": str(dataset.root),
        "layout": dataset.layout,
        "channels": list(dataset.channel_names),
        "labels": dataset.label_values,
        "cases": {case.case_id: {"patient": case.patient_id} for case in dataset.cases},
        "findings": [asdict(finding) for finding in audit.findings],
        "census": census_table(audit.loads, edges_mm3),
        "resampling": {
            "spacing_mm": spacing_mm,
            "ceiling_on_recall": ceiling_on_recall(resampled),
            "cases": [asdict(case) for case in resampled],
        },
    }
    for case_id, spacing in audit.spacing_mm.items():
        values["cases"][case_id]["spacing_mm"] = spacing
    write_json(path, values)
