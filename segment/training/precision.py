"""Number formats in training: the Keras policy, and the loss scale that float16 needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from segment.config import Config, LossScaleConfig
from segment.files import read_json
from segment.model.hardware import PRECISIONS as PRECISIONS
from segment.model.hardware import compute_capabilities as compute_capabilities
from segment.model.hardware import read_cpu_flags as read_cpu_flags
from segment.model.hardware import resolve_precision as resolve_precision
from segment.progress import CONSOLE

# Beyond this a doubled scale gains nothing and drifts towards infinity when gradients vanish for long (as in NVIDIA
# Apex).
LARGEST_SCALE = 2.0**24
SMALLEST_SCALE = 1.0


@contextmanager
def precision_policy(precision: str) -> Iterator[None]:
    """Sets Keras' global policy while a model is built, and puts the one before back; variables stay float32 always."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(precision)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


class LossScale:
    """The factor on the loss that keeps float16 gradients from vanishing, and the count of skipped steps.

    `dynamic` doubles it after `growth_steps` good steps in a row and halves it on each bad one, down to 1 (Micikevicius
    et al. 2018, "Mixed precision training"); `fixed` never changes it. Without scaling it is 1 for good. Make it under
    the strategy's scope; `update` belongs into cross-replica context, so every replica sees the same scale.
    """

    def __init__(self, config: LossScaleConfig, *, scaling: bool) -> None:
        self.scaling = scaling
        self._dynamic = scaling and config.mode == "dynamic"
        self._growth_steps = config.growth_steps
        initial = config.initial if scaling else 1.0
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="loss_scale")
        self.good_in_row = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_in_row")
        self.skipped = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped")
        self.skipped_in_row = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped_in_row")

    def update(self, good: tf.Tensor) -> None:
        """Counts one step and adapts the scale. Args: good: bool scalar, whether every reduced gradient was finite."""
        one = tf.cast(good, tf.int64)
        good_in_row = (self.good_in_row + 1) * one
        if self._dynamic:
            grow = good_in_row >= self._growth_steps
            grown = tf.where(grow, tf.maximum(self.scale, tf.minimum(self.scale * 2.0, LARGEST_SCALE)), self.scale)
            self.scale.assign(tf.where(good, grown, tf.maximum(self.scale / 2.0, SMALLEST_SCALE)))
            good_in_row = tf.where(grow, tf.zeros_like(good_in_row), good_in_row)
        self.good_in_row.assign(good_in_row)
        self.skipped.assign_add(1 - one)
        self.skipped_in_row.assign((self.skipped_in_row + 1) * (1 - one))

    def state(self) -> dict[str, tf.Variable]:
        """The variables that a checkpoint must hold, by name."""
        return {
            "scale": self.scale,
            "good_in_row": self.good_in_row,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
        }


def precision_of_run(config: Config) -> str:
    """What a run computes in: what suits this machine or is configured; a resumed run goes on in what it began with.

    Its loss scale is of that format. Says so where this machine would take another one.
    """
    here = resolve_precision(
        config.train.precision, compute_capabilities=compute_capabilities(), cpu_flags=read_cpu_flags()
    )
    path = config.run_dir / "manifest.json"
    before = read_json(path).get("precision", here) if path.exists() else here
    if before != here:
        said = f"train.precision: the run began in {before} and goes on in it; for this machine it would be {here}"
        CONSOLE.print(said, markup=False, soft_wrap=True)
    return str(before)
