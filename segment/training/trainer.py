"""One run from a configuration to a trained model with its validation report."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.console import Console
from rich.table import Table

from segment.config import Config
from segment.data.cases import Case
from segment.data.preprocessing import PreparedCase, prepare_cases
from segment.files import read_json, sha256_of, write_json
from segment.inference.model_file import load_model
from segment.inference.operating_point import PointSearch, describe, write_operating_point
from segment.losses import build_hybrid
from segment.model import build_unet
from segment.progress import CONSOLE
from segment.training.addons import AddonsOptimizer, SwaModel, make_any_optimizer, require_addons
from segment.training.cluster import Cluster, find_cluster
from segment.training.distribution import (
    check_batch_size,
    choose_gpus,
    compile_repeatably,
    lost_worker_explained,
    make_strategy,
    memory_explained,
    strategy_name,
)
from segment.training.durations import training_steps
from segment.training.ema import WeightAverage
from segment.training.interruption import Interrupted, stop_on_signals
from segment.training.loop import Loop, Parts
from segment.training.manifest import commit, hardware, peak_memory_gib, versions
from segment.training.precision import LossScale, precision_of_run, precision_policy
from segment.training.run_folder import RunData, join_run, open_run
from segment.training.selection import headline_figures, in_words
from segment.training.step import TrainStep, weights_of
from segment.training.team import Team, meet, say_once
from segment.training.validation import make_forward, write_validation

CACHE = "cache"  # prepared cases, in the run folder


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run_dir: The run folder.
        exit_code: 0 when it is done, 130 or 143 when a signal stopped it after a checkpoint.
        step: Steps done.
        best_step: The step whose model is kept; None before the first validation.
        summary: Of the validation report of that model; None unless the run is done and this is worker 0.
    """

    run_dir: Path
    exit_code: int
    step: int
    best_step: int | None
    summary: dict[str, Any] | None


def train(config: Config, *, resume: bool, force: bool) -> TrainResult:
    """Trains one model and reports on its validation cases.

    The run folder then holds config.yaml, plan.json, split.json, data.json, manifest.json, metrics.csv, validation.csv,
    slices/ (pictures of validation cases), tensorboard/, checkpoints/, model.keras (the best model),
    operating_point.json with its plot, and validation/ (masks and report). On SIGTERM or Ctrl-C the step is finished
    and a checkpoint written.

    Args:
        config: All options.
        resume: Go on from the newest whole checkpoint; on a CPU the result is the same to the last bit.
        force: Replace a run folder of an earlier run.

    Raises:
        InputError: The run folder, the data or the configuration cannot be used, or the training cannot go on.
    """
    require_addons(config.train.optimizer)
    choose_gpus(config.train.gpus)
    compile_repeatably()
    cluster = find_cluster(os.environ) if config.train.strategy == "multi_worker" else None
    team = Team() if cluster is None else meet(cluster, purpose=_purpose(config, resume=resume, force=force))
    with closing(team), lost_worker_explained(alone=team.alone), memory_explained(config.train):
        return _train(config, team, cluster, resume=resume, force=force)


def _train(config: Config, team: Team, cluster: Cluster | None, *, resume: bool, force: bool) -> TrainResult:
    say_once(team)
    data, prepared = _open(config, team, resume=resume, force=force)
    precision = team.from_chief(lambda: precision_of_run(config))
    parts = _build(config, data, prepared, precision, cluster)
    manifest = _manifest(config, data, precision, parts.strategy, team)
    return _run(config, data, parts, manifest, team)


def _purpose(config: Config, *, resume: bool, force: bool) -> str:
    """What all workers of one training have in common, as one text."""
    options = {"config": config.model_dump(mode="json"), "resume": resume, "force": force, "versions": versions()}
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def _open(config: Config, team: Team, *, resume: bool, force: bool) -> tuple[RunData, list[PreparedCase]]:
    """The run and its prepared cases: made or found by the chief, and then read by the others."""
    found: list[tuple[RunData, list[PreparedCase]]] = []

    def make() -> None:
        data = open_run(config, resume=resume, force=force)
        found.append((data, _prepare(config, data)))

    team.from_chief(make)
    if not team.chief:
        data = join_run(config)
        found.append((data, _prepare(config, data)))
    team.agree(0)  # everybody is still there: TensorFlow would wait long for one that is not
    return found[0]


def _prepare(config: Config, data: RunData) -> list[PreparedCase]:
    cache = config.run_dir / CACHE
    return prepare_cases([*data.train, *data.validation], data.plan, cache_dir=cache, workers=config.data.workers)


def _run(config: Config, data: RunData, parts: Parts, manifest: dict[str, Any], team: Team) -> TrainResult:
    """Trains to the end or to a signal."""
    with stop_on_signals() as stop:
        loop = Loop(config, parts, stop, team)
        try:
            loop.run()
            summary = team.from_chief(lambda: _finish(config, data, parts.validation, loop, before=stop.check))
        except Interrupted as interrupted:
            CONSOLE.print(
                f"stopped at step {loop.progress.step} of {parts.steps}; everything is kept in "
                f"{config.run_dir}: give the same command with --resume to go on",
                markup=False,
                soft_wrap=True,
            )
            team.agree(0)  # schedulers may kill the others as soon as the first one ends
            return TrainResult(config.run_dir, interrupted.code, loop.progress.step, loop.progress.best_step, None)
    if team.chief:
        _close(config, manifest, loop)
        _print_table(config, loop, summary)
    return TrainResult(config.run_dir, 0, loop.progress.step, loop.progress.best_step, summary if team.chief else None)


def _build(
    config: Config, data: RunData, prepared: list[PreparedCase], precision: str, cluster: Cluster | None
) -> Parts:
    """Everything with variables, under the precision policy and the strategy's scope."""
    options = config.train
    strategy = make_strategy(options.strategy, all_reduce=options.all_reduce, cluster=cluster)
    check_batch_size(options.batch_size, strategy.num_replicas_in_sync)
    train_cases, validation = prepared[: len(data.train)], prepared[len(data.train) :]
    steps = training_steps(options, train_cases, data.plan)
    with precision_policy(precision), strategy.scope():
        model = build_unet(data.plan, seed=config.seed)
        averaged = bool(options.ema_decay) or options.optimizer.average != "none"
        judged = build_unet(data.plan, seed=config.seed) if averaged else model
        hybrid = build_hybrid(config.loss)
        optimizer = make_any_optimizer(
            weights_of(model),
            list(hybrid.trainable_variables),
            strategy=strategy,
            config=options.optimizer,
            steps=steps,
        )
        loss_scale = LossScale(options.loss_scale, scaling=precision == "mixed_float16")
    average: WeightAverage | SwaModel | None = None
    if options.ema_decay:
        average = WeightAverage(model, judged, strategy=strategy, decay=options.ema_decay)
    elif isinstance(optimizer, AddonsOptimizer) and averaged:
        average = SwaModel(model, judged, optimizer, strategy=strategy)
    step = TrainStep(
        strategy=strategy,
        model=model,
        hybrid=hybrid,
        optimizer=optimizer,
        loss_scale=loss_scale,
        clip_norm=options.optimizer.clip_norm,
        batch_size=options.batch_size,
        accumulate_steps=options.accumulate_steps,
        average=average,
    )
    return Parts(strategy, model, judged, hybrid, step, steps, data.plan, train_cases, validation)


def _manifest(
    config: Config, data: RunData, precision: str, strategy: tf.distribute.Strategy, team: Team
) -> dict[str, Any]:
    """The chief writes manifest.json as of the start of the session; a resumed run keeps its start and findings."""
    path = config.run_dir / "manifest.json"
    before = read_json(path) if path.exists() else {}
    findings = [asdict(finding) for finding in data.findings]
    manifest = {
        "finished": False,
        "started": before.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "precision": precision,
        "strategy": strategy_name(strategy),
        "replicas": strategy.num_replicas_in_sync,
        "seed": config.seed,
        "data": data.hashes,
        "findings": findings or before.get("findings", []),
    }
    if team.chief:
        write_json(path, manifest)
    return manifest


def _close(config: Config, manifest: dict[str, Any], loop: Loop) -> None:
    """Completes manifest.json and removes the prepared cases, which can be made again and outweigh all the rest."""
    ending = {
        "finished": True,
        "seconds": round(loop.seconds(), 1),
        "stopped_early": loop.progress.stopped,
        "best_step": loop.progress.best_step,
        "peak_memory_gib": round(peak_memory_gib(), 2),
    }
    write_json(config.run_dir / "manifest.json", manifest | ending)
    shutil.rmtree(config.run_dir / CACHE, ignore_errors=True)


def _finish(
    config: Config, data: RunData, validation: Sequence[PreparedCase], loop: Loop, *, before: Any
) -> dict[str, Any]:
    """Writes validation/ and the operating point with the model file as inference will load it, not from memory."""
    model = load_model(loop.model_path, data.plan)
    hashes = {path: data.hashes[path] for path in _files(data.validation)}
    search = PointSearch(config)
    summary = write_validation(
        make_forward(model, data.plan, config, before=before),
        validation,
        data.plan,
        config,
        folder=config.run_dir / "validation",
        inputs=hashes,
        search=search,
    )
    point = search.finish(model_sha256=sha256_of(loop.model_path), inputs=hashes)
    write_operating_point(config.run_dir, point)
    for line in describe(point):
        CONSOLE.print(line, markup=False, soft_wrap=True)
    return summary


def _files(cases: tuple[Case, ...]) -> list[str]:
    return [str(path) for case in cases for path in (*case.image_paths, case.label_path) if path is not None]


def _print_table(config: Config, loop: Loop, summary: dict[str, Any]) -> None:
    """The result on standard output, for a person."""
    figures, progress = headline_figures(summary), loop.progress
    console = Console(highlight=False)
    # A line of its own, for a table breaks a title that is wider than itself.
    early = " (stopped early)" if progress.stopped else ""
    ran = f"{progress.step} steps{early} in {loop.seconds() / 60:.1f} min, training loss {in_words(progress.loss)}"
    console.print(f"{config.run_dir}: {ran}", markup=False, soft_wrap=True)
    table = Table()
    flips = " with flips" * config.inference.flips
    table.add_column(f"validation, best model{flips}, threshold {config.inference.threshold:g}")
    table.add_column(f"step {progress.best_step}", justify="right")
    rows = {
        "lesion F1": "lesion_f1",
        "small-lesion recall": "small_lesion_recall",
        "false positives per scan": "fp_per_scan",
        "Dice": "dice",
        "IoU": "iou",
    }
    for name, figure in rows.items():
        table.add_row(name, in_words(figures[figure]))
    console.print(table)
    console.print(f"report:  {config.run_dir / 'validation' / 'report' / 'report.html'}", markup=False, soft_wrap=True)
