"""Both optimizers against NumPy in float64, what decay leaves alone, and the learning rate by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from segment.config import OptimizerConfig
from segment.model import InstanceNorm
from segment.training.distribution import mirrored_strategy
from segment.training.optimizers import Optimizer, learning_rate_at, make_optimizer
from segment.training.step import weights_of

RATE, DECAY, MOMENTUM, STEPS = 0.1, 0.5, 0.9, 5
KERNEL = np.array([[1.0, -2.0], [0.5, 4.0]])
BIAS = np.array([0.25, -1.0])
LEARNT = np.array(1.5)


def gradients_at(step: int) -> list[np.ndarray]:
    """Some gradients of kernel, bias and learnt loss weight, different in each step."""
    rng = np.random.default_rng([3, step])
    return [rng.normal(size=array.shape) for array in (KERNEL, BIAS, LEARNT)]


def run(name: str, strategy: tf.distribute.Strategy, *, steps: int = STEPS) -> tuple[list[np.ndarray], Optimizer]:
    config = OptimizerConfig(name=name, weight_decay=DECAY, momentum=MOMENTUM)
    with strategy.scope():
        kernel, bias, learnt = (tf.Variable(array, dtype=tf.float32) for array in (KERNEL, BIAS, LEARNT))
        optimizer = make_optimizer([kernel, bias], [learnt], strategy=strategy, config=config)

    @tf.function
    def apply(gradients: list[tf.Tensor]) -> None:
        optimizer.apply(gradients, tf.constant(RATE))

    for step in range(steps):
        apply([tf.constant(gradient, tf.float32) for gradient in gradients_at(step)])
    return [variable.numpy() for variable in (kernel, bias, learnt)], optimizer


def adamw(weight: np.ndarray, gradients: list[np.ndarray], decay: float) -> np.ndarray:
    """Kingma & Ba 2015, algorithm 1, with decay as in Loshchilov & Hutter 2019; slow and plain."""
    moment = square = np.zeros_like(weight)
    for number, gradient in enumerate(gradients, start=1):
        moment = 0.9 * moment + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = (moment / (1 - 0.9**number)) / (np.sqrt(square / (1 - 0.999**number)) + 1e-8)
        weight = weight - RATE * decay * weight - RATE * update
    return weight


def nesterov(weight: np.ndarray, gradients: list[np.ndarray], decay: float) -> np.ndarray:
    velocity = np.zeros_like(weight)
    for gradient in gradients:
        velocity = MOMENTUM * velocity + gradient
        weight = weight - RATE * decay * weight - RATE * (gradient + MOMENTUM * velocity)
    return weight


class TestUpdates:
    @pytest.mark.parametrize(("name", "oracle"), [("adamw", adamw), ("sgd", nesterov)])
    def test_equals_numpy_and_decays_kernels_only(self, name: str, oracle: object) -> None:
        weights, _ = run(name, tf.distribute.get_strategy())
        histories = list(zip(*(gradients_at(step) for step in range(STEPS)), strict=True))
        for weight, start, history, decay in zip(
            weights, (KERNEL, BIAS, LEARNT), histories, (DECAY, 0.0, 0.0), strict=True
        ):
            np.testing.assert_allclose(weight, oracle(start, history, decay), rtol=2e-5)

    @pytest.mark.parametrize("name", ["adamw", "sgd"])
    @pytest.mark.parametrize("decay", ["decoupled", "l2"])
    def test_norms_and_biases_of_the_network_are_left_alone(self, name: str, decay: str) -> None:
        model = tf.keras.Sequential(
            [
                tf.keras.Input((4, 4, 4, 1)),
                tf.keras.layers.Conv3D(2, 3, padding="same"),
                InstanceNorm(epsilon=1e-3),
                tf.keras.layers.Dense(1),
            ]
        )
        for weight in model.trainable_variables:
            weight.assign(tf.ones_like(weight))
        config = OptimizerConfig(name=name, weight_decay=DECAY, momentum=MOMENTUM, decay=decay)
        optimizer = make_optimizer(weights_of(model), [], strategy=tf.distribute.get_strategy(), config=config)
        gradients = [tf.zeros(target.shape) for target in optimizer.targets]
        assert optimizer.has_penalty == (decay == "l2")
        if decay == "l2":  # as the step does
            penalty, its_gradients = optimizer.penalty()
            assert float(penalty) == pytest.approx(0.5 * DECAY * (2 * 27 + 2))  # the two kernels' ones
            pairs = zip(gradients, its_gradients, strict=True)
            gradients = [zero if gradient is None else gradient for zero, gradient in pairs]
        optimizer.apply(gradients, tf.constant(RATE))
        left_alone = [bool((value.numpy() == 1).all()) for value in optimizer.targets]
        assert left_alone == [False, True, True, True, False, True]
        shrunk = {("adamw", "decoupled"): 1 - RATE * DECAY, ("sgd", "decoupled"): 1 - RATE * DECAY}
        shrunk |= {("adamw", "l2"): 1 - RATE, ("sgd", "l2"): 1 - RATE * DECAY * (1 + MOMENTUM)}
        np.testing.assert_allclose(optimizer.targets[0].numpy(), shrunk[name, decay], rtol=1e-5)

    def test_first_step_of_adam_moves_by_the_rate(self) -> None:
        # Both bias corrections cancel: the first update is the gradient's sign.
        weights, _ = run("adamw", tf.distribute.get_strategy(), steps=1)
        expected = BIAS - RATE * np.sign(gradients_at(0)[1])
        np.testing.assert_allclose(weights[1], expected, rtol=1e-5)

    @pytest.mark.parametrize("name", ["adamw", "sgd"])
    def test_every_replica_gets_the_same(self, name: str, four_cpus: list[str]) -> None:
        alone, _ = run(name, tf.distribute.get_strategy())
        strategy = mirrored_strategy(four_cpus[:2])
        together, optimizer = run(name, strategy)
        np.testing.assert_allclose(alone[0], together[0], rtol=1e-6)
        for variable in [*optimizer.targets, *optimizer.state().values()]:
            first, second = (value.numpy() for value in strategy.experimental_local_results(variable))
            np.testing.assert_array_equal(first, second)

    @pytest.mark.parametrize(("name", "slots"), [("adamw", 2), ("sgd", 1)])
    def test_state_has_every_slot_and_the_count(self, name: str, slots: int) -> None:
        _, optimizer = run(name, tf.distribute.get_strategy())
        state = optimizer.state()
        assert len(state) == 1 + 3 * slots
        assert int(state["iterations"]) == STEPS


class TestLearningRate:
    @pytest.mark.parametrize(
        ("schedule", "share", "expected"),
        [
            ("constant", 0.5, 2.0),
            ("constant", 1.0, 2.0),
            ("poly", 0.2, 2.0),  # the warm-up has just ended
            ("poly", 0.6, 2.0 * 0.5**0.9),  # half of what is left
            ("poly", 1.0, 0.0),
            ("cosine", 0.2, 2.0),
            ("cosine", 0.6, 1.0),
            ("cosine", 1.0, 0.0),
            ("cosine", 0.0, 0.0),
            ("poly", 0.05, 0.5),  # a quarter of the warm-up
        ],
    )
    def test_by_hand(self, schedule: str, share: float, expected: float) -> None:
        config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_share=0.2)
        assert learning_rate_at(share, config) == pytest.approx(expected, abs=1e-12)

    def test_without_warm_up_it_starts_high(self) -> None:
        config = OptimizerConfig(learning_rate=2.0, schedule="poly", warmup_share=0.0)
        assert learning_rate_at(0.0, config) == 2.0

    def test_warm_up_only(self) -> None:
        config = OptimizerConfig(learning_rate=2.0, schedule="poly", warmup_share=1.0)
        assert learning_rate_at(0.5, config) == 1.0
