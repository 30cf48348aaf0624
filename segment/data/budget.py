"""From the fingerprint and a memory budget to the choices of a configuration: grid, intensities, network, batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segment.config import config_from
from segment.config_train import LENGTHS
from segment.data.axes import coarsest_axis, plan_patch, plan_strides
from segment.data.cases import Dataset
from segment.data.fingerprint import Fingerprint, Intensities
from segment.data.memory_model import RUNTIME_BYTES, estimate_memory
from segment.data.planning import Plan, make_plan
from segment.errors import InputError

GIB = 2**30
MARGIN = 1.2  # the memory model is right within 20%
# Filters of the finest level and the edges that patches of equal sides have with it, by dimensions: what comes first is
# preferred. A wider network is worth more than a larger patch down to the smallest of its edges.
WIDTHS = {
    3: ((32, (128, 112, 96, 80)), (16, (112, 96, 80, 64, 48)), (8, (64, 48, 40, 32, 24, 16))),
    2: ((32, (512, 448, 384, 320, 256, 192)), (16, (384, 320, 256, 192, 128)), (8, (256, 192, 128, 96, 64, 32))),
}
MOST_FILTERS = {2: 512, 3: 320}
MOST_LEVELS = {2: 7, 3: 6}
LEAST_BATCH, MOST_BATCH = {2: 4, 3: 2}, {2: 32, 3: 8}
BATCH_SHARE = 0.05  # of all voxels at most in a batch beyond the least: a step is to see a part of the dataset only
STEPS = {"cpu": 2000, "gpu": 20000}


@dataclass(frozen=True)
class Choice:
    """A planned training.

    Attributes:
        values: Seed and sections of a configuration that trains as it is.
        plan: What training will make of it, when it sees such cases.
        memory_bytes: Estimated peak, Python and TensorFlow or the GPU's context included; of each GPU.
        precision: That the estimate is for.
        gpus: How many it is for; 0 is the host.
        why_normalization: In words.
    """

    values: dict[str, Any]
    plan: Plan
    memory_bytes: int
    precision: str
    gpus: int
    why_normalization: str


def choose(
    dataset: Dataset,
    found: Fingerprint,
    *,
    values: dict[str, Any],
    dimensions: int,
    memory_gb: float,
    precision: str,
    gpus: int,
) -> Choice:
    """Chooses the first network of `WIDTHS` that fits into the memory, and then the largest batch.

    Args:
        dataset: The checked dataset.
        found: Its figures.
        values: Seed and sections of the configuration with values that are given already. Spacing and normalisation are
            planned where `data` does not hold them; patch, filters, strides and the batch size always are.
        dimensions: 2 or 3.
        memory_gb: GiB that training may take, all in all, of each GPU.
        precision: That training will compute in.
        gpus: How many GPUs share each batch; 0 for the host, whose memory is meant then.

    Raises:
        InputError: Not even the smallest network fits; says how much it needs.
    """
    normalization, why = choose_normalization(dataset.channel_names, found.intensities)
    given = values.get("data", {})
    # Headers hold float32, whose last digits mean nothing.
    spacing = given.get("spacing_mm") or [float(f"{step:.6g}") for step in found.spacing_mm]
    data = {**given, "spacing_mm": spacing, "normalization": given.get("normalization", normalization)}
    if data["normalization"] != normalization:
        why = "given"
    base = {**values, "data": data}
    own_model = {key: value for key, value in values.get("model", {}).items() if dimensions == 2 or key != "slices"}
    gpu, replicas = gpus > 0, max(gpus, 1)
    runtime, least = RUNTIME_BYTES["gpu" if gpu else "cpu"], math.ceil(LEAST_BATCH[dimensions] / replicas)
    needs = []
    for planned in _networks(data["spacing_mm"], found, dimensions):
        model = {**own_model, **planned}
        plan = make_plan(dataset, found, config_from({**base, "model": model}, source="plan"))
        own = [MARGIN * estimate_memory(plan, size, precision, gpu=gpu) for size in range(MOST_BATCH[dimensions] + 1)]
        needs.append((runtime + own[least]) / GIB)
        if needs[-1] > memory_gb:
            continue
        most = int(BATCH_SHARE * found.voxels / math.prod(plan.patch_size))
        most = max(least, min(MOST_BATCH[dimensions], most) // replicas)
        each = next(size for size in range(most, 0, -1) if (runtime + own[size]) / GIB <= memory_gb)
        train = {"batch_size": each * replicas, **_length(values.get("train", {}), gpu=gpu)}
        memory = runtime + estimate_memory(plan, each, precision, gpu=gpu)
        return Choice({**base, "model": model, "train": train}, plan, memory, precision, gpus, why)
    raise InputError(
        f"--memory-gb {memory_gb:g}: expected at least {math.ceil(min(needs) * 10) / 10:g} for the smallest network "
        f"({dimensions}D, {least} patches at a time{' on each GPU' * (gpus > 1)}), found less; give more memory"
    )


def _length(given: dict[str, Any], *, gpu: bool) -> dict[str, Any]:
    """The section `train` as given, with a length and validations where it has none; a batch size is planned."""
    given = {key: value for key, value in given.items() if key != "batch_size"}
    length = {} if any(given.get(name) is not None for name in LENGTHS) else {"steps": STEPS["gpu" if gpu else "cpu"]}
    steps = given.get("steps") or STEPS["gpu" if gpu else "cpu"]
    return {**length, "validate_every": max(1, steps // 4), **given}


def _networks(spacing_mm: Sequence[float], found: Fingerprint, dimensions: int) -> Iterator[dict[str, Any]]:
    """The section `model` of each candidate, best first."""
    coarsest = coarsest_axis(spacing_mm)
    axes = [axis for axis in range(3) if dimensions == 3 or axis != coarsest]
    steps = [spacing_mm[axis] for axis in axes]
    extent = [found.shape[axis] * found.spacing_mm[axis] / spacing_mm[axis] for axis in axes]
    seen: list[dict[str, Any]] = []
    for first, edges in WIDTHS[dimensions]:
        for edge in edges:
            aim = plan_patch(steps, extent, voxels=edge**dimensions)
            patch, strides = _fitted(steps, aim, MOST_LEVELS[dimensions])
            filters = [min(first * 2**level, MOST_FILTERS[dimensions]) for level in range(len(strides) + 1)]
            model: dict[str, Any] = {
                "dimensions": dimensions,
                "patch_size": patch,
                "filters": filters,
                "strides": strides,
            }
            if model not in seen:
                seen.append(model)
                yield model


def _fitted(spacing_mm: Sequence[float], aim: Sequence[int], levels: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """The patch near an aim that its strides divide; no level is left to which no axis shrinks, but one stride."""
    patch = list(aim)
    strides = plan_strides(spacing_mm, patch, levels)
    for _ in range(3):  # a patch of 63 allows other strides than the 64 that it becomes
        totals = [math.prod(axis) for axis in zip(*strides, strict=True)]
        patch = [max(1, round(size / total)) * total for size, total in zip(aim, totals, strict=True)]
        better = plan_strides(spacing_mm, patch, levels)
        if better == strides or any(
            size % math.prod(axis) for size, axis in zip(patch, zip(*better, strict=True), strict=True)
        ):
            break
        strides = better
    useful = [stride for stride in strides if max(stride) > 1]
    return patch, useful or [strides[0]]


def choose_normalization(names: Sequence[str], intensities: Sequence[Intensities]) -> tuple[str, str]:
    """`percentile` where a channel is CT (`Intensities.is_ct`), else `zscore`, and why."""
    for name, channel in zip(names, intensities, strict=True):
        if channel.elsewhere is not None and channel.has_air:
            return "percentile", f"channel {name} holds values down to {channel.elsewhere[0]:.4g}, like air on CT"
        if channel.is_ct(name):
            return "percentile", f"channel {name} is CT by its name"
    return "zscore", f"no channel of {', '.join(names)} is CT by its name or by values as low as air's -1000"
