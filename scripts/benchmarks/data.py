"""Training patches: CPU seconds and patches/s of each stage, beside MONAI's augmentation and the training step."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import tensorflow as tf

from benchmarks.options import benchmark_parser
from benchmarks.peers import run_peer
from benchmarks.step import ours as training_step
from benchmarks.timing import machine, median, seconds_of, table
from segment.config import AugmentationConfig, Config, config_from
from segment.data.cases import find_dataset
from segment.data.fingerprint import fingerprint
from segment.data.lesion_maps import cell_map, distance_map
from segment.data.patches import PatchSource
from segment.data.pipeline import patch_dataset
from segment.data.planning import Plan, make_plan
from segment.data.preprocessing import PreparedCase, prepare_cases
from segment.files import write_json
from segment.training.precision import compute_capabilities, read_cpu_flags, resolve_precision

PATCH, BATCH = 64, 2
FED_STEPS = 20  # long beside the two batches that the pipeline holds ready
FILTERS = [16, 32, 64, 128]  # of the training step that the share of time refers to
SAME_AS_PEER = ("affine_share", "noise_share", "gamma_share")
# What every 3D training may have; the other two are of 2D models, and for several MR channels and heavy patients.
LEFT_OUT = ("elastic_share", "dropout_share", "channel_mixing_share", "lesion_removal_share")
SHARES = [name for name in AugmentationConfig.model_fields if name.endswith("_share") and name not in LEFT_OUT]


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark and prints its tables."""
    parser = benchmark_parser("data", __doc__, "--repeats 7")
    parser.add_argument("--dataset", type=Path, default=Path("sample_data"), help="scans to cut from")
    parser.add_argument("--patches", type=int, default=40, help="patches in each measurement (default: 40)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median is taken (default: 5)")
    parser.add_argument("--no-peer", action="store_true", help="leave MONAI out")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        prepared, plan = _prepare(options.dataset, Path(folder))
        rounds, versions = _rounds(prepared, plan, options, Path(folder))
    seconds = {name: median([one[name] for one in rounds]) for name in rounds[0]}
    result = {
        "machine": machine(),
        "versions": f"TensorFlow {tf.__version__}, albumentations {albumentations.__version__}{versions}",
        "patch": f"{PATCH}^3 x {plan.channels}",
        "seconds": seconds,
        "all_seconds": rounds,
    }
    _print(result)
    if options.output is not None:
        write_json(options.output, result)
    return 0


def _prepare(dataset: Path, folder: Path) -> tuple[list[PreparedCase], Plan]:
    config = config_from({"data": {"root": str(dataset)}, "model": {"patch_size": [PATCH] * 3}}, source="benchmark")
    found = find_dataset(config.data.root, layout="auto")
    plan = make_plan(found, fingerprint(found, workers=2), config)
    return prepare_cases(found.cases, plan, cache_dir=folder / "cache", workers=2), plan


def _config(**shares: float) -> Config:
    values = {"flip": bool(shares), **dict.fromkeys([*SHARES, *LEFT_OUT], 0.0), **shares}
    return config_from({"augmentation": values, "train": {"batch_size": BATCH}}, source="benchmark")


def _rounds(
    prepared: list[PreparedCase], plan: Plan, options: argparse.Namespace, folder: Path
) -> tuple[list[dict[str, float]], str]:
    """The figures of each round, and the peer's versions: in each, everything is measured once, the peer in between."""
    stages = _stages(prepared, plan, options.patches)
    peer = _peer_patches(prepared, plan, options.patches, folder) if not options.no_peer else None
    precision = resolve_precision("auto", compute_capabilities=compute_capabilities(), cpu_flags=read_cpu_flags())
    network = argparse.Namespace(patch=PATCH, batch=BATCH, filters=FILTERS)
    step = training_step(network, precision)[0]
    rounds, versions = [], f", {precision}"
    for number in range(options.repeats):
        figures = {name: _cpu_seconds(call, options.patches) for name, call in stages.items()}
        if peer is not None:
            limits = AugmentationConfig()
            given = ["--degrees", str(limits.rotation_degrees), "--scale", str(limits.scale)]
            found = run_peer("peer_data.py", "--patches", str(peer), *given)
            figures["peer"] = found["cpu_s"]
            versions = f", {precision}, {found['versions']}" if number == 0 else versions
        figures |= _pipeline(prepared, plan, options.patches)
        begun = time.process_time()
        figures["step"] = median(seconds_of(step, repeats=3))
        figures["step cpu"] = (time.process_time() - begun) / 5  # two of the five calls warm up
        figures |= _fed(step, prepared, plan)
        rounds.append(figures)
    return rounds, versions


def _stages(prepared: list[PreparedCase], plan: Plan, patches: int) -> dict[str, Callable[[int], Any]]:
    """What is measured by itself: name -> what makes patch number i."""
    configs = {"cut": _config(), "all": _config(**dict.fromkeys(SHARES, 1.0))}
    configs["same as peer"] = _config(**dict.fromkeys(SAME_AS_PEER, 1.0))
    shares = AugmentationConfig()
    configs["default"] = _config(**{name: getattr(shares, name) for name in SHARES})
    configs |= {name: _config(**{name: 1.0}) for name in SHARES}
    stages: dict[str, Callable[[int], Any]] = {
        name: PatchSource(prepared, plan, config).sample for name, config in configs.items()
    }
    masks = [stages["cut"](number)[1][..., 0] for number in range(patches)]
    stages["cells"] = lambda number: cell_map(masks[number], spacing_mm=plan.spacing_mm)
    stages["distance"] = lambda number: distance_map(masks[number], spacing_mm=plan.spacing_mm, clip_mm=20.0)
    return stages


def _cpu_seconds(call: Callable[[int], Any], patches: int) -> float:
    for number in range(3):
        call(number)
    begun = time.process_time()
    for number in range(patches):
        call(number)
    return (time.process_time() - begun) / patches


def _peer_patches(prepared: list[PreparedCase], plan: Plan, patches: int, folder: Path) -> Path:
    """The patches that ours changes, channels first as MONAI takes them, in a file."""
    samples = [PatchSource(prepared, plan, _config()).sample(number) for number in range(patches)]
    image, label = (np.stack([np.moveaxis(sample[part], -1, 0) for sample in samples]) for part in (0, 1))
    path = folder / "patches.npz"
    np.savez(path, image=image, label=label[:, :1])
    return path


def _pipeline(prepared: list[PreparedCase], plan: Plan, patches: int) -> dict[str, float]:
    """Wall and CPU seconds a patch of the whole pipeline at the default shares, with its threads and prefetching."""
    config = _config(**{name: getattr(AugmentationConfig(), name) for name in SHARES})
    steps = max(1, patches // BATCH)
    batches = iter(patch_dataset(prepared, plan, config, first_step=0, steps=steps + 4))
    for _ in range(2):
        next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(batches)
    return {
        "pipeline": (time.perf_counter() - wall) / steps / BATCH,
        "pipeline cpu": (time.process_time() - cpu) / steps / BATCH,
    }


def _fed(step: Callable[..., Any], prepared: list[PreparedCase], plan: Plan) -> dict[str, float]:
    """Wall seconds of a step on batches of the pipeline, and of one on a batch in memory just before."""
    config = _config(**{name: getattr(AugmentationConfig(), name) for name in SHARES})
    batches = iter(patch_dataset(prepared, plan, config, first_step=0, steps=FED_STEPS + 2))
    batch = next(batches)
    step(batch)
    begun = time.perf_counter()
    for _ in range(FED_STEPS):
        step(batch)
    fixed = time.perf_counter()
    for _ in range(FED_STEPS):
        step(next(batches))
    return {"step on one batch": (fixed - begun) / FED_STEPS, "fed step": (time.perf_counter() - fixed) / FED_STEPS}


def _print(result: dict[str, Any]) -> None:
    seconds = result["seconds"]
    print(f"{result['machine']}; {result['versions']}; patches of {result['patch']}\n")
    names = {
        "cut": "cut from the cache",
        **{name: f"and {name.removesuffix('_share').replace('_', ' ')}" for name in SHARES},
        "default": "all at their default shares",
        "same as peer": "rotation and scaling, flip, noise, gamma, each on every patch",
        "all": "all eight and flips on every patch",
        "cells": "lesion cells for `component_dice`",
        "distance": "distance map for `boundary`",
    }
    rows = [[names[name], 1e3 * seconds[name], 1 / seconds[name]] for name in names]
    print(table(["stage, one core", "CPU ms a patch", "patches/s"], rows))
    whole = seconds["pipeline"], seconds["pipeline cpu"]
    print(f"\npipeline, 2 threads, default shares: {1 / whole[0]:.0f} patches/s, {1e3 * whole[1]:.1f} CPU ms a patch")
    share = BATCH * seconds["pipeline cpu"] / seconds["step cpu"]
    print(f"training step, batch {BATCH}: {seconds['step']:.3f} s; its data: {share:.1%} of its CPU seconds")
    cost = median([found["fed step"] / found["step on one batch"] for found in result["all_seconds"]]) - 1
    print(f"a step on real data, beside one on a batch in memory: {cost:+.1%} wall time")
    if "peer" in seconds:
        print(f"MONAI, affine, flip, noise, contrast on every patch: {1e3 * seconds['peer']:.1f} CPU ms a patch")
        for name in ("same as peer", "all"):
            print(f"{names[name]}: {seconds[name] / seconds['peer']:.2f} of MONAI's CPU seconds")
