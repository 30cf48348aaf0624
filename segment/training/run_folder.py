"""The run folder: claimed for a new run, or checked to be the same run for one that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from segment.config import Config, load_config, save_config
from segment.data.cases import Case, Dataset, Split, find_dataset, split_cases
from segment.data.checks import Finding, check_dataset
from segment.data.fingerprint import fingerprint
from segment.data.planning import Plan, make_plan
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
    """

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    plan: Plan
    hashes: dict[str, str]
    findings: tuple[Finding, ...]


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
        claim_folder(folder, resume=resume)  # raises before the data is read, unless it is to be resumed
        for left in [*folder.glob(".tmp-*"), *folder.glob("checkpoints/.tmp-*")]:
            left.unlink()  # a killed run was writing this file
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
    data = _new_data(config)
    claim_folder(folder, force=force, resume=resume)
    save_config(config, folder / "config.yaml")
    write_json(folder / "plan.json", data[0].plan.to_json())
    write_json(folder / "split.json", asdict(data[1]))
    write_json(folder / "data.json", data[0].hashes)
    return data[0]


def _new_data(config: Config) -> tuple[RunData, Split]:
    options = config.data
    dataset = find_dataset(options.root, layout=options.layout)
    dataset, findings = check_dataset(dataset, workers=options.workers, skip_invalid=options.skip_invalid)
    for finding in findings:
        CONSOLE.print(f"{finding.severity}: {finding.message}", markup=False, soft_wrap=True)
    split = split_cases(
        dataset,
        validation_cases=options.validation_cases,
        validation_share=options.validation_share,
        seed=config.seed,
    )
    train, validation = _cases(dataset, split.train), _cases(dataset, split.validation)
    # The plan looks at the training side only: validation cases stand for scans that nobody has seen yet.
    seen = Dataset(dataset.root, train, dataset.channel_names, dataset.label_values)
    plan = make_plan(seen, fingerprint(seen, workers=options.workers), config)
    return RunData(train, validation, plan, data_hashes([*train, *validation]), tuple(findings)), split


def _saved_data(config: Config) -> RunData:
    folder = config.run_dir
    split: dict[str, Any] = read_json(folder / "split.json")
    dataset = find_dataset(config.data.root, layout=config.data.layout)
    train, validation = _cases(dataset, split["train"]), _cases(dataset, split["validation"])
    saved, hashes = read_json(folder / "data.json"), data_hashes([*train, *validation])
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
