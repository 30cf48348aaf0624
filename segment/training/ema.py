"""The running mean of the weights, which is steadier than the weights themselves."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from segment.training.distribution import plain_variable


class WeightAverage:
    """Exponential moving average of a model's weights, kept in a second model that is validated and saved.

    After update t the average moves by 1 - min(decay, (1 + t) / (10 + t)) of the way to the weights (as
    tf.train.ExponentialMovingAverage with num_updates): a short training is not held back by its random start. The
    updates that are skipped do not count.

    Args:
        model: The one that is trained.
        average: Another of the same layers. Both were made under the strategy's scope.
        strategy: Of both.
        decay: At least 0 and below 1.
    """

    def __init__(
        self, model: tf.keras.Model, average: tf.keras.Model, *, strategy: tf.distribute.Strategy, decay: float
    ) -> None:
        average.set_weights(model.get_weights())
        self._weights = [plain_variable(variable) for variable in model.variables]
        self._averages = [plain_variable(variable) for variable in average.variables]
        self._strategy = strategy
        self._decay = decay

    def update(self, done: tf.Tensor) -> None:
        """Moves the average after an update, on every replica. In cross-replica context, also within a condition.

        Args:
            done: Number of updates so far, this one included; an integer scalar.
        """
        number = tf.cast(done, tf.float32)
        share = 1.0 - tf.minimum(self._decay, (1.0 + number) / (10.0 + number))
        for average, weight in zip(self._averages, self._weights, strict=True):
            if average.dtype.is_floating:
                self._strategy.extended.update(average, _move, args=(weight, share))

    def state(self) -> dict[str, tf.Variable]:
        """The variables that a checkpoint must hold, by name."""
        return {f"{index:04d}": variable for index, variable in enumerate(self._averages)}


def _move(average: Any, weight: Any, share: tf.Tensor) -> None:
    average.assign_sub((average - weight) * share)
