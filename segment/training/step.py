"""One training step on all replicas, compiled once.

The order matters and Keras has it wrong under a strategy: forward and scaled loss on each replica, batch after batch
where gradients are accumulated, one all-reduce of the gradients, unscale, finite?, clip by the global norm of the
averaged gradient, and only then the update, or no update at all. Every replica sees the same reduced numbers, so an
overflow on any one of them skips the step on all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from segment.errors import InputError
from segment.losses import split_outputs, supervised_loss
from segment.model import run_network
from segment.training.addons import SwaModel
from segment.training.distribution import first_replica, plain_variable
from segment.training.ema import WeightAverage
from segment.training.optimizers import Optimizer
from segment.training.precision import LossScale

SKIPS_BEFORE_STOP = 20


class TrainingError(InputError):
    """The training cannot go on; the one-line message says at which step and on which cases it went wrong."""


class TrainStep:
    """The compiled step with the parts it updates: model, loss weights, optimizer and loss scale.

    Args:
        strategy: Its scope must have been open while every other argument was made.
        model: Gives float32 logits [b, *spatial, outputs], or a list of them, finest first, as `build_unet` says.
        hybrid: The loss, `segment.losses.Hybrid`.
        optimizer: Over `weights_of(model)` and the hybrid's trainable variables, in this order.
        loss_scale: Scale 1 without float16.
        clip_norm: Largest global norm of the averaged gradient; 0 is off.
        batch_size: Patches computed at once, on all replicas together; every replica gets an equal part.
        accumulate_steps: Such batches in a step. The result is that of one large batch, in the memory of a small one.
        average: Moves with each update; None without.
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
        accumulate_steps: int,
        average: WeightAverage | SwaModel | None,
    ) -> None:
        self._strategy = strategy
        self._model = model
        self.hybrid = hybrid
        self._optimizer = optimizer
        self.loss_scale = loss_scale
        self._clip_norm = clip_norm
        self._batch_size = batch_size
        self._accumulate = accumulate_steps
        self._average = average
        self._compiled = tf.function(self._step, autograph=False)

    def __call__(self, batch: Any, *, learning_rate: float, share_done: float) -> dict[str, tf.Tensor]:
        """Runs one step and returns its scalars, without waiting for the device.

        Args:
            batch: Of `patch_dataset`, distributed: "image", "label", and the maps that the loss' terms need, with
                batch_size * accumulate_steps patches.
            learning_rate: Of this step.
            share_done: Share of the training done before this step, 0 to 1; for the loss weights' schedules.

        Returns:
            "loss" (mean over all patches), the loss' statistics ("loss/<term>", "weight/<term>"), with L2 "loss/l2",
            which is part of "loss", "gradient_norm" (before clipping, unscaled), "good" (bool; False: the step was
            skipped), "loss_scale" (of this step), "skipped" (so far) and "skipped_in_row" (0 after a good step).
        """
        return self._compiled(batch, tf.constant(learning_rate, tf.float32), tf.constant(share_done, tf.float32))

    def state(self) -> dict[str, tf.Variable]:
        """Everything that the next step depends on, by name; the data is a function of (seed, step) and not in here."""
        parts = {
            "model": {f"{index:04d}": plain_variable(v) for index, v in enumerate(self._model.variables)},
            "loss": {f"{index:04d}": v for index, v in enumerate(self.hybrid.variables)},
            "optimizer": self._optimizer.state(),
            "loss_scale": self.loss_scale.state(),
            "average": self._average.state() if self._average is not None else {},
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
            if self._average is not None:
                self._average.update(first_replica(self._strategy, self._optimizer.iterations))
            self.hybrid.update(statistics, share_done)
            return tf.constant(True)

        tf.cond(good, update, lambda: tf.constant(False))
        self.loss_scale.update(good)
        values |= {"good": good, "loss_scale": scale}
        values["skipped"] = tf.identity(first_replica(self._strategy, self.loss_scale.skipped))
        values["skipped_in_row"] = tf.identity(first_replica(self._strategy, self.loss_scale.skipped_in_row))
        return values

    def _replica_gradients(self, batch: Any) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Replica context: averaged, unscaled, clipped gradients and the averaged scalars."""
        scale = tf.convert_to_tensor(self.loss_scale.scale)
        parts = self._parts_of(batch)
        gradients, values, names = self._accumulated(parts, scale)
        # One vector, so that all scalars travel in one reduction with the gradients; means over batches and replicas.
        context = tf.distribute.get_replica_context()
        *gradients, values = context.all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, values])
        scalars = dict(zip(names, tf.unstack(values, num=len(names)), strict=True))
        if self._optimizer.has_penalty:
            penalty, its_gradients = self._optimizer.penalty()
            pairs = zip(gradients, its_gradients, strict=True)
            gradients = [one if other is None else one + scale * other for one, other in pairs]
            scalars |= {"loss": scalars["loss"] + penalty, "loss/l2": penalty}
        gradients, norm = unscale_and_clip(gradients, scale=scale, clip_norm=self._clip_norm)
        return gradients, {"gradient_norm": norm, **scalars}

    def _parts_of(self, batch: Any) -> Callable[[Any], dict[str, tf.Tensor]]:
        """The replica's patches as a function from the number of a batch to that batch."""
        # Distributed datasets forget the size of the batch, and the norms have a faster way when they know it.
        share = self._batch_size // self._strategy.num_replicas_in_sync
        count = self._accumulate
        wanted = {name: part for name, part in batch.items() if name in ("image", "label", "cells", "distance")}
        whole = {name: tf.ensure_shape(part, [count * share, *part.shape[1:]]) for name, part in wanted.items()}
        if count == 1:
            return lambda number: whole
        split = {name: tf.reshape(part, [count, share, *part.shape[1:]]) for name, part in whole.items()}
        return lambda number: {name: part[number] for name, part in split.items()}

    def _accumulated(
        self, parts: Callable[[Any], dict[str, tf.Tensor]], scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, list[str]]:
        """This replica's share of the mean gradient and of the mean scalars, and the names of the scalars."""
        measured = self._measured(parts) if self._accumulate > 1 and self.hybrid.weighting.needs_gradients else None
        if self._accumulate == 1:
            return self._gradients_of(parts(0), scale, measured)
        names: list[str] = []

        def one(number: tf.Tensor, rows: tf.TensorArray, *sums: tf.Tensor) -> Any:
            gradients, values, names[:] = self._gradients_of(parts(number), scale, measured)
            added = [one + other for one, other in zip(sums, gradients, strict=True)]
            return number + 1, rows.write(number, values), *added

        start = [tf.zeros(target.shape, target.dtype) for target in self._optimizer.targets]
        _, rows, *sums = self._each_batch(one, start)
        return sums, tf.ensure_shape(tf.reduce_sum(rows.stack(), axis=0), [len(names)]), names

    def _each_batch(self, body: Callable[..., Any], sums: list[tf.Tensor]) -> Any:
        """One batch after the other: all at once would take the memory of all."""
        count = self._accumulate
        rows = tf.TensorArray(tf.float32, size=count, element_shape=[None])
        start = (tf.constant(0), rows, *sums)
        return tf.while_loop(lambda number, *_: number < count, body, start, parallel_iterations=1)

    def _measured(self, parts: Callable[[Any], dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        """The gradient statistics of the whole step, for a weighting whose first weights come from them.

        All batches of a step must be weighted alike, so they are looked at before the first is differentiated. That
        costs one more pass forward, as long as the weighting has not seen every term.
        """
        names: list[str] = []

        def one(number: tf.Tensor, rows: tf.TensorArray) -> Any:
            batch = parts(number)
            logits, maps = self._forward(batch)
            statistics = self.hybrid.gradient_statistics(batch["label"], logits[0], **maps)
            names[:] = list(statistics)
            return number + 1, rows.write(number, tf.stack(list(statistics.values())))

        def look() -> tf.Tensor:
            _, rows = self._each_batch(one, [])
            return tf.ensure_shape(tf.reduce_mean(rows.stack(), axis=0), [len(names)])

        unknown = self.hybrid.weighting.unknown()
        values = tf.cond(unknown, look, lambda: tf.zeros([len(self.hybrid.terms) + 1]))
        values = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, values)
        return dict(zip(names, tf.unstack(values, num=len(names)), strict=True))

    def _gradients_of(
        self, batch: dict[str, tf.Tensor], scale: tf.Tensor, measured: dict[str, tf.Tensor] | None
    ) -> tuple[list[tf.Tensor], tf.Tensor, list[str]]:
        """One batch's share: gradients of the scaled loss, the scalars as one vector, and their names, "loss" first."""
        patches = self._batch_size * self._accumulate
        share = 1.0 / (self._strategy.num_replicas_in_sync * self._accumulate)
        with tf.GradientTape() as tape:
            logits, maps = self._forward(batch)
            output = supervised_loss(self.hybrid, batch["label"], logits, measured=measured, **maps)
            loss = tf.reduce_sum(output.total) / patches
            scaled = loss * scale
        gradients = tape.gradient(scaled, self._optimizer.targets, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        values = [loss, *(tf.cast(value, tf.float32) * share for value in output.statistics.values())]
        return gradients, tf.stack(values), ["loss", *output.statistics]

    def _forward(self, batch: dict[str, tf.Tensor]) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """The logits, and the maps that the loss needs beside them: the batch's and the network's own."""
        logits, maps = split_outputs(self.hybrid, run_network(self._model, batch["image"], training=True))
        return logits, maps | {name: batch[name] for name in ("cells", "distance") if name in batch}


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
