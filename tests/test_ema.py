"""The running mean of the weights against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from step_helpers import batches, copies, make_step, run

from segment.training.distribution import mirrored_strategy


class TestAverage:
    @pytest.mark.parametrize("decay", [0.5, 0.15])
    def test_equals_numpy_on_every_replica(self, decay: float, four_cpus: list[str]) -> None:
        strategy = mirrored_strategy(four_cpus[:2])
        step = make_step(strategy, ema_decay=decay)
        start = copies(step, strategy)
        expected = {name: np.float64(values[0]) for name, values in start.items() if name.startswith("model/")}
        for name in expected:  # it begins as the weights
            np.testing.assert_array_equal(start[name.replace("model", "average")][0], start[name][0])

        def follow(number: int) -> None:
            done = number + 1
            keep = min(decay, (1 + done) / (10 + done))  # 2/11, 3/12, 4/13, ...
            state = copies(step, strategy)
            for name in expected:
                expected[name] = keep * expected[name] + (1 - keep) * state[name][0]

        run(step, strategy, batches(6), after=follow)
        state = copies(step, strategy)
        for name, value in expected.items():
            first, second = state[name.replace("model", "average")]
            np.testing.assert_allclose(first, value, rtol=1e-5, atol=1e-7)
            np.testing.assert_array_equal(first, second)
            assert np.abs(first - state[name][0]).max() > 1e-4  # it is not the weights themselves

    def test_does_not_touch_the_training(self) -> None:
        strategy = tf.distribute.get_strategy()
        states = []
        for decay in (0.0, 0.9):
            step = make_step(strategy, ema_decay=decay)
            run(step, strategy, batches(3))
            states.append(copies(step, strategy))
        for name, values in states[0].items():
            np.testing.assert_array_equal(values[0], states[1][name][0], err_msg=name)
        assert set(states[1]) - set(states[0]) == {f"average/{index:04d}" for index in range(4)}
