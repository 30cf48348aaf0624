"""Trainings as a person starts them, from the command line, that fill a number of minutes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from segment.config import load_config
from segment.data.cases import Case, Dataset
from segment.data.orientation import Half
from segment.errors import InputError
from segment.files import read_json, write_json, write_text

ROOT = Path(__file__).parents[2]
PILOT_STEPS = 60
SPARE = 0.95  # of the minutes: a machine is not the same from one run to the next
HALVES: tuple[Half, Half] = ("left", "right")

# Trains for so many steps into a folder and returns the seconds that the whole command took.
Train = Callable[[int, Path], float]


def require_settings(config: Path, given: Sequence[str], *, minutes: float) -> None:
    """Raises InputError before anything is trained: options of the configuration, or minutes that are none."""
    load_config(config, given)
    if not minutes > 0:
        raise InputError(f"--minutes: expected a number above 0, found {minutes:g}")


def train_half(
    config: Path, data: Path, half: str, *, seed: int, steps: int, folder: Path, given: Sequence[str]
) -> float:
    """Seconds of a whole `segment train` that validates one half of each patient, once, at its end.

    Args:
        config: The configuration file.
        data: A dataset.
        half: Which half is validated on.
        given: Options that replace those of the file, as KEY=VALUE.

    Raises:
        InputError: The training failed; names its log.
    """
    settings = [*given, f"data.root={json.dumps(str(data))}", f"data.validation_half={half}", f"seed={seed}"]
    settings += [
        f"train.steps={steps}",
        f"train.validate_every={steps}",
        f"train.log_every={max(1, min(steps // 3, 50))}",
    ]
    return run_segment(
        "train", [str(config), *settings, "--run-dir", str(folder), "--force"], folder.with_suffix(".txt")
    )


def train_within(
    seconds: float, train: Sequence[Train], folders: Sequence[Path], pilot: Path, *, steps: int | None = None
) -> tuple[int, float]:
    """Trains one network after the other, together for so many seconds with their start and their validation.

    What an earlier call has finished is not done again.

    Args:
        seconds: Of all of them together.
        train: One for each network; the first is also tried out for a few steps.
        folders: Of their runs.
        pilot: Of that trial.
        steps: How many fill the seconds, where that is known; nothing is tried out then.

    Returns:
        The steps of each, and the wall seconds of all.
    """
    kept = [folder.with_suffix(".json") for folder in folders]
    done = {path: read_json(path) for path in kept if path.exists()}
    if done:
        steps = next(iter(done.values()))["steps"]
    elif steps is None:
        steps = _steps_within(seconds / len(train), train[0], pilot)
    for one, folder, path in zip(train, folders, kept, strict=True):
        if path not in done:
            done[path] = {"steps": steps, "seconds": one(steps, folder)}
            write_json(path, done[path])
    return steps, sum(one["seconds"] for one in done.values())


def _steps_within(seconds: float, train: Train, folder: Path) -> int:
    """How many steps fill the seconds, with the start of the command and its validation; a short training finds out."""
    spent = train(PILOT_STEPS, folder)
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as handle:
        speed = float(list(csv.DictReader(handle))[-1]["patches_per_second"])
    step = load_config(folder / "config.yaml").train.patches_per_step / speed
    return max(int((seconds * SPARE - spent) / step) + PILOT_STEPS, 1)


def run_segment(command: str, arguments: Sequence[str], log: Path) -> float:
    """Wall seconds of `scripts/COMMAND.py`; raises as `run_command`."""
    whole = [sys.executable, str(ROOT / "scripts" / f"{command}.py"), *arguments]
    return run_command(whole, log, {"PYTHONPATH": str(ROOT)})


def run_command(command: Sequence[str], log: Path, environment: dict[str, str]) -> float:
    """Wall seconds of a command whose words go to a file. Raises InputError when it fails."""
    began = time.perf_counter()
    with log.open("a", encoding="utf-8") as handle:
        code = subprocess.run(
            command, stdout=handle, stderr=handle, env={**os.environ, **environment}, check=False
        ).returncode
    if code:
        raise InputError(f"{' '.join(command[1:4])}: expected exit code 0, found {code}; see {log}")
    return time.perf_counter() - began


def case_of(data: Dataset, case_id: str) -> Case:
    """The case with that id."""
    return next(case for case in data.cases if case.case_id == case_id)


def label_of(data: Dataset, case_id: str) -> Path:
    """A case's label file. Raises InputError where it has none."""
    path = case_of(data, case_id).label_path
    if path is None:
        raise InputError(f"case {case_id} of {data.root}: expected a label, found none")
    return path.resolve()


def write_manifest(data: Dataset, case_id: str, path: Path) -> None:
    """A dataset of one case, as a CSV manifest. Raises InputError for 4D files, of which a manifest takes none."""
    case, text = case_of(data, case_id), io.StringIO()
    if case.image_volumes:
        raise InputError(f"case {case_id} of {data.root}: expected a file for each channel, found 4D files; split them")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["case", *data.channel_names, "label"])
    rows.writerow([case_id, *(str(image.resolve()) for image in case.image_paths), str(label_of(data, case_id))])
    write_text(path, text.getvalue())
