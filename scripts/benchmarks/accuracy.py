"""Small lesions on real patients: ours beside the recipe that people use, in the same minutes on the same cores.

Each patient in turn is trained on, and each other one is tested on. The tested patient chooses nothing: ours trains one
network on each half of the training patient, every one validated on the half that it has not seen, and predicts with
both at the operating point that these validations chose. The two trainings together take `--minutes`, with the start of
the processes and the validations; how many steps that is, a short training finds out first.

The peer is a script that trains for some minutes and writes the probabilities of the tested patient:
    RECIPE --data DATASET --train CASE --test CASE --minutes M --net NET --seed S --output FOLDER
with FOLDER/CASE.nii.gz. Having no way of its own to choose a threshold, it is given the best one afterwards: that of
the highest small-lesion recall, then the highest recall by overlap, at no more false positives than ours. The same
evaluation counts both.

Every finished run is kept in results.json, so a benchmark that was stopped goes on when the same command is given.
Nothing else should run beside it: what counts is how far a tool comes in the minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy_table import OURS, accuracy_table, draw_accuracy
from benchmarks.kept_results import open_results
from benchmarks.peers import peer_python
from benchmarks.scores import score_mask, score_thresholds
from segment.config import load_config
from segment.data.cases import Dataset, find_dataset
from segment.data.scan import read_mask, read_probability
from segment.errors import InputError
from segment.files import read_json, write_json, write_text

ROOT = Path(__file__).parents[2]
PILOT_STEPS = 60
SPARE = 0.95  # of the minutes: a machine is not the same from one run to the next
HALVES = ("left", "right")


def main(arguments: Sequence[str]) -> int:
    """Runs what is missing and writes results.json, table.md and accuracy.svg."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(options)
    for run in comparison.missing():
        print(f"{run.name} ...", flush=True)
        comparison.keep(run)
        comparison.write()
    print(comparison.write())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python scripts/benchmark.py accuracy --data ../shared/data/ms "
        "--recipe ../shared/peers/monai_recipe.py --output runs/accuracy",
    )
    parser.add_argument("--data", type=Path, required=True, help="dataset with labels; every case is a patient")
    parser.add_argument("--recipe", type=Path, help="the peer's script; without it only ours runs")
    parser.add_argument("--nets", nargs="+", default=["dynunet", "unet"], help="of the recipe (default: dynunet unet)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "ms_lesions.yaml", help="of ours")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="replace options of ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training (default: 20)")
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy"), help="folder (default: %(default)s)")
    return parser


@dataclass(frozen=True)
class Run:
    """A tool, trained on one case with a seed and tested on another."""

    tool: str
    train: str
    test: str
    seed: int

    @property
    def name(self) -> str:
        """Also a file name."""
        return f"{self.tool} {self.train} to {self.test} seed {self.seed}".replace(" ", "-")


class Comparison:
    """The runs of an output folder and what came of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._output: Path = options.output.resolve()
        self._path = self._output / "results.json"
        self._data = find_dataset(options.data, layout="auto")
        settings = {"minutes": options.minutes, "config": options.config.name, "set": options.set}
        self.results = open_results(self._path, settings, parts=("runs",))

    def missing(self) -> list[Run]:
        """What has no result yet, ours first."""
        tools = [OURS, *(self._options.nets if self._options.recipe else ())]
        cases = [case.case_id for case in self._data.cases]
        runs = [
            Run(tool, train, test, seed)
            for seed in self._options.seeds
            for tool in tools
            for train in cases
            for test in cases
            if train != test
        ]
        return [run for run in runs if run.name not in self.results["runs"]]

    def keep(self, run: Run) -> None:
        """Trains, predicts and scores. Raises InputError when a command fails; what was kept before stays."""
        folder = self._output / "runs" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        result = self._ours(run, folder) if run.tool == OURS else self._peer(run, folder)
        self.results["runs"][run.name] = {"tool": run.tool, "train": run.train, "test": run.test} | result
        write_json(self._path, self.results)

    def write(self) -> str:
        """table.md, which is returned, and accuracy.svg."""
        about = f"{self.results['machine']}; {self.results['settings']}"
        text = f"{accuracy_table(self.results['runs'])}\n\n{about}\n"
        write_text(self._output / "table.md", text)
        write_text(self._output / "accuracy.svg", draw_accuracy(self.results["runs"]))
        return text

    def _ours(self, run: Run, folder: Path) -> dict[str, Any]:
        write_manifest(self._data, run.train, folder / "train.csv")
        write_manifest(self._data, run.test, folder / "test.csv")
        steps, seconds, trained = self._steps(run, folder), 0.0, []
        for half in HALVES:
            trained.append(folder / half)
            settings = [f"data.validation_half={half}", f"train.steps={steps}", f"train.validate_every={steps}"]
            seconds += self._train(run, folder / "train.csv", trained[-1], settings)
        output = folder / "predictions"
        members = [word for member in trained for word in ("--run", str(member))]
        labels = str(_label_of(self._data, run.test).parent)
        arguments = [*members, "--input", str(folder / "test.csv"), "--labels", labels, "--output", str(output)]
        _segment("infer", [*arguments, "--probabilities", "--force"], folder / "infer.txt")
        point = read_json(output / "manifest.json")["operating_point"]
        label, grid = read_mask(_label_of(self._data, run.test))
        mask, _ = read_mask(output / "masks" / f"{run.test}.nii.gz")
        probability, _ = read_probability(output / "probabilities" / f"{run.test}.nii.gz")
        chosen = score_mask(label, mask, grid, threshold=point["threshold"], least_mm3=point["min_lesion_mm3"])
        every = score_thresholds(label, probability[..., 0], grid)
        return {"chosen": chosen.to_json(), "thresholds": [one.to_json() for one in every], "steps": steps} | {
            "minutes": seconds / 60.0
        }

    def _steps(self, run: Run, folder: Path) -> int:
        """How many steps of each half fill the minutes; found by a short training."""
        pilot = folder / "pilot"
        settings = [f"data.validation_half={HALVES[0]}", f"train.steps={PILOT_STEPS}"]
        settings += [f"train.validate_every={PILOT_STEPS}", f"train.log_every={PILOT_STEPS // 3}"]
        seconds = self._train(run, folder / "train.csv", pilot, settings)
        with (pilot / "metrics.csv").open(encoding="utf-8", newline="") as handle:
            speed = float(list(csv.DictReader(handle))[-1]["patches_per_second"])
        step = load_config(pilot / "config.yaml").train.patches_per_step / speed
        return max(int((self._options.minutes * 60.0 * SPARE / len(HALVES) - seconds) / step) + PILOT_STEPS, 1)

    def _train(self, run: Run, data: Path, folder: Path, settings: Sequence[str]) -> float:
        """Seconds of a whole `segment train`."""
        given = [*self._options.set, f"data.root={json.dumps(str(data))}", f"seed={run.seed}", *settings]
        arguments = [str(self._options.config), *given, "--run-dir", str(folder), "--force"]
        return _segment("train", arguments, folder.with_suffix(".txt"))

    def _peer(self, run: Run, folder: Path) -> dict[str, Any]:
        command = [str(peer_python()), str(self._options.recipe), "--data", str(self._options.data)]
        command += ["--train", run.train, "--test", run.test, "--net", run.tool, "--seed", str(run.seed)]
        command += ["--minutes", str(self._options.minutes), "--output", str(folder)]
        _call(command, folder / "peer.txt", {})
        label, grid = read_mask(_label_of(self._data, run.test))
        probability, _ = read_probability(folder / f"{run.test}.nii.gz")
        every = score_thresholds(label, probability[..., 0], grid)
        return {"thresholds": [one.to_json() for one in every], "minutes": self._options.minutes}


def _segment(command: str, arguments: Sequence[str], log: Path) -> float:
    whole = [sys.executable, str(ROOT / "scripts" / f"{command}.py"), *arguments]
    return _call(whole, log, {"PYTHONPATH": str(ROOT)})


def _call(command: Sequence[str], log: Path, environment: dict[str, str]) -> float:
    """Wall seconds of a command whose words go to a file. Raises InputError when it fails."""
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as handle:
        code = subprocess.run(
            command, stdout=handle, stderr=handle, env={**os.environ, **environment}, check=False
        ).returncode
    if code:
        raise InputError(f"{' '.join(command[1:4])}: expected exit code 0, found {code}; see {log}")
    return time.perf_counter() - began


def _label_of(data: Dataset, case_id: str) -> Path:
    path = next(case.label_path for case in data.cases if case.case_id == case_id)
    if path is None:
        raise InputError(f"case {case_id} of {data.root}: expected a label, found none")
    return path.resolve()


def write_manifest(data: Dataset, case_id: str, path: Path) -> None:
    """A dataset of one case, as a CSV manifest."""
    case = next(case for case in data.cases if case.case_id == case_id)
    cells = [case_id, *(str(image.resolve()) for image in case.image_paths), str(_label_of(data, case_id))]
    write_text(path, ",".join(["case", *data.channel_names, "label"]) + "\n" + ",".join(cells) + "\n")
