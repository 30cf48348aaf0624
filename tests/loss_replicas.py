"""Run by test_losses_graph.py: trains under MirroredStrategy with 1 and 2 logical CPU devices and compares all weights.

Prints the name of each weighting that agreed; exits with a traceback otherwise.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from segment import losses
from segment.config_loss import LossConfig

STEPS, RATE = 4, 0.5
WEIGHTINGS = {
    "schedule": {"points": [{"share": 0.0, "weights": {"dice": 0.0}}, {"share": 1.0, "weights": {"dice": 2.0}}]},
    "uncertainty": {},
    "gradient_norm": {},
    "dynamic_average": {"period_steps": 1},
    "recall_feedback": {},
}
_RNG = np.random.default_rng(0)
LABELS = (_RNG.random((4, 6, 6, 1)) < 0.3).astype(np.uint8)
IMAGES = _RNG.normal(size=LABELS.shape).astype(np.float32) * np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1, 1)


def train(weighting: dict, devices: list[str]) -> list[np.ndarray]:
    """The slope of a one-weight network and all variables of the hybrid after a few steps."""
    strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        hybrid = losses.build_hybrid(LossConfig.model_validate({"weighting": weighting}))
        slope = tf.Variable(0.1, aggregation=tf.VariableAggregation.MEAN)

    def forward(labels, images):
        context = tf.distribute.get_replica_context()
        trained = [slope, *hybrid.trainable_variables]
        with tf.GradientTape() as tape:
            output = hybrid(labels, slope * images)
            loss = tf.reduce_mean(output.total)
        gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, tape.gradient(loss, trained))
        for variable, gradient in zip(trained, gradients, strict=True):
            variable.assign_sub(RATE * gradient)
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, output.statistics)

    @tf.function
    def step(labels, images, share):
        statistics = strategy.run(forward, args=(labels, images))
        statistics = {name: strategy.experimental_local_results(value)[0] for name, value in statistics.items()}
        good = tf.math.is_finite(statistics["loss/dice"])

        def update():  # within a condition, as a step that skips overflows has it
            hybrid.update(statistics, share)
            return good

        tf.cond(good, update, lambda: good)

    def spread(array):
        parts = np.split(array, len(devices))
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    for index in range(STEPS):
        step(spread(LABELS), spread(IMAGES), tf.constant(index / STEPS))
    hybrid.on_validation({"micro": {"small_lesion_recall": 0.1, "fp_per_scan": 0.5}})
    values = []
    for variable in [slope, *hybrid.variables]:
        copies = [copy.numpy() for copy in strategy.experimental_local_results(variable)]
        if any(not np.array_equal(copy, copies[0]) for copy in copies):
            raise SystemExit(f"{weighting}: replicas differ in {variable.name}: {copies}")
        values.append(copies[0])
    return [*values, np.array([float(value) for value in hybrid.weights().values()])]


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    for name, options in WEIGHTINGS.items():
        one, two = (train({"name": name, **options}, devices) for devices in (["CPU:0"], ["CPU:0", "CPU:1"]))
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7, err_msg=name)
        if np.allclose(one[-1], 1.0):
            raise SystemExit(f"{name}: expected weights that moved, found {one[-1]}")
        print(name)


if __name__ == "__main__":
    main()
