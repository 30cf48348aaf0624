"""What each part of the small-lesion recipe is worth: one change at a time, in the same minutes.

Every variant is trained on one half of each patient's scan and counted on the other, seed by seed from side to side, so
that no patient who is tested elsewhere chooses anything. What is counted stands in the run's operating_point.json:
how many small lesions the best point finds within a budget of false positives in the half. Beside it stand the false
positives at 0.5 of the half as it is and with its large lesions painted over, as `lesion_load` counts them: how far a
network can be trusted with patients of another lesion load.

`recall_feedback` is not among the weightings, for it learns from validations and here there is one, at the end. Nothing
is predicted with flips, which would cost a part of the minutes that a training has; what they are worth is
found out afterwards with the networks of the recipe.

Every finished run is kept in results.json, so a benchmark that was stopped goes on when the same command is given; what
needs a network is left out for runs whose folders are not there. Nothing else should run beside it. With `--jobs`
several trainings run at a time, each on its share of the cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.ablation_table import RECIPE, ablation_table, point_table
from benchmarks.half_counts import count_half, count_load
from benchmarks.kept_results import open_results, recipe_of, require_same_machine
from benchmarks.options import benchmark_parser
from benchmarks.side_by_side import run_side_by_side
from benchmarks.timed_training import HALVES, ROOT, require_settings, train_half, train_within, write_manifest
from segment.commands.arguments import at_least_one
from segment.data.cases import find_dataset
from segment.data.lesion_shapes import shape_files
from segment.data.orientation import Half
from segment.files import read_json, write_json, write_text

FLIPPED = f"{RECIPE}, flips at prediction"
_BCE, _DICE, _FOCAL = ({"name": name} for name in ("binary_crossentropy", "dice", "focal"))
_COMPONENT = {"name": "component_dice"}
# Cross-entropy alone for a fifth of the training; from three fifths on all terms of the recipe at its weights.
_ONE_THEN_ALL = [
    {"share": 0.2, "weights": {"binary_crossentropy": 1.0, "dice": 0.0, "component_dice": 0.0}},
    {"share": 0.6, "weights": {"binary_crossentropy": 1.0, "dice": 1.0, "component_dice": 0.4}},
]


def _terms(*terms: Mapping[str, str]) -> str:
    return f"loss.terms={json.dumps(terms)}"


def _weighting(name: str, **options: Any) -> str:
    return f"loss.weighting={json.dumps({'name': name, **options})}"


# Each replaces options of the recipe; what the recipe has already is the same run twice, and shows the noise.
VARIANTS: dict[str, tuple[str, ...]] = {
    RECIPE: (),
    "patches anywhere, not around lesions": ("data.lesion_patch_share=0",),
    "no copy-paste": ("augmentation.copy_paste_share=0",),
    "no lesion removal": ("augmentation.lesion_removal_share=0",),
    "loss: cross-entropy": (_terms(_BCE),),
    "loss: cross-entropy, Dice": (_terms(_BCE, _DICE),),
    "loss: cross-entropy, Dice, focal": (_terms(_BCE, _DICE, _FOCAL),),
    "loss: cross-entropy, Dice, focal, component": (_terms(_BCE, _DICE, _FOCAL, _COMPONENT),),
    "weighting: cross-entropy first": (_weighting("schedule", points=_ONE_THEN_ALL),),
    "weighting: uncertainty": (_weighting("uncertainty"),),
    "weighting: gradient norm": (_weighting("gradient_norm"),),
    "weighting: dynamic average": (_weighting("dynamic_average"),),
    "no running mean of the weights": ("train.ema_decay=0",),
    "two patches a step": ("train.batch_size=2",),
    "patches of 48³": ("model.patch_size=[48, 48, 48]",),
    "no norm": ("model.norm=none",),
    "intensities: z-score": ("data.normalization=zscore",),
}
SHAPES = "external shapes pasted too"  # with --shapes


@dataclass(frozen=True)
class Run:
    """A variant trained on one half of a case."""

    variant: str
    case: str
    seed: int

    @property
    def name(self) -> str:
        """In results.json."""
        return f"{self.variant}: {self.case} seed {self.seed}"

    @property
    def folder(self) -> str:
        """A file name."""
        words = "".join(letter if letter.isalnum() else " " for letter in self.name).split()
        return "-".join(words)

    @property
    def half(self) -> Half:
        """Which is counted."""
        return HALVES[self.seed % len(HALVES)]


def main(arguments: Sequence[str]) -> int:
    """Runs what is missing and writes results.json and table.md."""
    options = _parser().parse_args(arguments)
    ablation = Ablation(options)
    ablation.train()
    ablation.paint()
    ablation.flip()
    print(ablation.write())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("ablation", __doc__, "--data DATASET --shapes MASKS --jobs 2")
    parser.add_argument("--data", type=Path, required=True, help="dataset with labels; every case is a patient")
    parser.add_argument("--shapes", type=Path, help="folder of lesion masks without scans: one more variant")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "ms_lesions.yaml", help="the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--minutes", type=float, default=6.0, help="of each training (default: 6)")
    parser.add_argument("--jobs", type=at_least_one, default=1, help="trainings at a time (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="folder (default: %(default)s)")
    return parser


class Ablation:
    """The runs of an output folder and what came of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._output: Path = options.output.resolve()
        self._data = find_dataset(options.data, layout="auto")
        self._variants = dict(VARIANTS)
        if options.shapes is not None:
            shape_files(options.shapes)
            pasted = (f"augmentation.copy_paste_shapes={json.dumps(str(options.shapes.resolve()))}",)
            self._variants = {RECIPE: (), SHAPES: pasted} | self._variants
        for given in self._variants.values():
            require_settings(options.config, given, minutes=options.minutes)
        settings = {"minutes": options.minutes, "jobs": options.jobs} | recipe_of(options.config, (), self._data)
        self.results = open_results(self._output / "results.json", settings, parts=("runs",))

    def train(self) -> None:
        """What has no result yet, seed by seed. Raises InputError when a training fails; what ended before is kept."""
        cases = [case.case_id for case in self._data.cases]
        runs = [
            Run(variant, case, seed) for seed in self._options.seeds for variant in self._variants for case in cases
        ]
        missing = [run for run in runs if run.name not in self.results["runs"]]
        if missing:
            require_same_machine(self._output / "results.json", self.results)
        for run, result in run_side_by_side(missing, self._train, jobs=self._options.jobs):
            self._keep(run, result)

    def paint(self) -> None:
        """Counts false positives of every network with the large lesions of its half painted over, and without."""
        cases = {case.case_id: case for case in self._data.cases}
        for name, run in self.results["runs"].items():
            trained = Run(run["variant"], run["case"], run["seed"])
            if run["variant"] != FLIPPED and "load" not in run and self._folder(trained).is_dir():
                run["load"] = count_load(self._folder(trained), cases[trained.case], trained.half)
                print(f"{name}, painted over", flush=True)
                self._save()

    def flip(self) -> None:
        """Counts the recipe's networks once more, with flips."""
        for seed in self._options.seeds:
            for case in self._data.cases:
                run, plain = Run(FLIPPED, case.case_id, seed), Run(RECIPE, case.case_id, seed)
                if run.name not in self.results["runs"] and self._folder(plain).is_dir():
                    counts = count_half(self._folder(plain), replace(case, half=run.half), flips=True)
                    steps = self.results["runs"][plain.name]["steps"]
                    self._keep(run, {"steps": steps} | counts)

    def write(self) -> str:
        """table.md, which is returned."""
        tables = f"{ablation_table(self.results['runs'])}\n\n{point_table(self.results['runs'])}"
        text = f"{tables}\n\n{self.results['machine']}; {self.results['settings']}\n"
        write_text(self._output / "table.md", text)
        return text

    def _keep(self, run: Run, result: dict[str, Any]) -> None:
        self.results["runs"][run.name] = asdict(run) | result
        self._save()
        print(run.name, flush=True)

    def _save(self) -> None:
        write_json(self._output / "results.json", self.results)

    def _folder(self, run: Run) -> Path:
        """The run folder of a training."""
        return self._output / "runs" / run.folder / "run"

    def _train(self, run: Run) -> dict[str, Any]:
        options, folder = self._options, self._folder(run)
        folder.parent.mkdir(parents=True, exist_ok=True)
        data = folder.with_name("train.csv")
        write_manifest(self._data, run.case, data)
        given = (*self._variants[run.variant], "inference.flips=false")

        def train(steps: int, into: Path) -> float:
            return train_half(options.config, data, run.half, seed=run.seed, steps=steps, folder=into, given=given)

        steps, seconds = train_within(
            options.minutes * 60, [train], [folder], folder.with_name("pilot"), steps=self._steps_of(run)
        )
        counts = read_json(folder / "operating_point.json")["counts"]
        dice = read_json(folder / "validation" / "report" / "summary.json")["macro"]["dice"]["mean"]
        return {"steps": steps, "minutes": seconds / 60, "counts": counts, "dice": dice}

    def _steps_of(self, run: Run) -> int | None:
        """What filled the minutes for one seed does for the next."""
        for other in list(self.results["runs"].values()):  # other threads add to it
            if (other["variant"], other["case"]) == (run.variant, run.case):
                return int(other["steps"])
        return None
