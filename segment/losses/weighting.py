"""How the terms of a hybrid loss are weighted: fixed, by schedule, by what validation finds.

Nothing is assigned while the loss is computed, only by `update` and `on_validation`, in cross-replica context and
from numbers that are the same everywhere. So the weights are the same on every replica. All state is in
`tf.Variable`s that `tf.train.Checkpoint` tracks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from segment.config_weighting import RecallFeedbackWeighting, ScheduleWeighting

Statistics = dict[str, tf.Tensor]


class Weighting(tf.Module):
    """Fixed weights, and the base of the weightings that move."""

    # Whether `combine` needs the squared gradient norm of each term, which costs a backward pass through the terms.
    needs_gradients = False

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.fixed = tuple(float(weight) for weight in weights)

    def weights(self) -> tf.Tensor:
        """The current weights, float32 [terms]."""
        return tf.constant(self.fixed, tf.float32)

    def combine(self, losses: Sequence[tf.Tensor], statistics: Statistics) -> tuple[tf.Tensor, tf.Tensor]:
        """The total [batch] of the terms, each [batch], and the weights used, float32 [terms]. In replica context."""
        weights = self.weights()
        return weighted_sum(weights, losses), weights

    def agreed(self, statistics: Statistics) -> Statistics:
        """The statistics that `combine` looks at, equal on all replicas; in replica context, outside of loops."""
        return statistics

    def scalars(self, weights: tf.Tensor) -> dict[str, tf.Tensor]:
        """What is logged of weights [terms]: "weight/<term>"."""
        parts = tf.unstack(weights, num=len(self.names))
        return {f"weight/{name}": part for name, part in zip(self.names, parts, strict=True)}

    def update(self, statistics: Statistics, share_done: tf.Tensor) -> None:
        """Moves the weights after a step, in cross-replica context; nothing to do for fixed ones."""
        del statistics, share_done  # a body of its own: AutoGraph cannot convert a function that is only a docstring

    def on_validation(self, summary: dict[str, Any]) -> str | None:
        """Moves the weights after a validation and says why; None for a weighting that does not look at it."""
        return None


def weighted_sum(weights: tf.Tensor, losses: Sequence[tf.Tensor]) -> tf.Tensor:
    """Sum of weights [terms] times losses, each [batch] -> [batch]."""
    parts = tf.unstack(tf.cast(weights, losses[0].dtype), num=len(losses))
    return tf.add_n([part * loss for part, loss in zip(parts, losses, strict=True)])


def state(value: Any, name: str, dtype: tf.DType = tf.float32) -> tf.Variable:
    """A variable that steps do not train. All replicas are given the same values; a read may take any of them."""
    return tf.Variable(
        value, trainable=False, name=name, dtype=dtype, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )


class Schedule(Weighting):
    """Weights piecewise linear in the share of training done, constant before the first and after the last point."""

    def __init__(self, names: Sequence[str], weights: Sequence[float], config: ScheduleWeighting) -> None:
        super().__init__(names, weights)
        self._shares = [point.share for point in config.points]
        # A term that the schedule does not name keeps its fixed weight.
        self._table = np.array(
            [
                [point.weights.get(name, fixed) for name, fixed in zip(names, self.fixed, strict=True)]
                for point in config.points
            ],
            np.float32,
        )
        self.share_done = state(0.0, "share_done")

    def weights(self) -> tf.Tensor:
        weights = tf.constant(self._table[0])
        for point in range(1, len(self._shares)):
            width = self._shares[point] - self._shares[point - 1]
            part = tf.clip_by_value((self.share_done - self._shares[point - 1]) / width, 0.0, 1.0)
            weights += part * (self._table[point] - self._table[point - 1])
        return weights

    def update(self, statistics: Statistics, share_done: tf.Tensor) -> None:
        self.share_done.assign(share_done)


class RecallFeedback(Weighting):
    """Moves weight to the recall-heavy terms while small lesions are missed and false positives are within budget.

    The recall-heavy terms' weights are multiplied by a factor in 1..max_factor, then all weights are scaled so that
    their sum stays the same. Each validation moves the factor by one step: up while recall is under its target and
    false positives a scan are within budget, else back down.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        config: RecallFeedbackWeighting,
        recall_terms: Sequence[str],
    ) -> None:
        super().__init__(names, weights)
        self._config = config
        self._is_recall = tf.constant([name in recall_terms for name in names])
        self.factor = state(1.0, "factor")

    def weights(self) -> tf.Tensor:
        fixed = tf.constant(self.fixed, tf.float32)
        moved = tf.where(self._is_recall, fixed * self.factor, fixed)
        return moved * (tf.reduce_sum(fixed) / tf.reduce_sum(moved))

    def on_validation(self, summary: dict[str, Any]) -> str | None:
        """Reads `summary["micro"]`: iou10's small_lesion_recall (None without small lesions) and fp_per_scan."""
        recall, false_positives = summary["micro"]["small_lesion_recall"], summary["micro"]["fp_per_scan"]
        config, before = self._config, float(self.factor.read_value())
        if not _is_number(recall) or not _is_number(false_positives):
            found = f"small-lesion recall {recall}, {false_positives} false positives a scan"
            return f"recall_feedback: factor stays at {before:.3f}: nothing to go by ({found})"
        misses, affordable = recall < config.target_recall, false_positives <= config.max_fp_per_scan
        up, down = min(before * config.step, config.max_factor), max(before / config.step, 1.0)
        after = up if misses and affordable else down
        self.factor.assign(after)
        move = "rises" if after > before else "falls" if after < before else "stays"
        return (
            f"recall_feedback: factor {move} from {before:.3f} to {after:.3f}: small-lesion recall {recall:.3f} is "
            f"{'under' if misses else 'not under'} its target {config.target_recall:g} and {false_positives:.2f} false "
            f"positives a scan are {'within' if affordable else 'over'} the budget of {config.max_fp_per_scan:g}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
