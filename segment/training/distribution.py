"""Where a step runs: one device, or all GPUs of this machine with mirrored weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from segment.errors import InputError


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy for `train.strategy`.

    `single` is TensorFlow's default strategy (the first GPU if there is one, else the CPU). `mirrored` takes every GPU
    or, where there is none, every logical CPU device. `auto` is mirrored with two or more GPUs, else single.

    Raises:
        InputError: `name` is none of the three.
    """
    if name not in ("auto", "single", "mirrored"):
        raise InputError(f"train.strategy: expected auto, single or mirrored, found {name!r}")
    gpus = tf.config.list_physical_devices("GPU")
    _grow_memory(gpus)
    if name == "single" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return mirrored_strategy([device.name for device in devices])


def mirrored_strategy(devices: Sequence[str]) -> tf.distribute.Strategy:
    """One replica on each device, for example ["GPU:0", "GPU:1"].

    GPUs reduce through NCCL. CPU devices reduce on the first of them: TensorFlow's collective operations for CPUs add
    up in an order that changes from run to run, and two strategies of different size in one process abort each other.
    """
    on_cpus = all("CPU" in device.upper() for device in devices)
    return tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice() if on_cpus else None)


def _grow_memory(gpus: list[Any]) -> None:
    """Lets the GPU's memory be shared with other programs instead of taking all of it at once."""
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        # TensorFlow has already started (a second training in one process): its setting holds and cannot be changed.
        return


def check_batch_size(batch_size: int, replicas: int) -> None:
    """Raises InputError unless the global batch splits evenly, which the mean over replicas relies on."""
    if batch_size % replicas:
        near = max(replicas, batch_size // replicas * replicas)
        raise InputError(
            f"train.batch_size: expected a multiple of the {replicas} replicas, found {batch_size}; try {near}"
        )


def plain_variable(variable: Any) -> tf.Variable:
    """The tf.Variable behind a Keras variable: Keras 3 wraps it as `.value`, in Keras 2 the variable is one itself."""
    value = variable.value
    return variable if callable(value) else value


def first_replica(strategy: tf.distribute.Strategy, value: Any) -> Any:
    """The first replica's tensor of a per-replica value, or the tensor itself; for values that are equal everywhere."""
    return strategy.experimental_local_results(value)[0]
