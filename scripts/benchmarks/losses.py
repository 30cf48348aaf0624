"""Does the choice of loss help? The same net from the same seeds with each loss, on the phantoms and on two patients.

Phantoms: the network and optimiser of `configs/quickstart.yaml` train on the 8 training cases of `sample_data/`; the 3
held-out ones with lesions (35, of them 23 small) are the validation cases of every run, whatever its seed. The scan
without any is left out: one false positive there would take a quarter off the mean IoU and hide the rest. With a seed,
weights and patches are the same for every loss. Every run takes the same number of steps, and what counts is the
network after the last one, not the best on the way. Windows overlap by a quarter instead of a half, which makes a
validation two and a half times cheaper; there is one every 40 steps, to see when BCE's best IoU is reached.
`recall_feedback` looks at these validations, as it does in any training.

The best loss is the one with the highest mean lesion F1.

Patients: `configs/ms_lesions.yaml` with half the filters and patches of 48 voxels, one patient to train on and the
other to test on, both ways, with BCE, the hybrid with fixed weights, and the best of the rest.

Each run is a process of its own (`segment train --resume`): a benchmark that was stopped goes on where it was when the
same command is given again. A run on the phantoms costs 20 s of one core to start and to end, 0.27 s a step and 2.5 s
a validation: with 400 steps and `--jobs 2`, 33 of them take about 40 minutes of two quiet cores, and the 6 on patients
25 minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kept_results import open_results, require_same_machine
from benchmarks.losses_plot import draw_losses
from benchmarks.losses_table import best_of, real_table, rows_of, sample_table
from benchmarks.options import benchmark_parser
from benchmarks.side_by_side import run_side_by_side
from benchmarks.timed_training import ROOT, run_command
from segment.commands.arguments import at_least_one
from segment.files import read_json, write_json, write_text

BCE, DICE, FOCAL = {"name": "binary_crossentropy"}, {"name": "dice"}, {"name": "focal"}
HYBRID = [BCE, DICE, FOCAL]
_OFF_ON = (0.0, 1.0)
SCHEDULE = {  # cross-entropy finds the lesions first, then the overlap and the hard voxels count as much
    "name": "schedule",
    "points": [
        {"share": share, "weights": {"binary_crossentropy": 1.0, "dice": on, "focal": on}}
        for share, on in zip((0.2, 0.6), _OFF_ON, strict=True)
    ],
}
WEIGHTINGS: dict[str, dict[str, Any]] = {
    "fixed": {"name": "fixed"},
    "schedule": SCHEDULE,
    "uncertainty": {"name": "uncertainty"},
    "gradient_norm": {"name": "gradient_norm"},
    "dynamic_average": {"name": "dynamic_average"},
    "recall_feedback": {"name": "recall_feedback"},
}
BASE, FIXED_HYBRID = "BCE", "hybrid, fixed"
LOSSES: dict[str, dict[str, Any]] = {
    BASE: {"terms": [BCE]},
    "Dice": {"terms": [DICE]},
    "focal": {"terms": [FOCAL]},
    "BCE + Dice": {"terms": [BCE, DICE]},
    **{f"hybrid, {name}": {"terms": HYBRID, "weighting": weighting} for name, weighting in WEIGHTINGS.items()},
    "hybrid + component_dice": {"terms": [*HYBRID, {"name": "component_dice"}]},
}
PHANTOMS = "phantoms.csv"  # in the output folder
EMPTY = "phantom_012"  # held out and without lesions
FIGURES = ("iou", "dice", "lesion_f1", "lesion_recall", "small_lesion_recall", "fp_per_scan")


def main(arguments: Sequence[str]) -> int:
    """Runs what is missing of the experiment and writes results.json, table.md and losses.svg."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(options)
    # Seed by seed, so that all losses can be compared as soon as possible.
    experiment.run(sample_run(name, seed, options) for seed in options.seeds for name in LOSSES)
    write_outputs(experiment.results, options.output)
    if options.real is not None:
        best = best_of(experiment.results["sample"], leave_out=(BASE, FIXED_HYBRID))
        ways = (("ms19", "ms26"), ("ms26", "ms19"))
        experiment.run(real_run(name, *way, options) for name in (BASE, FIXED_HYBRID, best) for way in ways)
        write_outputs(experiment.results, options.output)
    print((options.output / "table.md").read_text(encoding="utf-8"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("losses", __doc__, "--output runs/losses --real DATASET")
    parser.add_argument("--output", type=Path, default=Path("runs/losses"), help="folder (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=400, help="of each run on the phantoms (default: 400)")
    parser.add_argument("--validate-every", type=int, default=40, help="steps between validations (default: 40)")
    parser.add_argument("--real", type=Path, help="dataset of two patients, ms19 and ms26 (default: none)")
    parser.add_argument("--real-steps", type=int, default=1000, help="of each run on the patients (default: 1000)")
    parser.add_argument("--jobs", type=at_least_one, default=1, help="runs at a time (default: 1)")
    return parser


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        part: "sample" or "real", of the results.
        loss: A name of LOSSES.
        which: What tells it from the others of its loss: its seed, or its patients.
        config: A file name in `configs/`.
        overrides: Of that configuration, without the loss.
    """

    part: str
    loss: str
    which: str
    config: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """A file name for the run."""
        return "-".join(f"{self.part} {self.loss} {self.which}".replace(",", "").replace("+", "and").split())


def sample_run(loss: str, seed: int, options: argparse.Namespace) -> Run:
    """One loss and seed on the phantoms."""
    overrides = (
        f"data.root={_quoted(options.output / PHANTOMS)}",
        "data.validation_cases=[phantom_009, phantom_010, phantom_011]",
        "inference.overlap=0.25",
        f"train.steps={options.steps}",
        f"train.validate_every={options.validate_every}",
        f"seed={seed}",
    )
    return Run("sample", loss, f"seed {seed}", "quickstart.yaml", overrides)


def real_run(loss: str, train: str, test: str, options: argparse.Namespace) -> Run:
    """One loss on the patients; there is one validation, at the end, on the patient not trained on."""
    overrides = (
        f"data.root={_quoted(options.real)}",
        f"data.validation_cases=[{test}]",
        "data.validation_half=null",
        "model.filters=[8, 16, 32, 64]",
        "model.patch_size=[48, 48, 48]",
        f"train.steps={options.real_steps}",
        f"train.validate_every={options.real_steps}",
    )
    return Run("real", loss, f"{train} to {test}", "ms_lesions.yaml", overrides)


class Experiment:
    """The runs of an output folder and what came of them, kept in results.json after each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._output: Path = options.output
        self._jobs: int = options.jobs
        self._path = self._output / "results.json"
        names = ("steps", "validate_every", "real_steps")
        settings = {name: getattr(options, name) for name in names}
        self.results = open_results(self._path, settings, parts=("sample", "real"))
        write_manifest(self._output / PHANTOMS)

    def run(self, runs: Iterable[Run]) -> None:
        """Trains what has no result yet. Raises InputError when a run fails; those before it are kept."""
        missing = [run for run in runs if run.which not in self.results[run.part].get(run.loss, {})]
        if missing:
            require_same_machine(self._path, self.results)
        for run, result in run_side_by_side(missing, self._train, jobs=self._jobs):
            self._keep(run, result)

    def _train(self, run: Run) -> dict[str, Any]:
        folder = self._output / "runs" / run.folder
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), str(ROOT / "configs" / run.config)]
        command += [*run.overrides, f"loss={json.dumps(LOSSES[run.loss])}", "--run-dir", str(folder), "--resume"]
        log_path = self._output / "logs" / f"{run.folder}.txt"
        log_path.parent.mkdir(exist_ok=True)
        run_command(command, log_path, {"PYTHONPATH": str(ROOT)})
        seconds = read_json(folder / "manifest.json")["seconds"]
        return {"curve": read_curve(folder / "validation.csv"), "seconds": seconds}

    def _keep(self, run: Run, result: dict[str, Any]) -> None:
        self.results[run.part].setdefault(run.loss, {})[run.which] = result
        write_json(self._path, self.results)
        last = result["curve"][-1]
        print(f"{run.part}: {run.loss}, {run.which}: IoU {last['iou']}, lesion F1 {last['lesion_f1']}", flush=True)


def write_outputs(results: dict[str, Any], output: Path) -> None:
    """table.md and losses.svg from the results."""
    sample = {name: results["sample"][name] for name in LOSSES if name in results["sample"]}  # they end in any order
    text = sample_table(sample, base=BASE, hybrid=FIXED_HYBRID)
    if results["real"]:
        text += "\n\n" + real_table(results["real"])
    write_text(output / "table.md", f"{text}\n\n{results['machine']}; {results['settings']}\n")
    write_text(output / "losses.svg", draw_losses(rows_of(sample, base=BASE), base=BASE))


def read_curve(path: Path) -> list[dict[str, float | None]]:
    """The validations of a run: "step" and FIGURES; None where a figure is undefined."""
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return [{name: float(row[name]) if row[name] else None for name in ("step", *FIGURES)} for row in rows]


def write_manifest(path: Path) -> None:
    """The phantoms to train on and the held-out ones with lesions as one dataset."""
    data = ROOT / "sample_data"
    rows = ["case,FLAIR,T1,label"]
    for part in ("Tr", "Ts"):
        for label in sorted((data / f"labels{part}").glob("*.nii.gz")):
            case = label.name.removesuffix(".nii.gz")
            if case == EMPTY:
                continue
            images = [data / f"images{part}" / f"{case}_000{channel}.nii.gz" for channel in (0, 1)]
            rows.append(",".join(map(str, (case, *images, label))))
    write_text(path, "\n".join(rows) + "\n")


def _quoted(path: Path) -> str:
    return json.dumps(str(path.resolve()))
