"""The training step and the forward pass beside PyTorch's: patches/s, TFLOP/s and share of the matrix peak."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.cube_plan import cube_plan
from benchmarks.options import add_filters, benchmark_parser
from benchmarks.peers import as_precise, run_peer
from benchmarks.timing import machine, matmul_flops_per_second, median, seconds_of, table
from segment.config import Config
from segment.files import write_json
from segment.losses import build_hybrid
from segment.model import build_unet, run_network
from segment.training.distribution import compile_repeatably
from segment.training.optimizers import make_optimizer
from segment.training.precision import (
    LossScale,
    precision_policy,
    read_cpu_flags,
    resolve_precision,
)
from segment.training.step import TrainStep, weights_of

ROUNDS = 2  # ours and the peer take turns, so that a machine that slows down slows both
CHANNELS = 2
TRAINING_PASSES = 3  # forward, gradient of the weights, gradient of the features


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark and prints its table."""
    parser = benchmark_parser("step", __doc__, "--repeats 7")
    parser.add_argument("--patch", type=int, default=64, help="voxels along each axis (default: 64)")
    parser.add_argument("--batch", type=int, default=2, help="patches a step (default: 2)")
    add_filters(parser)
    parser.add_argument("--repeats", type=int, default=5, help="counted calls in each of two rounds (default: 5)")
    parser.add_argument("--no-peer", action="store_true", help="leave PyTorch out")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args(arguments)
    tf.config.set_visible_devices([], "GPU")  # PyTorch runs on the CPU too
    precision = resolve_precision("auto", compute_capabilities=[], cpu_flags=read_cpu_flags())
    step, forward, flops = ours(options, precision)
    taken: dict[str, list[float]] = {"step": [], "forward": [], "peer step": [], "peer forward": []}
    versions = f"TensorFlow {tf.__version__}"
    for _ in range(ROUNDS):
        taken["step"] += seconds_of(step, repeats=options.repeats)
        taken["forward"] += seconds_of(forward, repeats=options.repeats)
        if not options.no_peer:
            peer = run_peer("peer_step.py", *_peer_arguments(options), *as_precise(precision))
            taken["peer step"] += peer["step"]
            taken["peer forward"] += peer["forward"]
            versions = f"TensorFlow {tf.__version__}, {peer['versions']}"
    peak = matmul_flops_per_second("bfloat16" if precision == "mixed_bfloat16" else "float32")
    seconds = {name: median(values) for name, values in taken.items() if values}
    result = {
        "machine": machine(),
        "versions": versions,
        "precision": precision,
        "matmul_tflops": peak / 1e12,
        "forward_gflop_per_patch": flops / 1e9,
        "seconds": seconds,
        "all_seconds": taken,
    }
    _print(options, result, flops, peak)
    if options.output is not None:
        write_json(options.output, result)
    return 0


def ours(options: argparse.Namespace, precision: str) -> tuple[Callable[..., Any], Callable[[], Any], float]:
    """The compiled step and forward pass on a fixed batch, and the floating-point operations of one patch forward.

    The step takes another batch too.
    """
    compile_repeatably()  # as a training does
    plan = cube_plan(patch=options.patch, filters=options.filters, channels=CHANNELS)
    config = Config()
    strategy = tf.distribute.get_strategy()
    with precision_policy(precision):
        model = build_unet(plan, seed=0)
        hybrid = build_hybrid(config.loss)
        optimizer = make_optimizer(
            weights_of(model), list(hybrid.trainable_variables), strategy=strategy, config=config.train.optimizer
        )
        scale = LossScale(config.train.loss_scale, scaling=precision == "mixed_float16")
    step = TrainStep(
        strategy=strategy,
        model=model,
        hybrid=hybrid,
        optimizer=optimizer,
        loss_scale=scale,
        clip_norm=config.train.optimizer.clip_norm,
        batch_size=options.batch,
        accumulate_steps=1,
        average=None,
    )
    random = np.random.default_rng(0)
    shape = (options.batch, *plan.patch_size)
    batch = {
        "image": tf.constant(random.normal(size=(*shape, CHANNELS)), tf.float32),
        "label": tf.constant(random.random((*shape, 1)) < 0.01, tf.uint8),
        "case": tf.zeros(options.batch, tf.int32),
    }
    compiled = tf.function(lambda images: run_network(model, images, training=False)[0])

    def train(given: Mapping[str, tf.Tensor] = batch) -> Any:
        return step(given, learning_rate=1e-3, share_done=0.5)["loss"].numpy()

    return (
        train,
        lambda: compiled(batch["image"]).numpy(),
        flops_of(model),
    )


def flops_of(model: tf.keras.Model) -> float:
    """Floating-point operations of the convolutions and dense layers for one patch, a multiply-add counting two."""
    total = 0.0
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            total += 2.0 * float(np.prod(kernel.shape)) * float(np.prod(layer.output.shape[1:-1]))
    return total


def _peer_arguments(options: argparse.Namespace) -> list[str]:
    numbers = {"--patch": options.patch, "--batch": options.batch, "--repeats": options.repeats}
    named = [text for name, value in numbers.items() for text in (name, str(value))]
    return [*named, "--filters", *map(str, options.filters)]


def _print(options: argparse.Namespace, result: dict[str, Any], flops: float, peak: float) -> None:
    print(f"{result['machine']}; {result['versions']}; {result['precision']}")
    print(f"patch {options.patch}^3 x {CHANNELS}, batch {options.batch}, {'-'.join(map(str, options.filters))}")
    print(f"matrix multiply: {peak / 1e12:.3f} TFLOP/s\n")
    rows = []
    for name, passes in (("step", TRAINING_PASSES), ("forward", 1)):
        seconds = result["seconds"][name]
        speed = options.batch * flops * passes / seconds
        other = result["seconds"].get(f"peer {name}")
        rows.append(
            [
                name,
                seconds,
                options.batch / seconds,
                speed / 1e12,
                f"{speed / peak:.0%}",
                "-" if other is None else other,
                "-" if other is None else f"{other / seconds:.2f}",
            ]
        )
    print(table(["", "ours, s", "patches/s", "TFLOP/s", "share of peak", "PyTorch, s", "times faster"], rows))
    print("\nmedians; " + json.dumps({name: len(values) for name, values in result["all_seconds"].items() if values}))


if __name__ == "__main__":
    raise SystemExit("run it as `python scripts/benchmark.py step`")
