"""Seconds and memory of the evaluation of one large pair of masks beside panoptica's and MONAI's, and its scaling."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import segment
from benchmarks.made_masks import make_pair, write_cases
from benchmarks.options import benchmark_parser
from benchmarks.peers import run_peer
from benchmarks.timing import machine, median, table
from segment.config import EvaluationConfig
from segment.errors import InputError
from segment.evaluation.folders import evaluate_folders
from segment.files import write_json

TOOLS = ("segment", "panoptica", "monai")
WHAT = {
    "counts": "lesions, matching, Dice, IoU",
    "distances": "the same with HD95 and surface Dice",
}
LAYOUTS = {"F": "as nibabel reads them", "C": "row-major"}
SPEED_BARS = {"counts": 8.0, "distances": 5.0}  # times panoptica
MEMORY_BAR = 0.5  # of panoptica's
SCALING_BAR = 1.8
CASE_LESIONS = 25
AGREEMENT = 2e-5  # relative
# Where a tool's definition is another one than ours.
OTHER_DEFINITION = {
    ("panoptica", "HD95 mm"): "pools the distances of both directions",
    ("panoptica", "surface Dice 1 mm"): "counts edge voxels, no areas",
}


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark and prints its tables; 1 where figures that must agree do not."""
    parser = benchmark_parser("evaluate", __doc__, "--scaling 200")
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 192), help="voxels (default: 256 256 192)")
    parser.add_argument("--lesions", type=int, default=240, help="drawn; some touch (default: 240)")
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.0, 1.0, 1.0), help="mm (default: 1 1 1)")
    parser.add_argument("--rounds", type=int, default=2, help="in which the tools take turns (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="counted calls in each round (default: 3)")
    parser.add_argument("--no-peers", action="store_true", help="leave panoptica and MONAI out")
    parser.add_argument("--scaling", type=int, metavar="CASES", help="measure instead so many cases on 1 and 2 workers")
    parser.add_argument(
        "--case-shape", type=int, nargs=3, default=(160, 192, 160), help="voxels of these (default: 160 192 160)"
    )
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args(arguments)
    result = scaling(options) if options.scaling else compare(options)
    if options.output is not None:
        write_json(options.output, result)
    return int(bool(result.get("disagree")))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measures every tool on one pair, each measurement in a process of its own."""
    tools = TOOLS[:1] if options.no_peers else TOOLS
    measured: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = make_pair(tuple(options.shape), options.lesions, seed=0)
        for side, mask in zip(("label", "prediction"), pair, strict=True):
            np.save(folder / f"{side}.npy", mask)
        for _ in range(options.rounds):
            for what in WHAT:
                for order in LAYOUTS:
                    for tool in tools if order == "F" else tools[:2]:
                        measured.setdefault((what, order, tool), []).append(
                            _measure(tool, what, order, folder, options)
                        )
    rows = [_row(key, measured) for key in measured]
    shape = " x ".join(map(str, options.shape))
    figures = measured["distances", "F", "segment"][0]["figures"]
    versions = ", ".join(measured["counts", "F", tool][0]["versions"] for tool in tools)
    print(f"{machine()}; {versions}\n{shape} voxels, {figures['label lesions']} label lesions and")
    print(f"{figures['predicted lesions']} predicted ones; medians of {options.rounds * options.repeats} calls\n")
    columns = ("what", "masks in memory", "tool", "seconds", "times ours", "extra MiB", "ours of it")
    print(table(columns, rows))
    disagree = _print_agreement(measured, tools)
    _print_bars(measured, tools)
    return {
        "machine": machine(),
        "versions": versions,
        "rows": [dict(zip(columns, row, strict=True)) for row in rows],
    } | {
        "disagree": disagree,
        "all": [{"what": key[0], "order": key[1], "tool": key[2], "runs": runs} for key, runs in measured.items()],
    }


def _measure(tool: str, what: str, order: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    given = ["--folder", str(folder), "--what", what, "--order", order, "--repeats", str(options.repeats)]
    given += ["--spacing", *map(str, options.spacing)]
    if tool != "segment":
        return run_peer("peer_evaluate.py", *given, "--tool", tool)
    script = Path(__file__).with_name("own_evaluate.py")
    paths = [str(Path(segment.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    done = subprocess.run(
        [sys.executable, str(script), *given], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise InputError(f"{script.name} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _figure(measured: Any, what: str, order: str, tool: str) -> tuple[float, float]:
    """Median seconds and MiB."""
    runs = measured[what, order, tool]
    mib = [run["extra_mib"] for run in runs if run["extra_mib"] is not None]
    return median([second for run in runs for second in run["seconds"]]), median(mib) if mib else math.nan


def _row(key: tuple[str, str, str], measured: Any) -> tuple[Any, ...]:
    what, order, tool = key
    seconds, mib = _figure(measured, *key)
    own_seconds, own_mib = _figure(measured, what, order, "segment")
    ratios = ("", "") if tool == "segment" else (f"{seconds / own_seconds:.1f}", f"{own_mib / mib:.2f}")
    return WHAT[what], LAYOUTS[order], tool, f"{seconds:.3f}", ratios[0], f"{mib:.0f}", ratios[1]


def _print_agreement(measured: Any, tools: Sequence[str]) -> list[str]:
    """Prints each figure of each tool and returns those that should be ours and are not."""
    figures = {tool: measured["distances", "F", tool][0]["figures"] for tool in tools}
    rows, disagree = [], []
    for name, own in figures["segment"].items():
        row = [name, f"{own:.6g}"]
        for tool in tools[1:]:
            value = figures[tool].get(name)
            note = OTHER_DEFINITION.get((tool, name), "")
            if value is not None and not note and not math.isclose(value, own, rel_tol=AGREEMENT):
                disagree.append(f"{tool}: {name}")
                note = "DISAGREES"
            row.append("" if value is None else f"{value:.6g}" + (f" ({note})" if note else ""))
        rows.append(row)
    print(f"\n{table(('figure', *tools), rows)}")
    return disagree


def _print_bars(measured: Any, tools: Sequence[str]) -> None:
    if "panoptica" not in tools:
        return
    for what, bar in SPEED_BARS.items():
        for order in LAYOUTS:
            seconds, mib = _figure(measured, what, order, "panoptica")
            own_seconds, own_mib = _figure(measured, what, order, "segment")
            speed = f"{seconds / own_seconds:.1f} times as fast as panoptica (bar {bar:g})"
            print(f"{WHAT[what]}, {LAYOUTS[order]}: {speed}, {own_mib / mib:.2f} of its memory (bar {MEMORY_BAR:g})")


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of `segment evaluate` on many cases, report and pictures included, on 1 and on 2 workers."""
    taken: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cases(folder / "cases", options.scaling, tuple(options.case_shape), CASE_LESIONS)
        for _ in range(options.rounds):
            for workers, seconds in taken.items():
                seconds.append(_evaluate_all(folder / "cases", folder / "report", workers))
        pages = (folder / "report" / "report.html").stat().st_size / 2**20
    middle = {workers: median(seconds) for workers, seconds in taken.items()}
    shape = " x ".join(map(str, options.case_shape))
    print(f"{machine()}\n{options.scaling} cases of {shape} voxels with pictures; report.html {pages:.1f} MiB;")
    print(f"medians of {options.rounds} runs\n")
    rows = [(workers, f"{seconds:.1f}", f"{middle[1] / seconds:.2f}") for workers, seconds in middle.items()]
    print(table(("workers", "seconds", f"times one worker (bar {SCALING_BAR:g})"), rows))
    return {"machine": machine(), "cases": options.scaling, "seconds": middle, "all_seconds": taken}


def _evaluate_all(cases: Path, output: Path, workers: int) -> float:
    shutil.rmtree(output, ignore_errors=True)
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate_folders(
            cases / "predictions",
            cases / "labels",
            output,
            config=EvaluationConfig(),
            seed=0,
            probabilities=None,
            images=cases / "images",
            classes=None,
            missing="error",
            workers=workers,
            language="en",
            force=False,
        )
    return time.perf_counter() - begun
