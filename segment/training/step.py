"""One training step on all replicas, compiled once.

The order matters and Keras has it wrong under a strategy: forward and scaled loss on each replica, all-reduce of the
gradients, unscale, finite?, clip by the global norm of the averaged gradient, and only then the update, or no update at
all. Every replica sees the same reduced numbers, so an overflow on any one of them skips the step on all.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from segment.errors import InputError
from segment.losses import supervised_loss
from segment.model import run_network
from segment.training.distribution import first_replica, plain_variable
from segment.training.optimizers import Optimizer
from segment.training.precision import LossScale

SKIPS_BEFORE_STOP = 20


class TrainingError(InputError):
    """The training cannot go on; the one-line message says at which step and on which cases it went wrong."""


class TrainStep:
    """The compiled step with the parts it updates: model, loss weights, optimizer and loss scale.

    Args:
        strategy: Its scope must have been open while every other argument was made.
        model: Gives float32 logits [b, *spatial, classes], or a list of them, finest first.
        hybrid: The loss, `segment.losses.Hybrid`.
        optimizer: Over `weights_of(model)` and the hybrid's trainable variables, in this order.
        loss_scale: Scale 1 without float16.
        clip_norm: Largest global norm of the averaged gradient; 0 is off.
        batch_size: Global; every replica gets an equal part.
    """

    def __init__(
        self,
        *,
        strategy: tf.distribute.Strategy,
        model: tf.keras.Model,
        hybrid: Any,
        optimizer: Optimizer,
        loss_scale: LossScale,
        clip_norm: float,
        batch_size: int,
    ) -> None:
        self._strategy = strategy
        self._model = model
        self._hybrid = hybrid
        self._optimizer = optimizer
        self.loss_scale = loss_scale
        self._clip_norm = clip_norm
        self._batch_size = batch_size
        self._compiled = tf.function(self._step, autograph=False)

    def __call__(self, batch: Any, *, learning_rate: float, share_done: float) -> dict[str, tf.Tensor]:
        """Runs one step and returns its scalars, without waiting for the device.

        Args:
            batch: Of `patch_dataset`, distributed: "image", "label", and the maps that the loss' terms need.
            learning_rate: Of this step.
            share_done: Share of the training done before this step, 0 to 1; for the loss weights' schedules.

        Returns:
            "loss" (mean over the global batch), the loss' statistics ("loss/<term>", "weight/<term>"), "gradient_norm"
            (before clipping, unscaled), "good" (bool; False: the step was skipped), "loss_scale" (of this step),
            "skipped" (so far) and "skipped_in_row" (0 after a good step).
        """
        return self._compiled(batch, tf.constant(learning_rate, tf.float32), tf.constant(share_done, tf.float32))

    def state(self) -> dict[str, tf.Variable]:
        """Everything that the next step depends on, by name; the data is a function of (seed, step) and not in here."""
        parts = {
            "model": {f"{index:04d}": plain_variable(v) for index, v in enumerate(self._model.variables)},
            "loss": {f"{index:04d}": v for index, v in enumerate(self._hybrid.variables)},
            "optimizer": self._optimizer.state(),
            "loss_scale": self.loss_scale.state(),
        }
        return {f"{part}/{name}": variable for part, named in parts.items() for name, variable in named.items()}

    def _step(self, batch: Any, learning_rate: tf.Tensor, share_done: tf.Tensor) -> dict[str, tf.Tensor]:
        """Cross-replica context."""
        scale = tf.identity(first_replica(self._strategy, self.loss_scale.scale))
        gradients, scalars = self._strategy.run(self._replica_gradients, args=(batch,))
        # Equal on every replica, as they come from reduced numbers: the first one speaks for all.
        values = {name: first_replica(self._strategy, value) for name, value in scalars.items()}
        good = tf.math.is_finite(values["gradient_norm"]) & tf.math.is_finite(values["loss"])
        statistics = {name: value for name, value in values.items() if name not in ("gradient_norm", "loss")}

        def update() -> tf.Tensor:
            self._optimizer.apply(gradients, learning_rate)
            self._hybrid.update(statistics, share_done)
            return tf.constant(True)

        tf.cond(good, update, lambda: tf.constant(False))
        self.loss_scale.update(good)
        values |= {"good": good, "loss_scale": scale}
        values["skipped"] = tf.identity(first_replica(self._strategy, self.loss_scale.skipped))
        values["skipped_in_row"] = tf.identity(first_replica(self._strategy, self.loss_scale.skipped_in_row))
        return values

    def _replica_gradients(self, batch: Any) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Replica context: averaged, unscaled, clipped gradients and the averaged scalars."""
        replicas = self._strategy.num_replicas_in_sync
        scale = tf.convert_to_tensor(self.loss_scale.scale)
        # Distributed datasets forget the size of the batch, and the norms have a faster way when they know it.
        share = self._batch_size // replicas
        parts = {name: tf.ensure_shape(part, [share, *part.shape[1:]]) for name, part in batch.items()}
        maps = {name: parts[name] for name in ("cells", "distance") if name in parts}
        with tf.GradientTape() as tape:
            outputs = run_network(self._model, parts["image"], training=True)
            output = supervised_loss(self._hybrid, parts["label"], outputs, **maps)
            loss = tf.reduce_sum(output.total) / self._batch_size
            scaled = loss * scale
        gradients = tape.gradient(scaled, self._optimizer.targets, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        names = list(output.statistics)
        # One vector, so that all scalars travel in one reduction; it makes means of the replicas' batch means.
        scalars = tf.stack([loss, *(tf.cast(output.statistics[name], tf.float32) / replicas for name in names)])
        context = tf.distribute.get_replica_context()
        *gradients, scalars = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, scalars])
        gradients, norm = unscale_and_clip(gradients, scale=scale, clip_norm=self._clip_norm)
        return gradients, {"gradient_norm": norm, **dict(zip(["loss", *names], tf.unstack(scalars), strict=True))}


def weights_of(model: tf.keras.Model) -> list[tf.Variable]:
    """The model's trainable variables as plain tf.Variables, in Keras 2 and 3."""
    return [plain_variable(variable) for variable in model.trainable_variables]


def unscale_and_clip(
    gradients: list[tf.Tensor], *, scale: tf.Tensor, clip_norm: float
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Divides summed gradients by the loss scale and, where their global norm is above `clip_norm`, shortens them to
    it.

    Args:
        gradients: float32, of any shapes, already reduced over the replicas.
        scale: Loss scale, float32 scalar, at least 1.
        clip_norm: Largest norm; 0 is off.

    Returns:
        (gradients, norm): the norm is the unscaled one before clipping; it is not finite exactly when a gradient (or
        the sum of the squares) is not, so it is the only number to check. Zero gradients stay zero.
    """
    norm = tf.linalg.global_norm(gradients) / scale
    factor = 1.0 / scale
    if clip_norm:
        factor *= clip_norm / tf.maximum(norm, clip_norm)  # never a division by zero
    return [gradient * factor for gradient in gradients], norm
