"""The training loop: steps, rows of figures, validations, checkpoints, and stopping where the state is whole."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from segment.config import Config
from segment.data.pipeline import patch_dataset
from segment.data.planning import Plan
from segment.data.preprocessing import PreparedCase
from segment.errors import InputError
from segment.progress import CONSOLE, Bar, progress_bar
from segment.training.checkpoint import Checkpoint, Checkpoints, restore
from segment.training.distribution import distributed_batches
from segment.training.interruption import Interrupted, StopRequest
from segment.training.metrics_log import MetricsLog, StepMeans
from segment.training.numerics import find_bad_number
from segment.training.optimizers import learning_rate_at
from segment.training.selection import Progress, headline_figures, in_words, selection_instead
from segment.training.slices import pictured_cases, slice_picture
from segment.training.step import SKIPS_BEFORE_STOP, TrainingError, TrainStep
from segment.training.team import Team
from segment.training.validation import make_forward, quick_validation, save_model


@dataclass(frozen=True, eq=False)
class Parts:
    """What the loop works with: the model and its step, made under the strategy's scope, and the prepared cases.

    `judged` is the model that is validated and saved: the average of the weights with `train.ema_decay`, else the
    trained one itself. `steps` is the length of the training.
    """

    strategy: tf.distribute.Strategy
    model: tf.keras.Model
    judged: tf.keras.Model
    hybrid: Any
    step: TrainStep
    steps: int
    plan: Plan
    train: Sequence[PreparedCase]
    validation: Sequence[PreparedCase]


class Loop:
    """Trains `parts.steps` steps, going on from the newest checkpoint in the run folder.

    Args:
        config: Of the run; `config.run_dir` exists.
        parts: Model, step and data.
        stop: Asked before each step and each window of a validation.
        team: The processes that train together. All take the same steps and decisions; the chief alone validates and
            writes, and tells the others what it found.

    Raises:
        InputError: A checkpoint does not fit, or all are damaged.
    """

    def __init__(self, config: Config, parts: Parts, stop: StopRequest, team: Team) -> None:
        self._config = config
        self._parts = parts
        self._stop = stop
        self._team = team
        self._checkpoints = Checkpoints(config.run_dir / "checkpoints")
        self._forward = make_forward(parts.judged, parts.plan, config, before=stop.check)
        self._means = StepMeans()
        self._busy = self._waited = 0.0  # seconds since the last row, and how many of them were for data
        self._timed = 0  # steps of these seconds; those before a restart took theirs in another process
        self._skipped_in_row: Any = 0
        self._told = False  # that the model is kept by something else than the configuration says
        self.progress = Progress()
        step = team.from_chief(self._checkpoints.latest_step)
        if step is not None:
            self._restore(self._checkpoints.read(step))
        self._saved = self._began = time.perf_counter()

    @property
    def model_path(self) -> Path:
        """Where the best model is kept."""
        return self._config.run_dir / "model.keras"

    def run(self) -> None:
        """Trains to the end, or until `train.patience` is over.

        Raises:
            Interrupted: A signal came; a checkpoint has been written.
            TrainingError: Too many steps in a row had no finite gradient.
            InputError: A file cannot be written.
        """
        steps = self._parts.steps
        progress = self.progress
        batches = distributed_batches(self._parts.strategy, self._dataset)
        with (
            self._open_log() as log,
            progress_bar("Training", steps, done=progress.step) as bar,
            self._saved_on_interruption(),
        ):
            self._validate_if_due(log)
            while progress.step < steps and not progress.stopped:
                self._stop.check_together(self._team.agree)
                self._one_step(batches)
                bar.advance()
                if progress.step % self._config.train.log_every == 0 or progress.step == steps:
                    self._write_row(log, bar)
                self._validate_if_due(log)
                if time.perf_counter() - self._saved > 60.0 * self._config.train.checkpoint_minutes:
                    self._save()

    def _dataset(self, shard: tuple[int, int]) -> tf.data.Dataset:
        done, parts = self.progress.step, self._parts
        return patch_dataset(
            parts.train, parts.plan, self._config, first_step=done, steps=parts.steps - done, shard=shard
        )

    def _open_log(self) -> AbstractContextManager[MetricsLog | None]:
        if not self._team.chief:
            return nullcontext()
        return MetricsLog(self._config.run_dir, step=self.progress.step, validated=self.progress.validated)

    @contextmanager
    def _saved_on_interruption(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            self._save()
            raise

    def _one_step(self, batches: Iterator[Any]) -> None:
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        step, steps = self.progress.step, self._parts.steps
        values = self._parts.step(
            batch,
            learning_rate=learning_rate_at((step + 0.5) / steps, self._config.train.optimizer),
            share_done=step / steps,
        )
        self._means.add(values)
        # The step before is looked at while this one runs, so a GPU never waits for the host.
        self._require_progress(last_step=step - 1)
        if self._config.train.debug_numerics and not bool(values["good"]):
            self._explain(step, values)
        self._skipped_in_row = values["skipped_in_row"]
        self.progress.step = step + 1
        self._busy += time.perf_counter() - began
        self._timed += 1

    def _require_progress(self, *, last_step: int) -> None:
        """Raises TrainingError when `last_step`, counted from 0, was the last of too many skipped ones in a row."""
        in_row = int(self._skipped_in_row)
        if in_row < SKIPS_BEFORE_STOP:
            return
        first = last_step - in_row + 1
        _, names = self._batch_again(first)
        raise TrainingError(
            f"training stopped: {in_row} steps in a row had no finite gradient, the first was step {first + 1} "
            f"on cases {', '.join(sorted(set(names)))}; look at these scans, lower train.optimizer.learning_rate "
            "or set train.precision=float32"
        )

    def _explain(self, step: int, values: dict[str, Any]) -> None:
        """train.debug_numerics: says what the first bad number of a skipped step was; stops if scaling is no cure."""
        batch, names = self._batch_again(step)
        found = find_bad_number(self._parts.model, self._parts.hybrid, batch, names, scale=float(values["loss_scale"]))
        text = f"step {step + 1}: {found}"
        if not found.overflow_of_scale:
            raise TrainingError(f"training stopped (train.debug_numerics): {text}")
        CONSOLE.print(f"{text}; the step was skipped", markup=False, soft_wrap=True)

    def _batch_again(self, step: int) -> tuple[dict[str, tf.Tensor], list[str]]:
        """The batch of a step, counted from 0, which can be made again from its number, and the case of each patch."""
        parts = self._parts
        batch = next(iter(patch_dataset(parts.train, parts.plan, self._config, first_step=step, steps=1)))
        return batch, [parts.train[int(index)].case.case_id for index in batch["case"].numpy()]

    def _write_row(self, log: MetricsLog | None, bar: Bar) -> None:
        step, train = self.progress.step, self._config.train
        row = self._means.row()
        speed = self._timed * train.patches_per_step / max(self._busy, 1e-9)
        row |= {
            "learning_rate": learning_rate_at((step - 0.5) / self._parts.steps, train.optimizer),
            "data_wait_share": self._waited / max(self._busy, 1e-9),
            "patches_per_second": speed,
        }
        self._busy = self._waited = 0.0
        self._timed = 0
        self._require_progress(last_step=step - 1)
        self.progress.loss = row["loss"]
        if log is not None:
            log.metrics(step, row)
        bar.advance(0, self._note(row))

    def _note(self, row: dict[str, float]) -> str:
        """What stands behind the progress bar; a narrow terminal cuts its end off."""
        recall = self.progress.recall
        parts = [
            f"loss {row['loss']:.4f}",
            *([f"recall {recall:.3f}"] if recall is not None else []),
            f"{row['patches_per_second']:.1f} patches/s",
            *([f"scale {row['loss_scale']:g}"] if self._parts.step.loss_scale.scaling else []),
        ]
        return "  ".join(parts)

    def _validate_if_due(self, log: MetricsLog | None) -> None:
        progress, train = self.progress, self._config.train
        due = progress.step == self._parts.steps or progress.step % train.validate_every == 0
        if not due or progress.validated == progress.step:
            return
        summary = self._team.from_chief(lambda: self._validate(log))
        figures = headline_figures(summary)
        best = progress.judge(figures, train)
        if best and self._team.chief:
            save_model(self._parts.judged, self.model_path)
        decision = self._parts.hybrid.on_validation(summary)
        if log is not None:
            log.validation(progress.step, {**figures, "best": float(best)}, note=decision or "")
        self._say(figures, best, decision)
        self._save()

    def _validate(self, log: MetricsLog | None) -> dict[str, Any]:
        parts = self._parts
        pictured = pictured_cases(parts.validation)

        def keep(case: PreparedCase, mask: np.ndarray) -> None:
            if log is None or case.case.case_id not in pictured:
                return
            picture = slice_picture(case, mask)
            if picture is not None:
                log.picture(self.progress.step, case.case.case_id, picture)

        return quick_validation(self._forward, parts.validation, parts.plan, self._config, keep=keep)

    def _say(self, figures: dict[str, float], best: bool, decision: str | None) -> None:
        """One line for the terminal or the log file of a scheduler."""
        progress, budget = self.progress, self._config.inference.operating_point.max_fp_per_scan
        at_budget = f"{in_words(figures['small_lesion_recall_at_fp'])} at {budget:g} FP/scan"
        parts = [
            f"step {progress.step}/{self._parts.steps}: loss {in_words(progress.loss)}",
            f"lesion F1 {in_words(figures['lesion_f1'])}",
            f"small-lesion recall {in_words(figures['small_lesion_recall'])} ({at_budget})",
            f"false positives/scan {in_words(figures['fp_per_scan'])}",
            f"Dice {in_words(figures['dice'])}",
            *(["best so far"] if best else []),
        ]
        lines = [", ".join(parts) + ("" if decision is None else f"; {decision}")]
        instead = selection_instead(figures, self._config)
        if instead is not None and not self._told:
            lines.append(instead)
            self._told = True
        if progress.stopped:
            lines.append(f"{progress.waited} validations without a better one (train.patience): the training ends here")
        for line in lines:
            CONSOLE.print(line, markup=False, soft_wrap=True)

    def _save(self) -> None:
        if not self._team.chief:
            return
        now = time.perf_counter()
        info = {
            "progress": asdict(self.progress) | {"seconds": self.progress.seconds + now - self._began},
            "pending": self._means.pending(),
        }
        self._checkpoints.save(self.progress.step, self._parts.step.state(), info, best_step=self.progress.best_step)
        self._saved = time.perf_counter()

    def _restore(self, checkpoint: Checkpoint) -> None:
        restore(self._parts.step.state(), checkpoint)
        try:
            self.progress = Progress(**checkpoint.info["progress"])
        except TypeError as cause:
            raise InputError(
                f"checkpoint of step {checkpoint.step}: expected one of this version of segment, found another "
                f"({cause}); train with that version, or anew with --force"
            ) from cause
        self._means = StepMeans(checkpoint.info["pending"])
        CONSOLE.print(f"going on from step {checkpoint.step} of {self._parts.steps}", markup=False)

    def seconds(self) -> float:
        """Time spent training and validating, over all sessions."""
        return self.progress.seconds + time.perf_counter() - self._began
