"""What the engine costs: its step with clipping, scaling and logging beside a bare one, and whether memory grows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.cube_plan import cube_plan
from benchmarks.options import add_filters, benchmark_parser
from benchmarks.timing import machine, median, seconds_of, table
from segment.config import Config
from segment.data.planning import Plan
from segment.files import write_json
from segment.losses import build_hybrid, supervised_loss
from segment.memory_use import resident_bytes
from segment.model import build_unet, run_network
from segment.training.checkpoint import Checkpoints
from segment.training.metrics_log import MetricsLog, StepMeans
from segment.training.optimizers import Optimizer, learning_rate_at, make_optimizer
from segment.training.precision import (
    LossScale,
    compute_capabilities,
    precision_policy,
    read_cpu_flags,
    resolve_precision,
)
from segment.training.step import TrainStep, weights_of

EARLY, LATE = 3, 30  # epochs whose memory is compared
BLOCK = 10  # steps timed together: as many as stand between two rows of metrics.csv
STEPS = 1e6  # of an imagined training, so that the learning rate hardly moves


@dataclass(frozen=True, eq=False)
class Parts:
    """A network with its loss and optimizer."""

    model: tf.keras.Model
    hybrid: Any
    optimizer: Optimizer


def make_parts(plan: Plan, precision: str, config: Config) -> Parts:
    """The same start in each call."""
    with precision_policy(precision):
        model = build_unet(plan, seed=0)
        hybrid = build_hybrid(config.loss)
        optimizer = make_optimizer(
            weights_of(model),
            list(hybrid.trainable_variables),
            strategy=tf.distribute.get_strategy(),
            config=config.train.optimizer,
        )
    return Parts(model, hybrid, optimizer)


def bare_step(parts: Parts) -> Callable[[dict[str, tf.Tensor]], float]:
    """Forward, gradient, update, and nothing else; gives the loss."""
    targets = parts.optimizer.targets

    @tf.function(autograph=False)
    def step(image: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            output = supervised_loss(parts.hybrid, label, run_network(parts.model, image, training=True))
            loss = tf.reduce_mean(output.total)
        parts.optimizer.apply(tape.gradient(loss, targets), tf.constant(1e-4))
        return loss

    return lambda batch: float(step(batch["image"], batch["label"]))


class Engine:
    """The step as the training loop runs it: with its figures collected and written to a run folder."""

    def __init__(self, parts: Parts, precision: str, config: Config, folder: Path, *, batch_size: int) -> None:
        self._config = config
        self._folder = folder
        self.step = TrainStep(
            strategy=tf.distribute.get_strategy(),
            model=parts.model,
            hybrid=parts.hybrid,
            optimizer=parts.optimizer,
            loss_scale=LossScale(config.train.loss_scale, scaling=precision == "mixed_float16"),
            clip_norm=config.train.optimizer.clip_norm,
            batch_size=batch_size,
            accumulate_steps=1,
            average=None,
        )
        self._means = StepMeans()
        self._log = MetricsLog(folder, step=0, validated=0)
        self.done = 0

    def __call__(self, batch: dict[str, tf.Tensor]) -> None:
        """One step, waited for as the loop waits for it, and a row after every tenth."""
        rate = learning_rate_at((self.done + 0.5) / STEPS, self._config.train.optimizer)
        values = self.step(batch, learning_rate=rate, share_done=self.done / STEPS)
        self._means.add(values)
        int(values["skipped_in_row"])
        self.done += 1
        if self.done % BLOCK == 0:
            self._log.metrics(self.done, self._means.row())

    def save(self) -> None:
        """Writes a checkpoint."""
        Checkpoints(self._folder / "checkpoints").save(self.done, self.step.state(), {}, best_step=None)


def fixed_batch(plan: Plan, batch_size: int) -> dict[str, tf.Tensor]:
    """Noise with 1% of the voxels as lesions."""
    random = np.random.default_rng(0)
    shape = (batch_size, *plan.patch_size)
    return {
        "image": tf.constant(random.normal(size=(*shape, plan.channels)), tf.float32),
        "label": tf.constant(random.random((*shape, 1)) < 0.01, tf.uint8),
    }


def overhead(plan: Plan, precision: str, *, batch_size: int, repeats: int) -> dict[str, Any]:
    """Seconds a step of the engine and of a bare step, which take turns in blocks of ten.

    Args:
        repeats: Blocks of each that are counted, at least 1; one more of each goes before.

    Returns:
        "engine" and "bare": medians in seconds a step; "ratio": the median of the ratios of neighbouring blocks;
        "checkpoint": median seconds to write one; "all_seconds": every block's.
    """
    config = Config()
    batch = fixed_batch(plan, batch_size)
    bare = bare_step(make_parts(plan, precision, config))
    taken: dict[str, list[float]] = {"engine": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(make_parts(plan, precision, config), precision, config, Path(folder), batch_size=batch_size)
        calls = {"engine": engine, "bare": bare}
        for number in range(repeats + 1):
            for name in sorted(calls, reverse=number % 2 == 0):  # a machine that slows down slows both
                begun = time.perf_counter()
                for _ in range(BLOCK):
                    calls[name](batch)
                taken[name].append((time.perf_counter() - begun) / BLOCK)
        checkpoint = median(seconds_of(engine.save, repeats=repeats))
    counted = {name: seconds[1:] for name, seconds in taken.items()}
    ratios = [one / other for one, other in zip(counted["engine"], counted["bare"], strict=True)]
    medians = {name: median(seconds) for name, seconds in counted.items()}
    return {**medians, "ratio": median(ratios), "checkpoint": checkpoint, "all_seconds": counted}


def memory(plan: Plan, precision: str, *, batch_size: int, epoch_steps: int) -> dict[str, float]:
    """Resident memory in MiB after epochs of steps, rows and a checkpoint each, on one batch.

    Returns:
        "early" and "late", after epochs 3 and 30, and "growth", late / early - 1.
    """
    config = Config()
    batch = fixed_batch(plan, batch_size)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(make_parts(plan, precision, config), precision, config, Path(folder), batch_size=batch_size)
        for epoch in range(1, LATE + 1):
            for _ in range(epoch_steps):
                engine(batch)
            engine.save()
            if epoch in (EARLY, LATE):
                found[epoch] = resident_bytes() / 2**20
    return {"early": found[EARLY], "late": found[LATE], "growth": found[LATE] / found[EARLY] - 1}


def main(arguments: Sequence[str]) -> int:
    """Runs both parts and prints their tables."""
    parser = benchmark_parser("step_overhead", __doc__, "--repeats 7")
    parser.add_argument("--patch", type=int, default=64, help="voxels along each axis (default: 64)")
    parser.add_argument("--batch", type=int, default=2, help="patches a step (default: 2)")
    add_filters(parser)
    parser.add_argument("--repeats", type=int, default=7, help="counted blocks of ten steps (default: 7)")
    parser.add_argument("--epoch-steps", type=int, default=10, help="steps an epoch of the memory part (default: 10)")
    parser.add_argument("--only", choices=("overhead", "memory"), help="one part only")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args(arguments)
    precision = resolve_precision("auto", compute_capabilities=compute_capabilities(), cpu_flags=read_cpu_flags())
    plan = cube_plan(patch=options.patch, filters=options.filters, channels=2)
    result: dict[str, Any] = {"machine": machine(), "versions": f"TensorFlow {tf.__version__}", "precision": precision}
    print(f"{result['machine']}; {result['versions']}; {precision}")
    print(f"patch {options.patch}^3 x 2, batch {options.batch}, {'-'.join(map(str, options.filters))}\n")
    if options.only != "memory":
        result["overhead"] = overhead(plan, precision, batch_size=options.batch, repeats=options.repeats)
        figures = [result["overhead"][name] for name in ("engine", "bare")]
        row = [*figures, f"{result['overhead']['ratio'] - 1:+.1%}"]
        print(table(["engine, s a step", "bare, s a step", "overhead"], [row]) + "\n")
        seconds, minutes = result["overhead"]["checkpoint"], Config().train.checkpoint_minutes
        print(
            f"a checkpoint: {seconds:.2f} s, {seconds / minutes / 60:.3%} of the time at one in {minutes:g} minutes\n"
        )
    if options.only != "overhead":
        result["memory"] = memory(plan, precision, batch_size=options.batch, epoch_steps=options.epoch_steps)
        row = [f"{result['memory']['early']:.0f}", f"{result['memory']['late']:.0f}"]
        row.append(f"{result['memory']['growth']:+.1%}")
        print(table([f"RSS at epoch {EARLY}, MiB", f"at epoch {LATE}, MiB", "growth"], [row]))
    if options.output is not None:
        write_json(options.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit("run it as `python scripts/benchmark.py step_overhead`")
