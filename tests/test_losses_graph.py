"""The terms in every way TensorFlow runs them: eagerly, in a graph, through XLA, in half precision, over replicas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from loss_oracle import TERMS, loss_of, make_example

from segment import losses
from segment.config_loss import LossConfig

SIGMOID_HYBRID = {
    "terms": [
        {"name": name}
        for name in ("binary_crossentropy", "dice", "tversky", "focal", "focal_tversky", "component_dice", "boundary")
    ]
}


@pytest.mark.parametrize("term", TERMS)
def test_eager_is_graph_is_xla(term: str) -> None:
    example = make_example((6, 5), batch=2, channels=2)
    logits = tf.constant(example.class_logits if term.startswith("categorical") else example.logits)

    def both(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss_of(term, example, logits=x)
        return value, tape.gradient(value, x)

    eager = both(logits)
    for compiled in (tf.function(both), tf.function(both, jit_compile=True)):
        for found, wanted in zip(compiled(logits), eager, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("term", TERMS)
def test_half_precision_logits_give_float32_losses(term: str, dtype: str) -> None:
    example = make_example((6, 5, 4), batch=2, channels=2)
    logits = example.class_logits if term.startswith("categorical") else example.logits
    half = loss_of(term, example, logits=tf.cast(logits, dtype))
    assert half.dtype == tf.float32
    np.testing.assert_allclose(half, loss_of(term, example), rtol=1e-2)


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "gradient_norm", "dynamic_average"])
def test_no_retracing_over_100_batches(weighting: str) -> None:
    # uncertainty is not for the boundary term, which may be negative
    terms = [one for one in SIGMOID_HYBRID["terms"] if (weighting, one["name"]) != ("uncertainty", "boundary")]
    hybrid = losses.build_hybrid(LossConfig.model_validate({"terms": terms, "weighting": {"name": weighting}}))
    traces = []

    @tf.function
    def step(labels, logits, cells, distance, share):
        traces.append(1)
        output = losses.supervised_loss(hybrid, labels, logits, cells=cells, distance=distance)
        hybrid.update(output.statistics, share)
        return output.total

    examples = [make_example((5, 4), batch=2, channels=1, seed=seed) for seed in range(4)]
    for index in range(100):
        e = examples[index % 4]  # the number of lesions differs
        total = step(*map(tf.constant, (e.labels, e.logits, e.cells, e.distance)), tf.constant(index / 100))
    assert len(traces) == 1
    assert np.isfinite(total).all()


def test_the_batch_size_may_be_unknown() -> None:
    example = make_example((5, 4), batch=3, channels=2)
    signature = [tf.TensorSpec([None, 5, 4, 2], array.dtype) for array in (example.logits, example.cells)]
    component = tf.function(
        lambda x, cells: losses.component_dice(tf.cast(x > 0, tf.uint8), x, cells=cells), input_signature=signature
    )
    wanted = losses.component_dice(example.logits > 0, example.logits, cells=example.cells)
    np.testing.assert_allclose(component(example.logits, example.cells), wanted, rtol=1e-6)


def test_weights_are_the_same_on_every_replica_and_as_on_one() -> None:
    """In a process of its own, because the number of logical devices is fixed once TensorFlow has started."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", str(here / "loss_replicas.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["schedule", "uncertainty", "gradient_norm", "dynamic_average", "recall_feedback"]
