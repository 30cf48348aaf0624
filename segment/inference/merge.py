"""Joins what the shards of a prediction wrote into one manifest, one failures.csv and one report. No TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segment.errors import InputError
from segment.files import read_json
from segment.inference.outputs import report_records, write_failures, write_manifest
from segment.inference.records import Record, read_record
from segment.progress import CONSOLE

_NAME = re.compile(r"manifest-([0-9]+)of([0-9]+)\.json")
_SAME = ("settings_sha256", "n_inputs")  # in the manifests of all shards


def merge_reports(output: Path) -> int:
    """Joins the shards of an output folder: manifest.json, failures.csv and, where cases were compared, report/.

    Args:
        output: A folder that `segment infer --shard` wrote, or into which the folders of all shards were copied.

    Returns:
        0; 1 when a shard is missing or has failures, which is said, and what is there has been joined.

    Raises:
        InputError: It holds no shard, or shards of different predictions.
    """
    manifests, count = _manifests(output)
    first = manifests[min(manifests)]
    records: dict[str, Record] = {}
    for index, manifest in sorted(manifests.items()):
        for case_id in manifest["cases"]:
            record = read_record(output, case_id)
            if record is None:
                raise InputError(
                    f"{output}: shard {index}/{count} lists case {case_id}, expected its record, found none"
                )
            if record.settings != manifest["settings_sha256"]:
                raise InputError(
                    f"{output}: case {case_id} has been predicted with other models, options or operating point since "
                    f"shard {index}/{count} ended; predict the shard again with --resume"
                )
            records[case_id] = record
    ordered = [records[case_id] for case_id in sorted(records)]
    head = {name: value for name, value in first.items() if name != "cases"} | {"shard": None}
    write_manifest(output, head, ordered, suffix="")
    write_failures(output, ordered, suffix="")
    if any(record.results for record in ordered):
        report_records(output, ordered, head)
    missing = [str(index) for index in range(1, count + 1) if index not in manifests]
    if missing:
        CONSOLE.print(f"not there yet: shard {', '.join(missing)} of {count}", markup=False, soft_wrap=True)
    failed = sum(record.failure is not None for record in ordered)
    print(
        f"{len(ordered)} of {first['n_inputs']} cases of {len(manifests)} of {count} shards joined, {failed} failed: "
        f"{output / 'manifest.json'}"
    )
    return int(bool(missing) or failed > 0 or len(ordered) < first["n_inputs"])


def _manifests(output: Path) -> tuple[dict[int, dict[str, Any]], int]:
    """The shards' manifests by index, and how many shards there are."""
    if not output.is_dir():
        raise InputError(f"{output}: expected a folder of `segment infer --shard`, found no folder")
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for path in sorted(output.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found[int(match[2]), int(match[1])] = _checked(read_json(path), path)
    counts = sorted({count for count, _ in found})
    if not counts:
        raise InputError(f"{output}: expected manifests such as manifest-1of8.json, found none; has a shard finished?")
    if len(counts) > 1:
        raise InputError(
            f"{output}: expected the shards of one prediction, found some of {counts[0]} and some of {counts[1]}; "
            "remove the manifests of the one that is not meant"
        )
    _require_same([manifest for _, manifest in sorted(found.items())], output)
    return {index: manifest for (_, index), manifest in found.items()}, counts[0]


def _checked(values: Any, path: Path) -> dict[str, Any]:
    needed = (*_SAME, "cases", "evaluation", "seed", "operating_point")
    if not isinstance(values, dict) or any(name not in values for name in needed):
        raise InputError(f"{path}: expected the manifest of a shard with {', '.join(needed)}; predict the shard again")
    return values


def _require_same(manifests: Sequence[Mapping[str, Any]], output: Path) -> None:
    what = {"settings_sha256": "models, options or operating point", "n_inputs": "number of input cases"}
    for name in _SAME:
        if len({manifest[name] for manifest in manifests}) > 1:
            raise InputError(f"{output}: the shards differ in {what[name]}; predict again those that are not meant so")
