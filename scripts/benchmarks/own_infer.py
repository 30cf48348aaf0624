"""One scan of `infer.py` with this package, in a process of its own so that its peak memory is its own. Prints JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from benchmarks.cube_plan import cube_plan
from benchmarks.step import flops_of
from benchmarks.timing import matmul_flops_per_second
from segment.config import Config, config_from, save_config
from segment.data.grid import Grid
from segment.data.planning import Plan
from segment.data.preprocessing import Placement
from segment.files import write_json
from segment.inference.model_file import compile_forward, window_batch
from segment.inference.predictor import Member, NetworkScan, Predictor
from segment.inference.slabs import predict_volume
from segment.memory_use import peak_bytes, resident_bytes
from segment.model import build_unet
from segment.model.hardware import compute_capabilities, read_cpu_flags, resolve_precision
from segment.training.precision import precision_policy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--overlap", type=float, required=True)
    parser.add_argument("--shape", type=int, nargs=3, required=True)
    parser.add_argument("--channels", type=int, required=True)
    parser.add_argument("--filters", type=int, nargs="+", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--write-run", type=Path, help="write a run folder of the untrained network, and no more")
    parser.add_argument("--float32", action="store_true", help="the network in float32")
    options = parser.parse_args()
    before = resident_bytes()
    found = resolve_precision("auto", compute_capabilities=compute_capabilities(), cpu_flags=read_cpu_flags())
    precision = "float32" if options.float32 else found
    plan = cube_plan(patch=options.window, filters=options.filters, channels=options.channels)
    config = config_from({"inference": {"overlap": options.overlap}}, source="benchmark")
    with precision_policy(precision):
        model = build_unet(plan, seed=0)
    if options.write_run is not None:
        write_run(options.write_run, plan, config, model)
        return
    seconds = repeated(model, plan, config, options)
    peak = peak_bytes() / 2**20
    print(
        json.dumps(
            {
                "seconds": seconds,
                "imports_mib": before / 2**20,
                "peak_mib": peak,
                "versions": f"TensorFlow {tf.__version__}",
                "precision": precision,
                "gflop_per_window": flops_of(model) / 1e9,
                "matmul_tflops": matmul_flops_per_second("bfloat16" if "bf" in precision else "float32") / 1e12,
            }
        )
    )


def repeated(model: tf.keras.Model, plan: Plan, config: Config, options: argparse.Namespace) -> list[float]:
    """Wall seconds from the normalised image in memory to its mask, after a first window that is not counted."""
    batch = window_batch(config)
    forward = compile_forward(model, plan, batch=batch)
    predictor = Predictor([Member(Path("run"), plan, config, forward, batch, "")])
    random = np.random.default_rng(0)
    small = random.standard_normal((*plan.patch_size, options.channels), np.float32)
    predict_volume(forward, small, plan, overlap=options.overlap, window_batch=batch)
    image = random.standard_normal((*options.shape, options.channels), np.float32)
    shape = (options.shape[0], options.shape[1], options.shape[2])
    placement = Placement(Grid(shape, np.eye(4)), tuple((0, size) for size in shape), shape)
    taken = []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        scan = NetworkScan(image, placement, predictor.members)
        predictor.predict_prepared([scan], threshold=0.5, keep_probabilities=False)
        taken.append(time.perf_counter() - begun)
    return taken


def write_run(folder: Path, plan: Plan, config: Config, model: tf.keras.Model) -> None:
    """What `segment infer` needs of a run: plan.json, config.yaml and model.keras."""
    folder.mkdir(parents=True)
    write_json(folder / "plan.json", plan.to_json())
    save_config(config, folder / "config.yaml")
    model.save(folder / "model.keras")


if __name__ == "__main__":
    main()
