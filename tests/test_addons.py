"""The optimizers of tensorflow-addons behind our step, the average of the weights, and what is said without them.

Most of it runs where tensorflow-addons can be imported, which is TensorFlow 2.15: `.ci/run` makes such an environment.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError
from step_helpers import ADDONS_STEPS, batches, copies, make_step, require_same_bits, run

from segment import losses
from segment.config import OptimizerConfig, TrainConfig
from segment.errors import InputError
from segment.training.addons import NAMES, AddonsOptimizer, import_addons, require_addons
from segment.training.distribution import mirrored_strategy

HERE = importlib.util.find_spec("tensorflow_addons") is not None and tf.__version__.startswith("2.15.")
with_addons = pytest.mark.skipif(not HERE, reason="tensorflow-addons needs TensorFlow 2.15: pip install '.[addons]'")
without_addons = pytest.mark.skipif(HERE, reason="tensorflow-addons is here")

KERNEL = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32)
BIAS = np.array([0.25, -1.0], np.float32)
RATES = (0.1, 0.05, 0.02, 0.08, 0.01, 0.04, 0.03, 0.06)  # lookahead looks back after the sixth
OPTIMIZERS = [(name, "none") for name in NAMES] + [("sgd", "swa"), ("lookahead", "swa")]


def gradients_at(step: int) -> list[np.ndarray]:
    rng = np.random.default_rng([9, step])
    return [rng.normal(size=array.shape).astype(np.float32) for array in (KERNEL, BIAS)]


def each_replica(strategy: tf.distribute.Strategy, array: np.ndarray) -> Any:
    """A value of its own for every replica, as what comes out of a step; all are equal."""
    return strategy.experimental_distribute_values_from_function(lambda context: tf.constant(array))


def adapted(config: OptimizerConfig, strategy: tf.distribute.Strategy, *, steps: int) -> list[np.ndarray]:
    """Kernel and bias after so many of RATES, each update within a condition as in the training step."""
    with strategy.scope():
        variables = [tf.Variable(KERNEL), tf.Variable(BIAS)]
        optimizer = AddonsOptimizer(variables, [], strategy=strategy, config=config, steps=ADDONS_STEPS)

    @tf.function(autograph=False)
    def update(gradients: list[Any], rate: tf.Tensor, good: tf.Tensor) -> None:
        def apply() -> tf.Tensor:
            optimizer.apply(gradients, rate)
            return tf.constant(True)

        tf.cond(good, apply, lambda: tf.constant(False))

    for step in range(steps):
        gradients = [each_replica(strategy, gradient) for gradient in gradients_at(step)]
        update(gradients, tf.constant(1e6), tf.constant(False))  # no update
        update(gradients, tf.constant(RATES[step]), tf.constant(True))
    return [variable.numpy() for variable in variables]


def plain(optimizer: Any) -> list[np.ndarray]:
    """The same updates by an optimizer of tensorflow-addons alone, one step after the other."""
    variables = [tf.Variable(KERNEL), tf.Variable(BIAS)]
    for step, rate in enumerate(RATES):
        optimizer.learning_rate = rate
        optimizer.apply_gradients(zip(map(tf.constant, gradients_at(step)), variables, strict=True))
    return [variable.numpy() for variable in variables]


@without_addons
class TestWithoutAddons:
    @pytest.mark.parametrize(
        ("options", "key"),
        [*(({"name": name}, f"name: {name}") for name in NAMES), ({"average": "swa"}, "average: swa")],
    )
    def test_one_line_says_how_to_get_them(self, options: dict[str, str], key: str) -> None:
        expected = re.escape(f"train.optimizer.{key} comes with tensorflow-addons")
        with pytest.raises(InputError, match=rf"^{expected}.*pip install '\.\[addons\]'.*Python 3\.10 or 3\.11[^\n]*$"):
            require_addons(OptimizerConfig.model_validate(options))


class TestConfig:
    def test_our_own_need_nothing(self) -> None:
        for name in ("adamw", "sgd"):
            require_addons(OptimizerConfig(name=name))

    def test_two_averages_are_refused(self) -> None:
        with pytest.raises(ValidationError, match=r"ema_decay: expected 0 with optimizer\.average=swa, found 0\.9"):
            TrainConfig(ema_decay=0.9, optimizer=OptimizerConfig(average="swa"))


@with_addons
class TestUpdates:
    def test_its_end_of_life_is_not_announced(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            import_addons()

    @pytest.mark.parametrize("name", NAMES)
    def test_equals_the_optimizer_alone(self, name: str) -> None:
        tfa = import_addons().optimizers
        alone = {
            "radam": lambda: tfa.RectifiedAdam(),
            "lookahead": lambda: tfa.Lookahead(tf.keras.optimizers.legacy.Adam(epsilon=1e-8)),
            "novograd": lambda: tfa.NovoGrad(),
            "lamb": lambda: tfa.LAMB(),
            "yogi": lambda: tfa.Yogi(),
        }[name]()
        config = OptimizerConfig(name=name, weight_decay=0.0)
        found = adapted(config, tf.distribute.get_strategy(), steps=len(RATES))
        for ours, theirs in zip(found, plain(alone), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    @pytest.mark.parametrize(("name", "average"), OPTIMIZERS)
    def test_replicas_do_not_add_up_the_gradients_again(self, name: str, average: str, four_cpus: list[str]) -> None:
        config = OptimizerConfig(name=name, average=average, weight_decay=0.1)
        alone = adapted(config, tf.distribute.get_strategy(), steps=3)
        together = adapted(config, mirrored_strategy(four_cpus[:2]), steps=3)
        for one, two in zip(alone, together, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-6)

    @pytest.mark.parametrize("name", NAMES)
    def test_decay_shrinks_kernels_only(self, name: str) -> None:
        config = OptimizerConfig(name=name, weight_decay=0.5)
        strategy = tf.distribute.get_strategy()
        kernel, bias = tf.Variable(KERNEL), tf.Variable(BIAS)
        optimizer = AddonsOptimizer([kernel, bias], [], strategy=strategy, config=config, steps=ADDONS_STEPS)
        optimizer.apply([tf.zeros_like(kernel), tf.zeros_like(bias)], tf.constant(0.1))
        np.testing.assert_allclose(kernel.numpy(), KERNEL * 0.95, rtol=1e-6)
        np.testing.assert_array_equal(bias.numpy(), BIAS)


@with_addons
class TestStep:
    @pytest.mark.parametrize(("name", "average"), OPTIMIZERS)
    def test_an_overflow_on_one_replica_leaves_every_bit(self, name: str, average: str, four_cpus: list[str]) -> None:
        strategy = mirrored_strategy(four_cpus[:2])
        step = make_step(strategy, scaling=True, optimizer=OptimizerConfig(name=name, average=average))
        data = batches(2)
        run(step, strategy, {key: value[:1] for key, value in data.items()})
        before = copies(step, strategy)
        data["image"][1, 3, 3, 3, 0] = np.inf  # a patch of the second replica
        (row,) = run(step, strategy, {key: value[1:] for key, value in data.items()})
        assert row["good"] == 0
        require_same_bits(before, copies(step, strategy), message=name)

    @pytest.mark.parametrize(("name", "average"), OPTIMIZERS)
    def test_goes_on_from_a_checkpoint_to_the_last_bit(self, name: str, average: str) -> None:
        strategy, data = tf.distribute.get_strategy(), batches(ADDONS_STEPS)
        config = OptimizerConfig(name=name, average=average)
        straight = make_step(strategy, optimizer=config)
        half = ADDONS_STEPS // 2 + 1  # between two looks back of lookahead, before the averages begin
        run(straight, strategy, {key: value[:half] for key, value in data.items()})
        saved = {key: variable.numpy() for key, variable in straight.state().items()}
        run(straight, strategy, {key: value[half:] for key, value in data.items()})
        resumed = make_step(strategy, optimizer=config)
        assert sorted(resumed.state()) == sorted(saved)
        for key, variable in resumed.state().items():
            variable.assign(saved[key])
        run(resumed, strategy, {key: value[half:] for key, value in data.items()})
        require_same_bits(copies(straight, strategy), copies(resumed, strategy), message=name)

    @pytest.mark.parametrize("name", ["adamw", "sgd", "lookahead"])
    def test_swa_is_the_mean_of_the_last_quarter(self, name: str) -> None:
        strategy = tf.distribute.get_strategy()
        step = make_step(strategy, optimizer=OptimizerConfig(name=name, average="swa"))
        seen: list[dict[str, np.ndarray]] = []
        run(
            step,
            strategy,
            batches(ADDONS_STEPS),
            after=lambda number: seen.append({key: value[0] for key, value in copies(step, strategy).items()}),
        )
        names = [key.removeprefix("average/") for key in seen[0] if key.startswith("average/")]
        assert len(names) == 4
        for key in names:
            history = [state[f"model/{key}"] for state in seen]
            np.testing.assert_array_equal(seen[5][f"average/{key}"], history[5])  # not yet: 6 of 8 steps are 3/4
            np.testing.assert_allclose(seen[6][f"average/{key}"], history[6], rtol=1e-6)
            np.testing.assert_allclose(seen[7][f"average/{key}"], (history[6] + history[7]) / 2, rtol=1e-5)
            assert not np.array_equal(history[6], history[7])


@with_addons
class TestFocal:
    @pytest.mark.parametrize(("gamma", "positive_weight"), [(2.0, 0.25), (1.5, 0.75), (0.5, 0.5)])
    def test_equals_tensorflow_addons(self, gamma: float, positive_weight: float) -> None:
        rng = np.random.default_rng(4)
        logits = rng.normal(0, 4, (3, 6, 5, 4, 2)).astype(np.float32)
        labels = (rng.random(logits.shape) < 0.3).astype(np.float32)
        theirs = import_addons().losses.SigmoidFocalCrossEntropy(
            from_logits=True, alpha=positive_weight, gamma=gamma, reduction=tf.keras.losses.Reduction.NONE
        )
        expected = theirs(labels, logits).numpy() / logits.shape[-1]  # it adds up the channels
        found = losses.focal(labels, logits, gamma=gamma, positive_weight=positive_weight)
        np.testing.assert_allclose(found, expected.mean(axis=(1, 2, 3)), rtol=2e-6)
