"""AdamW and SGD with Nesterov momentum on plain tf.Variables, and the learning rate as a function of the share done.

Keras' optimizers are not used: under a strategy they reduce the gradients once more and clip before the reduction,
their slots are named and ordered differently in Keras 2 and 3, and their update calls `merge_call`, which no condition
may hold. Here the reduced gradients are applied once on every replica, through TensorFlow's fused kernels, and the
slots are plain variables that a checkpoint writes by index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from segment.config import OptimizerConfig

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # as in Kingma & Ba 2015
POLY_POWER = 0.9  # as in DeepLab and nnU-Net


def learning_rate_at(share: float, config: OptimizerConfig) -> float:
    """The learning rate when `share` (0 to 1) of the training is done.

    Rises linearly from 0 over the first `warmup_share`, then follows the schedule over what is left: `constant`;
    `poly`, (1 - x)^0.9; `cosine`, (1 + cos(pi x)) / 2. The trainer asks for the middle of each step, so no step has a
    rate of 0.
    """
    if share < config.warmup_share:
        return config.learning_rate * share / config.warmup_share
    left = 1.0 - config.warmup_share
    x = min(1.0, (share - config.warmup_share) / left) if left > 0 else 1.0
    factors = {
        "constant": 1.0,
        "poly": (1.0 - x) ** POLY_POWER,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * x)),
    }
    return config.learning_rate * factors[config.schedule]


class Optimizer:
    """Applies gradients that are already averaged over the replicas. Make it under the strategy's scope.

    Decoupled weight decay (Loshchilov & Hutter 2019): decayed weights shrink by learning_rate * weight_decay, apart
    from the gradient's moments. With L2 the step adds `penalty` to the loss and its gradient to the gradients instead.
    The scales and offsets of norms and all biases, which have one axis, are left out of both.
    """

    slots_per_variable: int  # values of the optimizer's own that each weight has

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        undecayed: Sequence[tf.Variable],
        *,
        strategy: tf.distribute.Strategy,
        config: OptimizerConfig,
    ) -> None:
        """`variables` are the model's, decayed by the rule above; `undecayed` (learnt loss weights) come after them."""
        self.targets = [*variables, *undecayed]
        decayed = [config.weight_decay > 0 and v.shape.rank > 1 for v in variables] + [False] * len(undecayed)
        self.has_penalty = config.decay == "l2" and any(decayed)
        self._decay = [config.weight_decay if is_decayed else 0.0 for is_decayed in decayed]
        self._strategy = strategy
        self._config = config
        self._slots = [[_zeros_like(v) for v in self.targets] for _ in range(self.slots_per_variable)]
        self.iterations = tf.Variable(0, trainable=False, dtype=tf.int64, name="iterations")

    def _step(self, variable: Any, gradient: tf.Tensor, rate: tf.Tensor, done: tf.Tensor, slots: Sequence[Any]) -> None:
        """Updates one variable on one device; `done` is the number of updates including this one, as float32."""
        raise NotImplementedError

    def penalty(self) -> tuple[tf.Tensor, list[tf.Tensor | None]]:
        """L2: weight_decay / 2 times the sum of the decayed weights' squares, and its gradients by `targets` (None: 0).

        In replica context; equal on all replicas, so nothing has to be reduced.
        """
        gradients = [
            decay * tf.convert_to_tensor(target) if decay else None
            for decay, target in zip(self._decay, self.targets, strict=True)
        ]
        squares = [
            tf.nn.l2_loss(target) * decay for decay, target in zip(self._decay, self.targets, strict=True) if decay
        ]
        return tf.add_n(squares), gradients

    def apply(self, gradients: Sequence[Any], rate: tf.Tensor) -> None:
        """One update on every replica. Call it in cross-replica context; it may stand inside a condition.

        Args:
            gradients: One for each of `targets`, in their order, per-replica values that are equal on all replicas.
            rate: Learning rate, float32 scalar.
        """
        done = tf.cast(self.iterations.assign_add(1), tf.float32)
        for index, (target, gradient) in enumerate(zip(self.targets, gradients, strict=True)):
            slots = tuple(slot[index] for slot in self._slots)
            decay = 0.0 if self.has_penalty else self._decay[index]

            def update(variable: Any, gradient: Any, rate: Any, done: Any, *slots: Any, decay: float = decay) -> None:
                if decay:
                    variable.assign_sub(variable * (rate * decay))
                self._step(variable, gradient, rate, done, slots)

            self._strategy.extended.update(target, update, args=(gradient, rate, done, *slots))

    def state(self) -> dict[str, tf.Variable]:
        """The variables that a checkpoint must hold, by name."""
        named = {f"{kind}/{index:04d}": v for kind, slot in enumerate(self._slots) for index, v in enumerate(slot)}
        return {"iterations": self.iterations, **named}


class AdamW(Optimizer):
    """Adam with decoupled weight decay; epsilon stands as in the "efficient" form of Kingma & Ba 2015, section 2."""

    slots_per_variable = 2

    def _step(self, variable: Any, gradient: tf.Tensor, rate: tf.Tensor, done: tf.Tensor, slots: Sequence[Any]) -> None:
        moment, square = slots
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=moment.handle,
            v=square.handle,
            beta1_power=tf.pow(BETA_1, done),
            beta2_power=tf.pow(BETA_2, done),
            lr=rate,
            beta1=BETA_1,
            beta2=BETA_2,
            epsilon=EPSILON,
            grad=gradient,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with Nesterov momentum: m = mu m + g, w = w - rate (g + mu m) (as in PyTorch)."""

    slots_per_variable = 1

    def _step(self, variable: Any, gradient: tf.Tensor, rate: tf.Tensor, done: tf.Tensor, slots: Sequence[Any]) -> None:
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=slots[0].handle,
            lr=rate,
            grad=gradient,
            momentum=self._config.momentum,
            use_nesterov=True,
        )


def make_optimizer(
    variables: Sequence[tf.Variable],
    undecayed: Sequence[tf.Variable],
    *,
    strategy: tf.distribute.Strategy,
    config: OptimizerConfig,
) -> Optimizer:
    """The optimizer that `config.name` asks for; arguments as for Optimizer."""
    kind = {"adamw": AdamW, "sgd": SGD}[config.name]
    return kind(variables, undecayed, strategy=strategy, config=config)


def _zeros_like(variable: tf.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
