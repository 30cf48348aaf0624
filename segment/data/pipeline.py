"""Training batches through tf.data: parallel, deterministic, sharded by worker, and resumable at any step."""

from __future__ import annotations

import atexit
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from segment.config import Config
from segment.data.lesion_maps import cell_map, distance_map
from segment.data.patches import PatchSource
from segment.data.planning import Plan
from segment.data.preprocessing import PreparedCase
from segment.errors import InputError

PREFETCH = 2  # batches held ready
REST_SECONDS = 0.1  # without a call: the threads of tf.data are at rest
EXIT_SECONDS = 10.0  # at most, at the end of the process


class _Door:
    """Lets Python end while a dataset is still in use, for example after an error in the training loop.

    TensorFlow's threads cannot finish a call into Python once the interpreter shuts down, and its iterators wait for
    such calls when they are deleted: the process would hang. So before that, new calls are turned away as the end
    of the data, and the exit waits until the threads, whose buffers are bounded, have come to rest.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._started = self._running = 0
        atexit.register(self.close)

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Calls the function; raises StopIteration, which tf.data takes as the end of the data, once closed."""
        with self._lock:
            self._started += 1
            if self._closed:
                raise StopIteration
            self._running += 1
        try:
            return function(argument)
        finally:
            with self._lock:
                self._running -= 1

    def close(self) -> None:
        """Turns further calls away and waits until none has come for a while."""
        self._closed = True
        deadline, seen = time.monotonic() + EXIT_SECONDS, 0
        while (self._running or self._started > seen) and time.monotonic() < deadline:
            seen = self._started
            time.sleep(REST_SECONDS)


_DOOR = _Door()


def patch_dataset(
    prepared: Sequence[PreparedCase],
    plan: Plan,
    config: Config,
    *,
    first_step: int,
    steps: int,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Batches for the steps from `first_step` to `first_step + steps - 1`.

    Args:
        prepared: At least one case, in the same order in every run that is to see the same data.
        plan: Patch size and classes.
        config: `seed`, `train.patches_per_step`, `data.lesion_patch_share`, `data.workers`, `augmentation` and
            `evaluation.bin_edges_mm3` are used, and of `loss` the maps that its terms need.
        first_step: 0 for a new run; a resumed run gives the step it goes on with and sees what it would have seen.
        steps: Batches.
        shard: Index and count of this worker; worker w of n gets the samples from w / n to (w + 1) / n of each step.

    Returns:
        A dataset of {"image": float32 [batch, *patch, network channels], "label": uint8 [batch, *patch, classes],
        "case": int32 [batch]} with static shapes, and, where a loss term asks for them, "cells": int32 and "distance":
        float32 [batch, *patch, classes]. Sample i of step s depends on the seed and s * patches_per_step + i alone,
        whatever the shards, the workers and the step that the run began with.

    Raises:
        InputError: The samples of a step cannot be shared out evenly, or a lesion shape cannot be read.
    """
    whole = config.train.patches_per_step
    worker, workers = shard
    if not 0 <= worker < workers:
        raise ValueError(f"expected a shard from 0 to {workers - 1}, found {worker}")
    if whole % workers:
        raise InputError(
            f"train.batch_size: expected a multiple of the {workers} workers, found {whole} patches a step"
        )
    batch = whole // workers
    source = PatchSource(prepared, plan, config)
    patch = [size for axis, size in enumerate(plan.patch_size) if axis != plan.slice_axis]
    maps = _map_makers(plan, config)

    def build(number: tf.Tensor) -> dict[str, tf.Tensor]:
        index = number // batch * whole + worker * batch + number % batch
        image, label, case = tf.numpy_function(
            lambda index: _DOOR.call(source.sample, int(index)), [index], (tf.float32, tf.uint8, tf.int32)
        )
        sample = {
            "image": tf.ensure_shape(image, [*patch, plan.network_channels]),
            "label": tf.ensure_shape(label, [*patch, plan.classes]),
            "case": tf.ensure_shape(case, []),
        }
        for name, (dtype, make) in maps.items():
            values = tf.numpy_function(functools.partial(_DOOR.call, make), [label], dtype)
            sample[name] = tf.ensure_shape(values, [*patch, plan.classes])
        return sample

    options = tf.data.Options()
    options.deterministic = True
    # Training computes on the same cores: no more threads than asked for, and none tuned on top.
    options.threading.private_threadpool_size = config.data.workers
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    numbers = tf.data.Dataset.range(first_step * batch, (first_step + steps) * batch)
    samples = numbers.map(build, num_parallel_calls=config.data.workers, deterministic=True)
    return samples.batch(batch, drop_remainder=True).prefetch(PREFETCH).with_options(options)


def _map_makers(plan: Plan, config: Config) -> dict[str, tuple[tf.DType, Callable[[np.ndarray], np.ndarray]]]:
    """The maps that the loss asks for: name -> type, and what makes it from a label [*patch, classes]."""
    spacing = [step for axis, step in enumerate(plan.spacing_mm) if axis != plan.slice_axis]

    def cells(label: np.ndarray) -> np.ndarray:
        return np.stack([cell_map(mask, spacing_mm=spacing) for mask in np.moveaxis(label, -1, 0)], axis=-1)

    def distance(label: np.ndarray) -> np.ndarray:
        clip = config.loss.distance_clip_mm
        maps = [distance_map(mask, spacing_mm=spacing, clip_mm=clip) for mask in np.moveaxis(label, -1, 0)]
        return np.stack(maps, axis=-1)

    makers = {"cells": (tf.int32, cells), "distance": (tf.float32, distance)}
    return {name: maker for name, maker in makers.items() if name in config.loss.maps}
