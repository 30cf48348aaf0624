"""A tiny network with its step, batches and states for the tests of the training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from segment.config import LossScaleConfig, OptimizerConfig
from segment.config_loss import LossConfig
from segment.losses import build_hybrid
from segment.training.addons import AddonsOptimizer, SwaModel, make_any_optimizer
from segment.training.distribution import compile_repeatably
from segment.training.ema import WeightAverage
from segment.training.precision import LossScale
from segment.training.step import TrainStep, weights_of

BATCH, SIZE = 4, 8
SCALE, RATE = 1024.0, 0.05
ADDONS_STEPS = 8  # the length of a training, for averages that begin at a share of it
State = dict[str, list[np.ndarray]]


def make_model() -> tf.keras.Model:
    """Two layers; the weights are the same in each call."""
    initial = tf.keras.initializers.HeNormal
    image = tf.keras.Input((SIZE, SIZE, 1))
    hidden = tf.keras.layers.Conv2D(
        4, 3, padding="same", activation="relu", kernel_initializer=initial(seed=1), name="hidden"
    )
    logits = tf.keras.layers.Conv2D(1, 1, kernel_initializer=initial(seed=2), name="logits")
    return tf.keras.Model(image, logits(hidden(image)))


def make_step(
    strategy: tf.distribute.Strategy,
    *,
    model: Callable[[], tf.keras.Model] = make_model,
    loss: LossConfig | None = None,
    scaling: bool = False,
    clip_norm: float = 12.0,
    optimizer: OptimizerConfig | None = None,
    batch_size: int = BATCH,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
) -> TrainStep:
    """A step on the model, with its hybrid loss as `.hybrid`; compiled as in a training, for two may be compared."""
    compile_repeatably()
    with strategy.scope():
        trained = model()
        average: WeightAverage | SwaModel | None = None
        if ema_decay:
            average = WeightAverage(trained, model(), strategy=strategy, decay=ema_decay)
        hybrid = build_hybrid(loss or LossConfig())
        config = optimizer or OptimizerConfig(name="sgd", momentum=0.9)
        made = make_any_optimizer(
            weights_of(trained),
            list(hybrid.trainable_variables),
            strategy=strategy,
            config=config,
            steps=ADDONS_STEPS,
        )
        if isinstance(made, AddonsOptimizer) and config.average == "swa":
            average = SwaModel(trained, model(), made, strategy=strategy)
        return TrainStep(
            strategy=strategy,
            model=trained,
            hybrid=hybrid,
            optimizer=made,
            loss_scale=LossScale(LossScaleConfig(initial=SCALE), scaling=scaling),
            clip_norm=clip_norm,
            batch_size=batch_size,
            accumulate_steps=accumulate_steps,
            average=average,
        )


def batches(steps: int) -> dict[str, np.ndarray]:
    """[steps, BATCH, ...] of noise with its brightest pixels as lesions; each patch has another contrast."""
    rng = np.random.default_rng(5)
    image = rng.normal(size=(steps, BATCH, SIZE, SIZE, 1)).astype(np.float32)
    contrast = np.arange(1, BATCH + 1, dtype=np.float32).reshape(BATCH, 1, 1, 1) / 2
    return {"image": image * contrast, "label": (image > 1.5).astype(np.uint8)}


def run(
    step: TrainStep,
    strategy: tf.distribute.Strategy,
    data: dict[str, np.ndarray],
    *,
    after: Callable[[int], Any] = lambda number: None,
    shares: Sequence[float] | None = None,
) -> list[dict[str, float]]:
    """One step for each leading entry; returns the scalars of each.

    Args:
        after: Called with the number of each step, counted from 0, after it.
        shares: `share_done` of each step; 0.5 without.
    """
    rows = []
    for number in range(len(data["image"])):
        batch = {name: spread(strategy, array[number]) for name, array in data.items()}
        values = step(batch, learning_rate=RATE, share_done=0.5 if shares is None else shares[number])
        rows.append({name: float(value) for name, value in values.items()})
        after(number)
    return rows


def spread(strategy: tf.distribute.Strategy, array: np.ndarray) -> Any:
    """A batch cut into equal parts, one a replica, as a distributed dataset does."""
    parts = np.split(array, strategy.num_replicas_in_sync)
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )


def copies(step: TrainStep, strategy: tf.distribute.Strategy) -> State:
    """Every variable of the state as each replica holds it."""
    return {
        name: [value.numpy() for value in strategy.experimental_local_results(variable)]
        for name, variable in step.state().items()
    }


def weights(state: State) -> np.ndarray:
    """The network's weights and the learnt loss weights on the first replica as one float64 vector."""
    parts = [values[0].ravel() for name, values in sorted(state.items()) if name.startswith(("model/", "loss/"))]
    return np.concatenate(parts).astype(np.float64)


def require_same_bits(before: State, after: State, *, message: str) -> None:
    """Everything but the loss scale is the same to the last bit on every replica."""
    if sorted(before) != sorted(after):
        raise AssertionError(f"{message}: {sorted(before)} is not {sorted(after)}")
    for name in before:
        if not name.startswith("loss_scale/"):
            for old, new in zip(before[name], after[name], strict=True):
                np.testing.assert_array_equal(old, new, err_msg=f"{name}, {message}")
