"""Number formats: which one pays on this machine, the Keras policy for it, and the loss scale that float16 needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from segment.config import LossScaleConfig
from segment.errors import InputError

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
# Beyond this a doubled scale gains nothing and drifts towards infinity when gradients vanish for long (as in NVIDIA
# Apex).
LARGEST_SCALE = 2.0**24
SMALLEST_SCALE = 1.0


def resolve_precision(
    requested: str, *, compute_capabilities: Sequence[tuple[int, int]], cpu_flags: frozenset[str]
) -> str:
    """Turns `auto` into the fastest safe format; any other valid name is returned unchanged.

    With GPUs the oldest one decides: bfloat16 from compute capability 8, float16 (with loss scaling) from 7, else
    float32. Without GPUs bfloat16 needs AMX or AVX512_BF16: elsewhere TensorFlow emulates it, slower than float32.

    Args:
        requested: `auto` or one of PRECISIONS.
        compute_capabilities: (major, minor) of each GPU that is used; empty for a run on the CPU.
        cpu_flags: Feature names of the CPU, for example {"avx2", "amx_bf16"}.

    Raises:
        InputError: `requested` is unknown.
    """
    if requested in PRECISIONS:
        return requested
    if requested != "auto":
        raise InputError(f"train.precision: expected auto or one of {', '.join(PRECISIONS)}, found {requested!r}")
    if compute_capabilities:
        major = min(compute_capabilities)[0]
        if major >= 8:
            return "mixed_bfloat16"
        return "mixed_float16" if major == 7 else "float32"
    return "mixed_bfloat16" if cpu_flags & {"amx_bf16", "avx512_bf16"} else "float32"


def compute_capabilities() -> list[tuple[int, int]]:
    """The (major, minor) compute capability of each visible GPU; (0, 0) for one that does not tell (not NVIDIA's)."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return [tuple(detail.get("compute_capability", (0, 0))) for detail in details]


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The feature flags of this machine's first CPU; empty where the file is missing (macOS, Windows)."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return frozenset(line.group(1).split()) if line else frozenset()


@contextmanager
def precision_policy(precision: str) -> Iterator[None]:
    """Sets Keras' global policy while a model is built, and puts the one before back; variables stay float32 always."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(precision)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


class LossScale:
    """The factor on the loss that keeps float16 gradients from vanishing, and the count of skipped steps.

    `dynamic` doubles it after `growth_steps` good steps in a row and halves it on each bad one, down to 1 (Micikevicius
    et al. 2018, "Mixed precision training"); `fixed` never changes it. Without scaling it is 1 for good. Make it under
    the strategy's scope; `update` belongs into cross-replica context, so every replica sees the same scale.
    """

    def __init__(self, config: LossScaleConfig, *, scaling: bool) -> None:
        self.scaling = scaling
        self._dynamic = scaling and config.mode == "dynamic"
        self._growth_steps = config.growth_steps
        initial = config.initial if scaling else 1.0
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="loss_scale")
        self.good_in_row = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_in_row")
        self.skipped = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped")
        self.skipped_in_row = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped_in_row")

    def update(self, good: tf.Tensor) -> None:
        """Counts one step and adapts the scale. Args: good: bool scalar, whether every reduced gradient was finite."""
        one = tf.cast(good, tf.int64)
        good_in_row = (self.good_in_row + 1) * one
        if self._dynamic:
            grow = good_in_row >= self._growth_steps
            grown = tf.where(grow, tf.maximum(self.scale, tf.minimum(self.scale * 2.0, LARGEST_SCALE)), self.scale)
            self.scale.assign(tf.where(good, grown, tf.maximum(self.scale / 2.0, SMALLEST_SCALE)))
            good_in_row = tf.where(grow, tf.zeros_like(good_in_row), good_in_row)
        self.good_in_row.assign(good_in_row)
        self.skipped.assign_add(1 - one)
        self.skipped_in_row.assign((self.skipped_in_row + 1) * (1 - one))

    def state(self) -> dict[str, tf.Variable]:
        """The variables that a checkpoint must hold, by name."""
        return {
            "scale": self.scale,
            "good_in_row": self.good_in_row,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
        }
