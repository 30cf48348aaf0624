"""Optimizers of tensorflow-addons, and stochastic weight averaging, behind the interface of our own optimizers.

tensorflow-addons is at its end of life: 0.23.0 is the last version, and it imports on no TensorFlow after 2.15. Its
optimizers are of Keras' older kind, which by itself would reduce the gradients over the replicas once more. Here they
get the gradients that our step has reduced and clipped, and are told that this has been done.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from segment.config import OptimizerConfig
from segment.errors import InputError
from segment.training.distribution import plain_variable
from segment.training.optimizers import BETA_1, BETA_2, EPSILON, Optimizer, make_optimizer

NAMES = ("radam", "lookahead", "novograd", "lamb", "yogi")
TENSORFLOW = "2.15."
# Averaging begins after three quarters of the training, as in Izmailov et al. 2018, section 4.
SWA_START = 0.75
SWA_MODELS = 100  # weights that are averaged, evenly over the last quarter; fewer where it has fewer steps


def uses_addons(config: OptimizerConfig) -> bool:
    """Whether the optimizer or the average is one of tensorflow-addons."""
    return config.name in NAMES or config.average == "swa"


def require_addons(config: OptimizerConfig) -> None:
    """Raises InputError, which says how to get it, where the configuration needs tensorflow-addons and it is not here.

    Imports nothing; call it before the data is read.
    """
    if not uses_addons(config):
        return
    if importlib.util.find_spec("tensorflow_addons") is not None and tf.__version__.startswith(TENSORFLOW):
        return
    key, value = ("name", config.name) if config.name in NAMES else ("average", config.average)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise InputError(
        f"train.optimizer.{key}: {value} comes with tensorflow-addons, which ended at TensorFlow 2.15; expected both, "
        f"found TensorFlow {tf.__version__} on Python {python}: pip install '.[addons]' in an environment of "
        "Python 3.10 or 3.11, or use adamw or sgd"
    )


def import_addons() -> Any:
    """The module tensorflow_addons, without the warning of its end of life, which README.md says in our words."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"\s*TensorFlow Addons \(TFA\) has ended development", category=UserWarning
        )
        return importlib.import_module("tensorflow_addons")


class AddonsOptimizer(Optimizer):
    """Any of NAMES, and any optimizer at all with `average: swa`; arguments as for Optimizer.

    Weight decay is ours, as for AdamW: decoupled or as a penalty, and not applied to norms and biases. lookahead goes
    around Adam. With swa, adamw and sgd are those of Keras, which differ from ours in one thing: the momentum of sgd
    holds the learning rate of the step that it comes from.
    """

    slots_per_variable = 0  # Keras' optimizer has its own

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        undecayed: Sequence[tf.Variable],
        *,
        strategy: tf.distribute.Strategy,
        config: OptimizerConfig,
        steps: int,
    ) -> None:
        """`steps`: the length of the training, which swa begins at a share of."""
        super().__init__(variables, undecayed, strategy=strategy, config=config)
        self._rate = tf.Variable(0.0, trainable=False)
        tfa = import_addons()
        self._keras = _named(tfa, config, lambda: self._rate)
        self.swa_start = int(steps * SWA_START)
        if config.average == "swa":
            period = max(1, (steps - self.swa_start) // SWA_MODELS)
            self._keras = tfa.optimizers.SWA(self._keras, start_averaging=self.swa_start, average_period=period)
        # Before the first step, so that a checkpoint can be restored into them. Keras has no public name for it.
        self._keras._create_all_weights(self.targets)
        inner = self._keras
        while hasattr(inner, "_optimizer"):  # all count by the outermost, else Adam corrects its bias wrongly
            inner = inner._optimizer
            inner._iterations = self._keras.iterations

    def _step(self, variable: Any, gradient: tf.Tensor, rate: tf.Tensor, done: tf.Tensor, slots: Sequence[Any]) -> None:
        """Nothing: `apply` updates all variables together, after their decay."""

    def apply(self, gradients: Sequence[Any], rate: tf.Tensor) -> None:
        """As for Optimizer."""
        super().apply(gradients, rate)
        self._rate.assign(rate)

        def on_replica(gradients: Sequence[tf.Tensor]) -> None:
            pairs = list(zip(gradients, self.targets, strict=True))
            # Reduced already; Keras would add them up over the replicas.
            self._keras.apply_gradients(pairs, experimental_aggregate_gradients=False)

        self._strategy.run(on_replica, args=(list(gradients),))

    def averages(self) -> list[tf.Variable]:
        """With swa, the average of each of `targets`; it holds nothing before the update after `swa_start`."""
        return [self._keras.get_slot(target, "average") for target in self.targets]

    def state(self) -> dict[str, tf.Variable]:
        """As for Optimizer."""
        unique = {id(variable): variable for variable in self._keras.weights}
        return super().state() | {f"keras/{index:04d}": variable for index, variable in enumerate(unique.values())}


def make_any_optimizer(
    variables: Sequence[tf.Variable],
    undecayed: Sequence[tf.Variable],
    *,
    strategy: tf.distribute.Strategy,
    config: OptimizerConfig,
    steps: int,
) -> Optimizer:
    """The optimizer that the configuration asks for, ours or one of tensorflow-addons; arguments as for them."""
    if uses_addons(config):
        return AddonsOptimizer(variables, undecayed, strategy=strategy, config=config, steps=steps)
    return make_optimizer(variables, undecayed, strategy=strategy, config=config)


def _named(tfa: Any, config: OptimizerConfig, rate: Any) -> Any:
    legacy = tf.keras.optimizers.legacy
    adam = {"learning_rate": rate, "beta_1": BETA_1, "beta_2": BETA_2}
    makers: dict[str, Any] = {
        "adamw": lambda: legacy.Adam(**adam, epsilon=EPSILON),
        "sgd": lambda: legacy.SGD(rate, momentum=config.momentum, nesterov=True),
        "radam": lambda: tfa.optimizers.RectifiedAdam(**adam),
        "lookahead": lambda: tfa.optimizers.Lookahead(legacy.Adam(**adam, epsilon=EPSILON)),
        "novograd": lambda: tfa.optimizers.NovoGrad(**adam),
        "lamb": lambda: tfa.optimizers.LAMB(**adam),
        "yogi": lambda: tfa.optimizers.Yogi(rate, beta1=BETA_1, beta2=BETA_2),
    }
    return makers[config.name]()


class SwaModel:
    """The second model, validated and saved: the average of tfa.optimizers.SWA, and until it begins the weights.

    It stands where `WeightAverage` does. The networks have no statistics that would have to be computed anew.

    Args:
        model: The one that is trained by `optimizer`, whose first variables are its trainable ones.
        average: Another of the same layers. Both were made under the strategy's scope.
        optimizer: With `average: swa`.
        strategy: Of all.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        average: tf.keras.Model,
        optimizer: AddonsOptimizer,
        *,
        strategy: tf.distribute.Strategy,
    ) -> None:
        average.set_weights(model.get_weights())
        averages = optimizer.averages()[: len(model.trainable_variables)]
        shown, weights = (
            [plain_variable(variable) for variable in one.trainable_variables] for one in (average, model)
        )
        self._triples = list(zip(shown, weights, averages, strict=True))
        self._variables = [plain_variable(variable) for variable in average.variables]
        self._start = optimizer.swa_start
        self._strategy = strategy

    def update(self, done: tf.Tensor) -> None:
        """After an update, as `WeightAverage.update`."""
        begun = done > self._start
        for shown, weight, average in self._triples:
            self._strategy.extended.update(shown, _take, args=(weight, average, begun))

    def state(self) -> dict[str, tf.Variable]:
        """The variables that a checkpoint must hold, by name."""
        return {f"{index:04d}": variable for index, variable in enumerate(self._variables)}


def _take(shown: Any, weight: Any, average: Any, begun: tf.Tensor) -> None:
    shown.assign(tf.where(begun, average, weight))
