"""Training batches through tf.data: parallel, deterministic, and resumable at any step."""

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
from segment.data.augmentation import Augmenter
from segment.data.lesion_maps import cell_map, distance_map
from segment.data.planning import Plan
from segment.data.preprocessing import PreparedCase
from segment.data.sampling import PatchSampler, read_patch

# Streams of random numbers that never meet, whatever seed, step and index are.
_STEP, _SAMPLE = 0, 1
PREFETCH = 2  # batches held ready
REST_SECONDS = 0.1  # without a call: the threads of tf.data are at rest
EXIT_SECONDS = 10.0  # at most, at the end of the process

Sample = tuple[np.ndarray, np.ndarray, np.int32]  # image, label, index of the case


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


class PatchSource:
    """Builds any training sample from its number alone; safe to call from several threads at once.

    Args:
        prepared: At least one case.
        plan: Patch size, classes and spacing.
        config: Seed, batch size, share of lesion patches and augmentation.
    """

    def __init__(self, prepared: Sequence[PreparedCase], plan: Plan, config: Config) -> None:
        self._prepared = prepared
        self._plan = plan
        self._config = config
        self._sampler = PatchSampler(prepared, plan.patch_size, bin_edges_mm3=config.evaluation.bin_edges_mm3)
        self._augment = Augmenter(config.augmentation, plan.spacing_mm)
        self._values = np.array(list(plan.label_values.values()), np.uint8)

    def lesion_patches(self, step: int) -> int:
        """How many samples of a step's batch are lesion patches: the first ones.

        Where share times batch size is no whole number, each step rounds up or down at random, right on average.
        """
        config = self._config
        rng = np.random.default_rng(np.random.SeedSequence([config.seed, _STEP, step]))
        return int(config.data.lesion_patch_share * config.train.batch_size + rng.random())

    def sample(self, index: int) -> Sample:
        """Builds sample `index % batch_size` of step `index // batch_size`, a pure function of seed and index.

        Returns:
            image float32 [*patch, channels]; label uint8 [*patch, classes], 0 or 1, one channel per foreground class;
            and the index of the case. The patch has 2 axes for a 2D plan. Outside the volume both are 0.
        """
        step, position = divmod(index, self._config.train.batch_size)
        place, change = np.random.SeedSequence([self._config.seed, _SAMPLE, index]).spawn(2)
        location = self._sampler.draw(np.random.default_rng(place), lesion=position < self.lesion_patches(step))
        case = self._prepared[location.case]
        size = self._plan.patch_size
        image, label = self._augment(
            read_patch(case.image(), location.start, size), read_patch(case.label(), location.start, size), change
        )
        classes = (label[..., None] == self._values).astype(np.uint8)
        if self._plan.slice_axis is not None:
            image, classes = (np.squeeze(array, self._plan.slice_axis) for array in (image, classes))
        return np.ascontiguousarray(image), np.ascontiguousarray(classes), np.int32(location.case)


def patch_dataset(
    prepared: Sequence[PreparedCase], plan: Plan, config: Config, *, first_step: int, steps: int
) -> tf.data.Dataset:
    """Batches for the steps from `first_step` to `first_step + steps - 1`.

    Args:
        prepared: At least one case, in the same order in every run that is to see the same data.
        plan: Patch size and classes.
        config: `seed`, `train.batch_size`, `data.lesion_patch_share`, `data.workers`, `augmentation` and
            `evaluation.bin_edges_mm3` are used, and of `loss` the maps that its terms need.
        first_step: 0 for a new run; a resumed run gives the step it goes on with and sees what it would have seen.
        steps: Batches.

    Returns:
        A dataset of {"image": float32 [batch, *patch, channels], "label": uint8 [batch, *patch, classes],
        "case": int32 [batch]} with static shapes, and, where a loss term asks for them, "cells": int32 and "distance":
        float32 [batch, *patch, classes]. Sample i of step s depends on the seed and s * batch + i alone.
    """
    source = PatchSource(prepared, plan, config)
    batch = config.train.batch_size
    patch = [size for axis, size in enumerate(plan.patch_size) if axis != plan.slice_axis]
    maps = _map_makers(plan, config)

    def build(index: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label, case = tf.numpy_function(
            lambda number: _DOOR.call(source.sample, int(number)), [index], (tf.float32, tf.uint8, tf.int32)
        )
        sample = {
            "image": tf.ensure_shape(image, [*patch, plan.channels]),
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
    indices = tf.data.Dataset.range(first_step * batch, (first_step + steps) * batch)
    samples = indices.map(build, num_parallel_calls=config.data.workers, deterministic=True)
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
