"""The run folder: claimed for a new run, or checked to be the same run for one that goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segment.config import Config, load_config, save_config
from segment.data.bids import read_sidecars
from segment.data.cases import Case, Dataset, find_dataset
from segment.data.checks import Finding, check_dataset
from segment.data.fingerprint import fingerprint
from segment.data.lesion_shapes import shape_files
from segment.data.planning import Plan, make_plan
from segment.data.splits import Split, split_dataset, split_halves
from segment.errors import InputError
from segment.files import MARKER, claim_folder, read_json, write_json
from segment.progress import CONSOLE
from segment.training.manifest import data_hashes


@dataclass(frozen=True)
class RunData:
    """What a run trains and validates on, fixed when it begins.

    Attributes:
        train, validation: Cases of both sides, in the dataset's order.
        plan: Of the network.
        hashes: SHA-256 of every file of both sides, by path.
        findings: Of the data check, empty for a run that goes on.
        sidecars: JSON sidecars of a BIDS dataset by case and file; empty for a run that goes on.
    """

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    plan: Plan
    hashes: dict[str, str]
    findings: tuple[Finding, ...]
    sidecars: dict[str, dict[str, Any]] = field(default_factory=dict)


def open_run(config: Config, *, resume: bool, force: bool) -> RunData:
    """Makes the run folder ready and finds its data: config.yaml, plan.json, split.json and data.json are there then.

    Nothing is made or emptied before the data has been found sound. With `resume` a folder that is missing or empty
    begins a new run; one that has begun must have the same configuration, apart from `run_dir`, and the same data.

    Raises:
        InputError: The folder holds files and neither flag is given, or both are; the configuration or data differ from
            the run's (names the key or file); or the dataset is unusable.
    """
    folder = config.run_dir
    if resume and force:
        raise InputError("--resume goes on and --force starts anew: give one of them")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        if resume and not (folder / MARKER).exists():
            raise InputError(
                f"--resume: expected a run folder, found {folder} with other files; choose another --run-dir"
            )
        claim_folder(folder, resume=resume, kind="run")  # raises before the data is read, unless it is to be resumed
        _remove_half_written(folder)
    if resume and (folder / "config.yaml").exists():
        _require_same(load_config(folder / "config.yaml"), config)
        if (folder / "data.json").exists():  # the last of the files below
            return _saved_data(config)
    elif resume and (folder / "checkpoints").exists():
        raise InputError(f"{folder}: holds checkpoints but no config.yaml; use --force to replace it")
    if resume:
        CONSOLE.print(
            f"--resume: {folder} holds no run to go on with; starting at step 0", markup=False, soft_wrap=True
        )
    _require_possible(folder)
    data = _new_data(config)
    reads = (config.data.root, config.augmentation.copy_paste_shapes)
    claim_folder(folder, force=force, resume=resume, inputs=reads, kind="run")
    save_config(config, folder / "config.yaml")
    write_json(folder / "plan.json", data[0].plan.to_json())
    write_json(folder / "split.json", asdict(data[1]))
    if data[0].sidecars:
        write_json(folder / "sidecars.json", data[0].sidecars)
    write_json(folder / "data.json", data[0].hashes)
    return data[0]


def _remove_half_written(folder: Path) -> None:
    """What a killed run was writing. A folder is of an export, which clears up itself and may be under way."""
    for left in [*folder.glob(".tmp-*"), *folder.glob("checkpoints/.tmp-*")]:
        if left.is_file():
            left.unlink()


def _require_possible(folder: Path) -> None:
    """Raises InputError when a folder that is not there could not be made, without making it."""
    above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        raise InputError(f"run folder {folder}: {above} is a file, expected a folder; choose another --run-dir")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"run folder {folder}: {above} cannot be written to; choose another --run-dir")


def join_run(config: Config) -> RunData:
    """What the chief's `open_run` has made, for another worker of the run; nothing is written.

    Raises:
        InputError: The run folder or the data is not the chief's, for example because it is on a disk of its own.
    """
    saved = config.run_dir / "config.yaml"
    if not (config.run_dir / "data.json").exists():
        raise InputError(
            f"run folder {config.run_dir} of worker 0 is not on this machine; "
            "multi_worker needs a run folder on a disk that all workers share"
        )
    _require_same(load_config(saved), config)
    return _saved_data(config)


def _new_data(config: Config) -> tuple[RunData, Split]:
    options = config.data
    dataset = find_dataset(options.root, layout=options.layout, bids=options.bids)
    cases = len(dataset.cases)
    dataset, audit = check_dataset(dataset, workers=options.workers, skip_invalid=options.skip_invalid)
    for finding in audit.findings:
        CONSOLE.print(f"{finding.severity}: {finding.message}", markup=False, soft_wrap=True)
    if audit.invalid:
        left_out = f"data.skip_invalid: left out {len(audit.invalid)} of {cases} cases: "
        CONSOLE.print(left_out + ", ".join(sorted(audit.invalid)), markup=False, soft_wrap=True)
    named = [case_id for case_id in options.validation_cases or () if case_id in audit.invalid]
    if named:
        raise InputError(
            f"data.validation_cases: case {named[0]} is invalid and was left out by data.skip_invalid; mend it or name "
            "another"
        )
    dataset, split = split_dataset(dataset, options, seed=config.seed, loads=audit.loads)
    train, validation = _cases(dataset, split.train), _cases(dataset, split.validation)
    sides = f"{len(train)} cases to train on, {len(validation)} to validate on"
    CONSOLE.print(f"dataset {dataset.root}: {sides}", markup=False, soft_wrap=True)
    sidecars = read_sidecars(dataset.root, [*train, *validation]) if dataset.layout == "bids" else {}
    # The plan looks at the training side only: validation cases stand for scans that nobody has seen yet.
    seen = Dataset(dataset.root, train, dataset.channel_names, dataset.label_values)
    plan = make_plan(seen, fingerprint(seen, workers=options.workers), config)
    if not plan.foreground_share:
        raise InputError(
            f"expected a lesion to learn from on the training side, found none in its {len(train)} cases, such as "
            f"{split.train[0]}; change data.validation_half, data.validation_cases or seed"
        )
    return RunData(train, validation, plan, _hashes(config, train, validation), audit.findings, sidecars), split


def _hashes(config: Config, train: Sequence[Case], validation: Sequence[Case]) -> dict[str, str]:
    """Of all files that the training depends on."""
    options = config.augmentation
    folder = options.copy_paste_shapes if options.copy_paste_share else None
    return data_hashes([*train, *validation], [] if folder is None else shape_files(folder))


def _saved_data(config: Config) -> RunData:
    folder = config.run_dir
    split: dict[str, Any] = read_json(folder / "split.json")
    dataset = find_dataset(config.data.root, layout=config.data.layout, bids=config.data.bids)
    if config.data.validation_half is not None:
        dataset, _ = split_halves(dataset, config.data.validation_half)
    train, validation = _cases(dataset, split["train"]), _cases(dataset, split["validation"])
    saved, hashes = read_json(folder / "data.json"), _hashes(config, train, validation)
    changed = [path for path in sorted(set(saved) | set(hashes)) if saved.get(path) != hashes.get(path)]
    if changed:
        raise InputError(
            f"{changed[0]} changed since the run in {folder} began ({len(changed)} files did); "
            "put it back, or start the run again with --force"
        )
    return RunData(train, validation, Plan.from_json(read_json(folder / "plan.json")), hashes, ())


def _cases(dataset: Dataset, case_ids: Sequence[str]) -> tuple[Case, ...]:
    by_id = {case.case_id: case for case in dataset.cases}
    missing = [case_id for case_id in case_ids if case_id not in by_id]
    if missing:
        raise InputError(
            f"case {missing[0]} of the run's split is no longer in {dataset.root}; put it back or use --force"
        )
    return tuple(by_id[case_id] for case_id in case_ids)


def _require_same(saved: Config, now: Config) -> None:
    before, after = (_flat(config.model_dump(mode="json", exclude={"run_dir"})) for config in (saved, now))
    for key in sorted(set(before) | set(after)):
        if before.get(key) != after.get(key):
            raise InputError(
                f"{key}: the run in {now.run_dir} began with {before.get(key)!r}, found {after.get(key)!r}; "
                "--resume needs the same configuration; give another --run-dir or --force for a new run"
            )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists -> "train.steps": 100, "loss.terms.0.name": "dice"."""
    if isinstance(values, dict):
        items: Any = values.items()
    elif isinstance(values, list):
        items = enumerate(values)
    else:
        return {prefix: values}
    return {key: value for name, item in items for key, value in _flat(item, f"{prefix}.{name}".lstrip(".")).items()}
