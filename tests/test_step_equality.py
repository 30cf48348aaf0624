"""The same training, cut up in any way: replicas and accumulated batches give the weights of one large batch."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from step_helpers import batches, copies, make_step, run, weights

from segment.config import OptimizerConfig
from segment.config_loss import LossConfig
from segment.training.distribution import mirrored_strategy

STEPS = 20
TERMS = [{"name": "binary_crossentropy"}, {"name": "tversky"}]
WEIGHTINGS = {
    "fixed": {},
    "schedule": {"points": [{"share": 0.0, "weights": {"tversky": 0.0}}, {"share": 1.0, "weights": {"tversky": 2.0}}]},
    "uncertainty": {},
    "gradient_norm": {},
    "dynamic_average": {"period_steps": 3},
    "recall_feedback": {},
}
# Replicas, batch_size over all of them, accumulate_steps: always four patches a step.
WAYS = ((2, 4, 1), (4, 4, 1), (1, 1, 4))


def train(
    way: tuple[int, int, int], weighting: str, optimizer: OptimizerConfig, devices: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """All weights, the learnt and the moved ones of the loss too, before and after the training."""
    replicas, batch_size, accumulate_steps = way
    strategy = tf.distribute.get_strategy() if replicas == 1 else mirrored_strategy(devices[:replicas])
    step = make_step(
        strategy,
        loss=LossConfig.model_validate({"terms": TERMS, "weighting": {"name": weighting, **WEIGHTINGS[weighting]}}),
        optimizer=optimizer,
        batch_size=batch_size,
        accumulate_steps=accumulate_steps,
    )
    start = weights(copies(step, strategy))

    def validate(number: int) -> None:
        if number % 5 == 4:
            step.hybrid.on_validation({"micro": {"small_lesion_recall": 0.1, "fp_per_scan": 0.5}})

    rows = run(step, strategy, batches(STEPS), after=validate, shares=np.linspace(0, 1, STEPS))
    if not all(row["good"] for row in rows):
        pytest.fail(f"{way}, {weighting}: a step was skipped")
    moved = [abs(rows[-1][name] - rows[0][name]) for name in rows[0] if name.startswith("weight/")]
    assert (max(moved) > 0.01) == (weighting != "fixed"), moved
    state = copies(step, strategy)
    for name, values in state.items():  # mirrored means the same bits everywhere
        for value in values[1:]:
            np.testing.assert_array_equal(values[0], value, err_msg=name)
    return start, weights(state)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
class TestSameWeights:
    def test_sgd_within_1e_5_of_the_weights(self, weighting: str, four_cpus: list[str]) -> None:
        optimizer = OptimizerConfig(name="sgd", momentum=0.9)
        _, expected = train((1, 4, 1), weighting, optimizer, four_cpus)
        both = [(2, 2, 2)] if weighting == "gradient_norm" else []  # the one that needs the numbers of all batches
        for way in (*WAYS, *both):
            _, found = train(way, weighting, optimizer, four_cpus)
            assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected), way

    def test_adamw_within_1e_3_of_the_update(self, weighting: str, four_cpus: list[str]) -> None:
        optimizer = OptimizerConfig(name="adamw")
        start, expected = train((1, 4, 1), weighting, optimizer, four_cpus)
        for way in WAYS:
            _, found = train(way, weighting, optimizer, four_cpus)
            assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected - start), way
