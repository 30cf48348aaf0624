"""Weightings that follow the training itself: learnt uncertainty, equal gradient norms, dynamic average."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from segment.config_weighting import DynamicAverageWeighting, GradientNormWeighting, UncertaintyWeighting
from segment.losses.weighting import Statistics, Weighting, state, weighted_sum

# The entry of the gradient norm that all others are scaled to.
REFERENCE = "reference"
_MAX_WEIGHT = 1e6


class Uncertainty(Weighting):
    """Learnt log-variances s: the total is the sum of exp(-s) weight loss + s / 2 (Kendall 2018).

    Terms of weight 0 stay out. `log_variance` is trainable: the optimizer moves it, without weight decay.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], config: UncertaintyWeighting) -> None:
        super().__init__(names, weights)
        self._bound = config.max_log_variance
        self.log_variance = tf.Variable(
            tf.zeros([len(self.names)]), trainable=True, name="log_variance", aggregation=tf.VariableAggregation.MEAN
        )

    def weights(self) -> tf.Tensor:
        return tf.exp(-self._bounded()) * tf.constant(self.fixed, tf.float32)

    def combine(self, losses: Sequence[tf.Tensor], statistics: Statistics) -> tuple[tf.Tensor, tf.Tensor]:
        bounded, dtype = self._bounded(), losses[0].dtype
        precisions = tf.unstack(tf.cast(tf.exp(-bounded), dtype), num=len(losses))
        parts = []
        for index, (loss, precision, fixed) in enumerate(zip(losses, precisions, self.fixed, strict=True)):
            if fixed == 0:
                continue
            usable = tf.math.is_finite(loss)
            known = tf.stop_gradient(tf.where(usable, loss, tf.zeros_like(loss)))
            variance = tf.where(usable, tf.cast(bounded[index], dtype), tf.zeros_like(loss))
            # A loss that is not finite must show in the total, yet must not reach the gradient of its log-variance.
            through_variance = (precision - tf.stop_gradient(precision)) * known
            parts.append(fixed * (tf.stop_gradient(precision) * loss + through_variance) + 0.5 * variance)
        return tf.add_n(parts), self.weights()

    def scalars(self, weights: tf.Tensor) -> dict[str, tf.Tensor]:
        """Adds "sigma/<term>", the learnt standard deviation exp(s / 2)."""
        sigmas = tf.unstack(tf.exp(0.5 * self._bounded()), num=len(self.names))
        return super().scalars(weights) | {f"sigma/{name}": s for name, s in zip(self.names, sigmas, strict=True)}

    def _bounded(self) -> tf.Tensor:
        return _clip_with_way_back(tf.convert_to_tensor(self.log_variance), self._bound)


def _clip_with_way_back(values: tf.Tensor, bound: float) -> tf.Tensor:
    """Values in -bound..bound. Outside, a gradient passes only if its descent leads back in: a plain clip is a trap."""

    @tf.custom_gradient
    def clip(inner: tf.Tensor) -> tuple[tf.Tensor, object]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            leads_out = ((inner >= bound) & (upstream < 0)) | ((inner <= -bound) & (upstream > 0))
            return tf.where(leads_out, tf.zeros_like(upstream), upstream)

        return tf.clip_by_value(inner, -bound, bound), gradient

    return clip(values)


class GradientNorm(Weighting):
    """Terms weighted so that the norms of their gradients at the network's outputs are equal (running mean of squares).

    The common norm is that of the plain cross-entropy: a scale that multiplying any term by a number does not change,
    and that falls as the training succeeds. The terms' own weights only say which are off (0).
    """

    needs_gradients = True

    def __init__(self, names: Sequence[str], weights: Sequence[float], config: GradientNormWeighting) -> None:
        super().__init__(names, weights)
        self._momentum = config.momentum
        self.square = state(tf.zeros([len(self.names) + 1]), "square")  # running sum; the last entry is the reference
        self.mass = state(
            tf.zeros([len(self.names) + 1]), "mass"
        )  # of the running sum: 0 before the first value, then to 1

    def weights(self) -> tf.Tensor:
        return self._weights(tf.convert_to_tensor(self.square), tf.convert_to_tensor(self.mass))

    def combine(self, losses: Sequence[tf.Tensor], statistics: Statistics) -> tuple[tf.Tensor, tf.Tensor]:
        own = self._squares(statistics)  # only a first step, which has no running mean yet, looks at its own norms
        own_mass = tf.cast(_is_information(own), tf.float32)
        unknown = self.mass == 0.0
        square = tf.where(unknown, tf.where(own_mass > 0, own, tf.zeros_like(own)), self.square)
        weights = tf.stop_gradient(self._weights(square, tf.where(unknown, own_mass, self.mass)))
        return weighted_sum(weights, losses), weights

    def agreed(self, statistics: Statistics) -> Statistics:
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return statistics
        squares = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.MEAN, self._squares(statistics)))
        names = (f"gradient_square/{name}" for name in (*self.names, REFERENCE))
        return dict(zip(names, squares, strict=True))

    def unknown(self) -> tf.Tensor:
        """Whether some term has no running mean yet, bool scalar."""
        return tf.reduce_any(self.mass == 0.0)

    def update(self, statistics: Statistics, share_done: tf.Tensor) -> None:
        squares, keep = self._squares(statistics), self._momentum
        news = _is_information(squares)
        self.square.assign(tf.where(news, keep * self.square + (1.0 - keep) * squares, self.square))
        self.mass.assign(tf.where(news, keep * self.mass + (1.0 - keep), self.mass))

    def _squares(self, statistics: Statistics) -> tf.Tensor:
        names = (*self.names, REFERENCE)
        return tf.stack([tf.cast(statistics[f"gradient_square/{name}"], tf.float32) for name in names])

    def _weights(self, square: tf.Tensor, mass: tf.Tensor) -> tf.Tensor:
        norm = tf.sqrt(tf.math.divide_no_nan(square, mass))
        ratio = tf.minimum(tf.math.divide_no_nan(norm[-1], norm[:-1]), _MAX_WEIGHT)
        known = (mass[:-1] > 0) & (mass[-1] > 0)
        is_on = tf.constant([weight > 0 for weight in self.fixed])
        return tf.where(is_on, tf.where(known, ratio, tf.ones_like(ratio)), tf.zeros_like(ratio))


def _is_information(squares: tf.Tensor) -> tf.Tensor:
    """Neither a broken step (NaN, infinity) nor a constant term (0) says anything about a term's scale."""
    return tf.math.is_finite(squares) & (squares > 0)


class DynamicAverage(Weighting):
    """Dynamic weight average (Liu 2019): weights ~ exp(r / temperature), r a term's latest mean over the one before.

    The weights sum to the number of terms that are on, before each is multiplied with its own weight. Means are over
    `period_steps` steps; until two are known, all terms weigh the same.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], config: DynamicAverageWeighting) -> None:
        super().__init__(names, weights)
        self._period, self._temperature = config.period_steps, config.temperature
        count = len(self.names)
        self.total = state(tf.zeros([count]), "total")  # of this period, over the steps that were finite
        self.count = state(tf.zeros([count]), "count")
        self.steps = state(0, "steps", tf.int64)
        self.latest = state(tf.zeros([count]), "latest")  # mean of the last period; 0 is not known
        self.before = state(tf.zeros([count]), "before")  # mean of the period before that

    def weights(self) -> tf.Tensor:
        fixed = tf.constant(self.fixed, tf.float32)
        # A term at 0, or below it as the boundary term may be, has no rate of descent: it counts as unchanged.
        comparable = (self.latest > 0.0) & (self.before > 0.0)
        rate = tf.where(comparable, tf.math.divide_no_nan(self.latest, self.before), tf.ones_like(fixed))
        is_on = fixed > 0
        scores = tf.where(is_on, tf.minimum(rate, 10.0) / self._temperature, -float("inf"))
        return fixed * tf.nn.softmax(scores) * tf.reduce_sum(tf.cast(is_on, tf.float32))

    def update(self, statistics: Statistics, share_done: tf.Tensor) -> None:
        losses = tf.stack([tf.cast(statistics[f"loss/{name}"], tf.float32) for name in self.names])
        usable = tf.math.is_finite(losses)
        total = self.total + tf.where(usable, losses, tf.zeros_like(losses))
        count = self.count + tf.cast(usable, tf.float32)
        steps = self.steps + 1
        ends = steps >= self._period
        known = ends & (count > 0)
        self.before.assign(tf.where(known, self.latest, self.before))
        self.latest.assign(tf.where(known, tf.math.divide_no_nan(total, count), self.latest))
        self.total.assign(tf.where(ends, tf.zeros_like(total), total))
        self.count.assign(tf.where(ends, tf.zeros_like(count), count))
        self.steps.assign(tf.where(ends, tf.zeros_like(steps), steps))
