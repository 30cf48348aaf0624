"""The planner's memory model beside the measured peak of three training steps, each shape in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.memory import extra_mib
from benchmarks.options import benchmark_parser
from benchmarks.timing import machine, table
from segment.config import Config, config_from
from segment.data.cases import Dataset, find_dataset
from segment.data.fingerprint import fingerprint
from segment.data.memory_model import estimate_memory
from segment.data.planning import Plan, make_plan
from segment.data.preprocessing import prepare_cases
from segment.errors import InputError
from segment.files import write_json

STEPS = 3
TOLERANCE = 0.2
# Dimensions, patch, filters, batch, precision, deep supervision and residual blocks.
SHAPES: tuple[dict[str, Any], ...] = (
    {"patch": [32, 32, 32], "filters": [8, 16, 32], "batch": 2},
    {"patch": [48, 48, 48], "filters": [8, 16, 32, 64], "batch": 2},
    {"patch": [64, 64, 32], "filters": [16, 32, 64], "batch": 1},
    {"patch": [64, 64, 64], "filters": [16, 32, 64, 128], "batch": 1, "precision": "mixed_bfloat16"},
    {"patch": [64, 64, 64], "filters": [16, 32, 64, 128], "batch": 2},
    {"patch": [128, 128], "filters": [16, 32, 64, 128], "batch": 8},
    {"patch": [48, 48, 48], "filters": [16, 32, 64], "batch": 2, "deep": True, "residual": True},
    {"patch": [32, 32, 32], "filters": [32, 64, 128], "batch": 2},
    {"patch": [80, 64, 40], "filters": [16, 32, 64, 128, 256], "batch": 2, "precision": "mixed_bfloat16"},
    {"patch": [96, 80], "filters": [32, 64, 128, 256], "batch": 12},
)


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark and prints its table; 1 where the model is off by more than a fifth."""
    parser = benchmark_parser("plan_memory", __doc__, "--shapes 3")
    parser.add_argument("--dataset", type=Path, default=Path("sample_data"), help="scans to train on")
    parser.add_argument("--shapes", type=int, nargs="+", help="numbers of the shapes, from 0 (default: all)")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_child(*(json.loads(text) for text in options.child))))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in options.shapes or range(len(SHAPES)):
            row = measure(SHAPES[number], options.dataset, Path(folder))
            rows.append({"name": _name(row), **row, "ratio": row["estimate_mib"] / row["measured_mib"]})
            print(f"{rows[-1]['name']}: {row['estimate_mib']:.0f} of {row['measured_mib']:.0f} MiB", flush=True)
    print(f"\n{machine()}, TensorFlow {version('tensorflow')}; on the CPU: a GPU has not been measured")
    cells = [[row[name] for name in ("name", "measured_mib", "estimate_mib", "ratio")] for row in rows]
    print(table(["training", "measured MiB", "model MiB", "model / measured"], cells))
    if options.output is not None:
        write_json(options.output, {"machine": machine(), "rows": rows})
    return int(any(abs(row["ratio"] - 1) > TOLERANCE for row in rows))


def measure(shape: dict[str, Any], dataset: Path, folder: Path) -> dict[str, Any]:
    """Trains in a process of its own; what it says: `measured_mib` and `estimate_mib` beside the shape.

    Raises:
        InputError: The process failed, or this is no Linux, where a peak cannot be read.
    """
    config = _config(shape)
    found = find_dataset(dataset, layout="auto")
    found = Dataset(found.root, found.cases[:2], found.channel_names, found.label_values)
    plan = make_plan(found, fingerprint(found, workers=1), config)
    # Here, so that what the preparation leaves behind in the allocator does not hide what the steps need.
    prepare_cases(found.cases, plan, cache_dir=folder, workers=1)
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmark.py"), "plan_memory", "--child"]
    command += [json.dumps(values) for values in (shape, plan.to_json(), [str(dataset), str(folder)])]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise InputError(f"training {shape} failed: {done.stderr.strip()[-2000:]}")
    return shape | json.loads(done.stdout.splitlines()[-1])


def _config(shape: dict[str, Any]) -> Config:
    model = {
        "dimensions": len(shape["patch"]),
        "patch_size": shape["patch"],
        "filters": shape["filters"],
        "deep_supervision": shape.get("deep", False),
        "residual": shape.get("residual", False),
    }
    train = {"batch_size": shape["batch"], "precision": shape.get("precision", "float32")}
    return config_from({"model": model, "train": train, "data": {"spacing_mm": [1, 1, 1]}}, source="plan_memory")


def _child(shape: dict[str, Any], planned: dict[str, Any], folders: list[str]) -> dict[str, float]:
    import tensorflow as tf

    from segment.data.pipeline import patch_dataset
    from segment.losses import build_hybrid
    from segment.model import build_unet
    from segment.training.optimizers import make_optimizer
    from segment.training.precision import LossScale, precision_policy
    from segment.training.step import TrainStep, weights_of

    config, plan, cases = (
        _config(shape),
        Plan.from_json(planned),
        find_dataset(Path(folders[0]), layout="auto").cases[:2],
    )
    prepared = prepare_cases(cases, plan, cache_dir=Path(folders[1]), workers=1)
    options = config.train
    tf.linalg.matmul(tf.ones([64, 64]), tf.ones([64, 64])).numpy()  # starts TensorFlow's threads

    def train() -> None:
        strategy = tf.distribute.get_strategy()
        with precision_policy(options.precision):
            model = build_unet(plan, seed=0)
            hybrid = build_hybrid(config.loss)
            optimizer = make_optimizer(
                weights_of(model), list(hybrid.trainable_variables), strategy=strategy, config=options.optimizer
            )
            step = TrainStep(
                strategy=strategy,
                model=model,
                hybrid=hybrid,
                optimizer=optimizer,
                loss_scale=LossScale(options.loss_scale, scaling=False),
                clip_norm=options.optimizer.clip_norm,
                batch_size=options.batch_size,
                accumulate_steps=1,
                average=None,
            )
            for batch in patch_dataset(prepared, plan, config, first_step=0, steps=STEPS):
                step(batch, learning_rate=1e-3, share_done=0.5)["loss"].numpy()

    measured = extra_mib(train)
    if measured is None:
        raise InputError("the peak of a process can be read on Linux only")
    estimate = estimate_memory(plan, options.batch_size, options.precision, gpu=False)
    return {"measured_mib": measured, "estimate_mib": estimate / 2**20}


def _name(row: dict[str, Any]) -> str:
    patch, filters = ("x".join(map(str, row["patch"])), "-".join(map(str, row["filters"])))
    words = [f"{patch} x {row['batch']}", filters, row.get("precision", "float32")]
    words += [word for word in ("deep", "residual") if row.get(word)]
    return ", ".join(words)
