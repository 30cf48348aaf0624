"""What each part of the small-lesion recipe is worth: one change at a time, in the same minutes.

Every variant is trained on one half of each patient's scan and counted on the other, seed by seed from side to side, so
that no patient who is tested elsewhere chooses anything. What is counted stands in the run's operating_point.json:
how many small lesions the best point finds within a budget of false positives in the half.

Every finished run is kept in results.json, so a benchmark that was stopped goes on when the same command is given.
Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kept_results import open_results
from benchmarks.options import benchmark_parser
from benchmarks.timed_training import HALVES, ROOT, require_settings, train_half, train_within, write_manifest
from benchmarks.timing import table
from segment.data.cases import find_dataset
from segment.evaluation.froc import Point, Sweep, pool
from segment.files import read_json, write_json, write_text
from segment.inference.operating_point import counts_from

BUDGETS = (3, 7, 15)  # false positives in a half
RECIPE = "the recipe"
_BCE, _DICE, _FOCAL = ({"name": name} for name in ("binary_crossentropy", "dice", "focal"))
_COMPONENT = {"name": "component_dice"}


def _terms(*terms: Mapping[str, str]) -> str:
    return f"loss.terms={json.dumps(terms)}"


def _weighting(name: str) -> str:
    return f"loss.weighting={json.dumps({'name': name})}"


# Each replaces options of the recipe; what the recipe has already is the same run twice, and shows the noise.
VARIANTS: dict[str, tuple[str, ...]] = {
    RECIPE: (),
    "patches anywhere, not around lesions": ("data.lesion_patch_share=0",),
    "no copy-paste": ("augmentation.copy_paste_share=0",),
    "no lesion removal": ("augmentation.lesion_removal_share=0",),
    "no rotation and scaling": ("augmentation.affine_share=0",),
    "channels mixed": ("augmentation.channel_mixing_share=0.5",),
    "loss: cross-entropy": (_terms(_BCE),),
    "loss: cross-entropy, Dice": (_terms(_BCE, _DICE),),
    "loss: cross-entropy, Dice, focal": (_terms(_BCE, _DICE, _FOCAL),),
    "loss: cross-entropy, Dice, focal, component": (_terms(_BCE, _DICE, _FOCAL, _COMPONENT),),
    "weighting: uncertainty": (_weighting("uncertainty"),),
    "weighting: gradient norm": (_weighting("gradient_norm"),),
    "weighting: dynamic average": (_weighting("dynamic_average"),),
    "no running mean of the weights": ("train.ema_decay=0",),
    "no flips at prediction": ("inference.flips=false",),
    "two patches a step": ("train.batch_size=2",),
    "patches of 48³": ("model.patch_size=[48, 48, 48]",),
    "no norm": ("model.norm=none",),
    "intensities: z-score": ("data.normalization=zscore",),
}


def main(arguments: Sequence[str]) -> int:
    """Runs what is missing and writes results.json and table.md."""
    options = _parser().parse_args(arguments)
    require_settings(options.config, (), minutes=options.minutes)
    output: Path = options.output.resolve()
    variants = dict(VARIANTS)
    if options.shapes is not None:
        variants["external shapes pasted too"] = (f"augmentation.copy_paste_shapes={options.shapes.resolve()}",)
    settings = {"minutes": options.minutes, "config": options.config.name}
    results = open_results(output / "results.json", settings, parts=("runs",))
    cases = [case.case_id for case in find_dataset(options.data, layout="auto").cases]
    output.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for variant, given in variants.items():
            for case_id in cases:
                name = f"{variant}: {case_id} seed {seed}"
                if name not in results["runs"]:
                    print(f"{name} ...", flush=True)
                    folder = output / "runs" / f"{case_id}-{seed}-{list(variants).index(variant):02d}"
                    results["runs"][name] = {"variant": variant} | _run(options, case_id, seed, given, folder)
                    write_json(output / "results.json", results)
    text = f"{ablation_table(results['runs'])}\n\n{results['machine']}; {results['settings']}\n"
    write_text(output / "table.md", text)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("ablation", __doc__, "--data DATASET --minutes 6")
    parser.add_argument("--data", type=Path, required=True, help="dataset with labels; every case is a patient")
    parser.add_argument("--shapes", type=Path, help="folder of lesion masks without scans: one more variant")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "ms_lesions.yaml", help="the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--minutes", type=float, default=6.0, help="of each training (default: 6)")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="folder (default: %(default)s)")
    return parser


def _run(options: argparse.Namespace, case_id: str, seed: int, given: Sequence[str], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    data, half = folder / "train.csv", HALVES[seed % len(HALVES)]
    write_manifest(find_dataset(options.data, layout="auto"), case_id, data)

    def train(steps: int, into: Path) -> float:
        return train_half(options.config, data, half, seed=seed, steps=steps, folder=into, given=given)

    steps, seconds = train_within(options.minutes * 60, [train], [folder / "run"], folder / "pilot")
    counts = read_json(folder / "run" / "operating_point.json")["counts"]
    dice = read_json(folder / "run" / "validation" / "report" / "summary.json")["macro"]["dice"]["mean"]
    return {"case": case_id, "steps": steps, "minutes": seconds / 60, "counts": counts, "dice": dice}


def found_within(counts: Sweep, budget: int, *, volumes: bool, peaks: bool) -> int:
    """Small lesions that the best point of one case finds with at most so many false positives.

    Args:
        counts: Of the case.
        budget: False positives.
        volumes: Whether points with a least volume count.
        peaks: Whether points with a least peak count.
    """
    points = [
        point
        for point in pool([counts], n_scans=1)
        if point.fp <= budget and (volumes or not point.min_lesion_mm3) and (peaks or not point.min_peak)
    ]
    return max((_small(point, counts) for point in points), default=0)


def _small(point: Point, counts: Sweep) -> int:
    return round((point.small_lesion_recall or 0.0) * counts.n_small)


def ablation_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a variant, then what threshold, volume and peak are worth to the recipe; sums over its runs."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs.values():
        groups.setdefault(run["variant"], []).append(run)
    if not groups:
        return "no run has ended yet"
    rows = [_row(variant, group, volumes=True, peaks=True) for variant, group in groups.items()]
    if RECIPE in groups:
        own = groups[RECIPE]
        rows.append(_row(f"{RECIPE}, threshold and least volume", own, volumes=True, peaks=False))
        rows.append(_row(f"{RECIPE}, threshold alone", own, volumes=False, peaks=False))
    head = ["change", "runs", "steps", *(f"small lesions at {budget} false positives" for budget in BUDGETS)]
    return table([*head, "Dice at 0.5"], rows)


def _row(name: str, runs: Sequence[Mapping[str, Any]], *, volumes: bool, peaks: bool) -> list[object]:
    counts = [counts_from(run["counts"]) for run in runs]
    n_small = sum(one.n_small for one in counts)
    found = (sum(found_within(one, budget, volumes=volumes, peaks=peaks) for one in counts) for budget in BUDGETS)
    steps = round(statistics.fmean(run["steps"] for run in runs))
    return [name, len(runs), steps, *(f"{hits} of {n_small}" for hits in found), _mean(run["dice"] for run in runs)]


def _mean(values: Any) -> float:
    return statistics.fmean(0.0 if value is None else float(value) for value in values)
