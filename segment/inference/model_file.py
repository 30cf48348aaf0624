"""The model file of a run: loaded safely, checked against the plan, and compiled for one shape of input."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from segment.config import Config
from segment.data.planning import Plan
from segment.errors import InputError
from segment.inference.tiles import Forward
from segment.model import build_unet
from segment.model.hardware import compute_capabilities, pays, read_cpu_flags

# What Keras and the formats below it (zip, JSON, HDF5) raise for files that are damaged, not ours, or unsafe.
_LOAD_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
    UserWarning,
    zipfile.BadZipFile,
    zlib.error,
)


def load_model(path: Path, plan: Plan) -> tf.keras.Model:
    """Loads a network that `build_unet` made and `model.save` wrote.

    Nothing in the file is executed: Keras' safe mode refuses layers with code of their own (Lambda). A network
    trained in a 16-bit format that this machine computes slowly (float16 on any CPU, bfloat16 on one without
    AVX512_BF16 or AMX) is turned into float32, by the rule of `train.precision: auto`.

    Args:
        path: model.keras.
        plan: What the network must fit.

    Raises:
        InputError: The file is missing, damaged or unsafe, or its network is not the plan's; names the file.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a model file, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        with warnings.catch_warnings():
            # Keras 3 only warns where weights are not in the file, and goes on with random ones.
            warnings.filterwarnings("error", message="Skipping", category=UserWarning)
            model = tf.keras.models.load_model(path, compile=False, safe_mode=True)
        if not isinstance(model, tf.keras.Model):
            raise TypeError(f"expected a model, found {type(model).__name__}")
    except _LOAD_ERRORS as cause:
        raise InputError(
            f"{path}: expected a network saved by this package, found a file that cannot be loaded safely "
            f"({_first_sentence(cause)}); is it complete and from a segment run?"
        ) from cause
    expected = network_shape(plan)
    found = getattr(model, "input_shape", None)  # subclassed models that were never called have none
    channels = [shape[-1] for shape in _shapes(getattr(model, "output_shape", None))]
    logits = channels[: -1 if plan.distance_head else None]  # the head stands last, and nobody asks for it
    if found != (None, *expected) or set(logits) != {plan.outputs}:
        raise InputError(
            f"{path}: expected a network from {expected} to {plan.outputs} classes as plan.json beside it says, "
            f"found one from {found} to {channels}; do both files belong to one run?"
        )
    return model if _computed_fast(model) else in_float32(model, plan)


def _computed_fast(model: tf.keras.Model) -> bool:
    """Whether this machine computes every layer's number format at least as fast as float32, as in training."""
    formats = {str(layer.compute_dtype) for layer in model.layers} & {"float16", "bfloat16"}
    capabilities, flags = compute_capabilities(), read_cpu_flags()
    return all(pays(f"mixed_{name}", compute_capabilities=capabilities, cpu_flags=flags) for name in formats)


def network_shape(plan: Plan) -> tuple[int, ...]:
    """(*patch, channels) as the network sees it: without the slice axis of a 2D plan."""
    return (*(size for axis, size in enumerate(plan.patch_size) if axis != plan.slice_axis), plan.network_channels)


def _first_sentence(cause: Exception) -> str:
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text.split(". ")[0][:200]


def _shapes(shape: Any) -> list[tuple[int | None, ...]]:
    if isinstance(shape, list):
        return shape
    return [] if shape is None else [shape]


def in_float32(model: tf.keras.Model, plan: Plan) -> tf.keras.Model:
    """The same network computed in float32 throughout."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("float32")
    try:
        same = build_unet(plan, seed=0)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    same.set_weights(model.get_weights())
    return same


def window_batch(config: Config) -> int:
    """Windows at a time: as configured on a GPU. A CPU takes one: more gain nothing, and a full batch needs repeats."""
    return config.inference.window_batch if tf.config.list_logical_devices("GPU") else 1


def compile_forward(model: tf.keras.Model, plan: Plan, *, batch: int) -> Forward:
    """The network as a function of NumPy arrays, compiled once for [batch, *patch, channels]; the finest output."""
    signature = [tf.TensorSpec((batch, *network_shape(plan)), tf.float32)]

    @tf.function(input_signature=signature, autograph=False)
    def compiled(windows: tf.Tensor) -> tf.Tensor:
        outputs = model(windows, training=False)
        return outputs[0] if isinstance(outputs, list | tuple) else outputs

    def forward(windows: np.ndarray) -> np.ndarray:
        return compiled(tf.constant(windows, tf.float32)).numpy()

    return forward
