"""Small lesions on real patients: ours beside the recipe that people use, in the same minutes on the same cores.

Each patient in turn is trained on, and each other one is tested on. The tested patient chooses nothing: ours trains one
network on each half of the training patient, every one validated on the half that it has not seen, and predicts with
both at the operating point that these validations chose. The two trainings together take `--minutes`, with the start of
the processes and the validations; how many steps that is, a short training finds out first.

The peer is a script that trains for some minutes and writes the probabilities of the tested patient:
    RECIPE --data DATASET --train CASE --test CASE --minutes M --net NET --seed S --output FOLDER
with FOLDER/CASE.nii.gz. Having no way of its own to choose a threshold, it is given the best one afterwards: that of
the highest small-lesion recall, then the highest recall by overlap, at no more false positives than ours, or the one
with the fewest where all have more. The same evaluation counts both.

Every finished run is kept in results.json, so a benchmark that was stopped goes on when the same command is given.
Nothing else should run beside it: what counts is how far a tool comes in the minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy_table import OURS, accuracy_table, draw_accuracy
from benchmarks.kept_results import open_results, recipe_of, require_same_machine
from benchmarks.options import benchmark_parser
from benchmarks.peers import peer_python
from benchmarks.scores import score_mask, score_thresholds
from benchmarks.timed_training import (
    HALVES,
    ROOT,
    Train,
    label_of,
    require_settings,
    run_command,
    run_segment,
    train_half,
    train_within,
    write_manifest,
)
from segment.data.cases import find_dataset
from segment.data.grid import Grid
from segment.data.scan import read_grid, read_mask, read_probability, require_same_grid
from segment.errors import InputError
from segment.files import read_json, sha256_of, write_json, write_text


def main(arguments: Sequence[str]) -> int:
    """Runs what is missing and writes results.json, table.md and accuracy.svg."""
    options = _parser().parse_args(arguments)
    require_settings(options.config, options.set, minutes=options.minutes)
    if options.recipe is not None and not options.recipe.is_file():
        raise InputError(f"--recipe: expected a script, found none at {options.recipe}")
    comparison = Comparison(options)
    for run in comparison.missing():
        print(f"{run.name} ...", flush=True)
        comparison.keep(run)
        comparison.write()
    print(comparison.write())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("accuracy", __doc__, "--data DATASET --recipe recipe.py --output runs/accuracy")
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
        recipe = recipe_of(options.config, options.set, self._data)
        settings = {"minutes": options.minutes, "set": options.set} | recipe
        self._peers = None if options.recipe is None else sha256_of(options.recipe)[:12]
        self._value = next(iter(self._data.label_values.values()))
        self.results = open_results(self._path, settings, parts=("runs",))

    def missing(self) -> list[Run]:
        """What has no result yet, ours first. Raises InputError where it could not stand beside the others."""
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
        kept = self.results["runs"]
        for name, run in kept.items():
            if run["tool"] != OURS and self._peers not in (None, run.get("recipe", self._peers)):
                raise InputError(f"{self._path}: {name} is of another --recipe; give that one or another --output")
        missing = [run for run in runs if run.name not in kept]
        if missing:
            require_same_machine(self._path, self.results)
        return missing

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
        for name in ("train", "test"):
            write_manifest(self._data, getattr(run, name), folder / f"{name}.csv")

        trained = [folder / half for half in HALVES]
        trainings = [self._training(run, folder / "train.csv", half) for half in HALVES]
        steps, seconds = train_within(self._options.minutes * 60, trainings, trained, folder / "pilot")
        output = folder / "predictions"
        members = [word for member in trained for word in ("--run", str(member))]
        arguments = [*members, "--input", str(folder / "test.csv"), "--output", str(output)]
        run_segment("infer", [*arguments, "--probabilities", "--force"], folder / "infer.txt")
        point = read_json(output / "manifest.json")["operating_point"]
        label, grid = self._expert(run)
        mask, _ = read_mask(output / "masks" / f"{run.test}.nii.gz")
        probability = self._probability(run, output / "probabilities")
        used = {"threshold": point["threshold"], "least_mm3": point["min_lesion_mm3"], "least_peak": point["min_peak"]}
        chosen = score_mask(label, self._first_class(mask), grid, **used)
        every = score_thresholds(label, probability[..., 0], grid)
        return {"chosen": chosen.to_json(), "thresholds": [one.to_json() for one in every], "steps": steps} | {
            "minutes": seconds / 60.0
        }

    def _training(self, run: Run, data: Path, half: str) -> Train:
        own = self._options
        return lambda steps, folder: train_half(
            own.config, data, half, seed=run.seed, steps=steps, folder=folder, given=own.set
        )

    def _peer(self, run: Run, folder: Path) -> dict[str, Any]:
        command = [str(peer_python()), str(self._options.recipe), "--data", str(self._options.data)]
        command += ["--train", run.train, "--test", run.test, "--net", run.tool, "--seed", str(run.seed)]
        command += ["--minutes", str(self._options.minutes), "--output", str(folder)]
        seconds = run_command(command, folder / "peer.txt", {})
        label, grid = self._expert(run)
        probability = self._probability(run, folder)
        every = score_thresholds(label, probability[..., 0], grid)
        result = {"thresholds": [one.to_json() for one in every], "minutes": seconds / 60.0}
        return result | {"recipe": self._peers}

    def _expert(self, run: Run) -> tuple[np.ndarray, Grid]:
        """The tested case's mask of the first class, 1 where it is, and its grid."""
        label, grid = read_mask(label_of(self._data, run.test))
        return self._first_class(label), grid

    def _first_class(self, mask: np.ndarray) -> np.ndarray:
        return (mask == self._value).astype(np.uint8)

    def _probability(self, run: Run, folder: Path) -> np.ndarray:
        """Of the tested case; ScanError where a tool has written it on another grid than the label's."""
        path, label = folder / f"{run.test}.nii.gz", label_of(self._data, run.test)
        probability, grid = read_probability(path)
        require_same_grid(read_grid(label), label, grid, path)
        return probability
