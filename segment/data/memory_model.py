"""How much memory a training takes, from the sizes of its layers; `benchmark.py plan_memory` measures it beside.

For the backward pass TensorFlow keeps what the gradients are computed from: of each convolution with norm and leaky
ReLU three tensors, as the norm needs the convolution's output, the ReLU that of the norm, and what comes next that of
the ReLU. All else is there for a moment only, most of it where the finest level is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from segment.data.planning import Plan

UNIT = 3  # tensors kept of convolution, norm and ReLU
UNITS = 2  # in a level on the way down, and as many on the way up
GRADIENTS = 2  # tensors of the finest level's size at the busiest moment of the backward pass
NORM_FLOATS = 4  # float32 tensors of that size, which the norm of a CPU computes 16-bit numbers in
LOSS_TENSORS = 20  # float32, of the size of the logits: the terms of the default loss and their gradients
COPIES = 6  # of the weights: themselves, two moments, gradients, those reduced and those clipped
PIPELINE_BATCHES = 4  # in use, two held ready, one being put together
PIPELINE_PATCHES = 10  # two threads that build patches, each with copies of an enlarged one
GRAPH_BYTES = 48 * 2**20  # the compiled step and the threads' own memory
SAMPLE_GRAPH_BYTES = 8 * 2**20  # a CPU computes the samples of small batches one by one, each with its own operations
UNROLLED = 8  # largest such batch
RUNTIME_BYTES = {"cpu": 768 * 2**20, "gpu": 1536 * 2**20}  # Python and TensorFlow, or a GPU's context and workspaces


def estimate_memory(plan: Plan, batch_size: int, precision: str, *, gpu: bool) -> int:
    """Bytes that training takes beyond Python and TensorFlow themselves (`RUNTIME_BYTES`).

    On the host that is all of the training: network, weights with the moments of AdamW, and data pipeline; on a GPU
    what is in its memory. Measured on CPUs, where it is right within 20%; on a GPU it has not been measured. Whole-
    volume validation comes after the steps and is not part of it.

    Args:
        plan: Patch, levels and outputs.
        batch_size: Patches computed at once on the device.
        precision: "float32", "mixed_bfloat16" or "mixed_float16".
        gpu: For a GPU instead of a CPU.
    """
    size = 4 if precision == "float32" else 2
    voxels = _voxels(plan)
    finest = voxels[0] * plan.filters[0]
    sample = size * sum(_kept(plan, level, count, gpu=gpu) for level, count in enumerate(voxels))
    sample += size * GRADIENTS * finest + 4 * voxels[0] * plan.network_channels
    if size == 2 and not gpu:
        sample += 4 * NORM_FLOATS * finest
    heads = voxels[:-1] if plan.deep_supervision else voxels[:1]
    outputs = plan.outputs + (plan.classes if plan.distance_head else 0)
    sample += 4 * LOSS_TENSORS * outputs * sum(heads)
    weights = 4 * sum(_weights(plan)) * (COPIES + (0 if gpu else min(batch_size, UNROLLED)))
    if gpu:
        return batch_size * sample + weights
    patch = voxels[0] * (4 * plan.network_channels + 2 * plan.classes)
    pipeline = (PIPELINE_BATCHES * batch_size + PIPELINE_PATCHES) * patch
    graph = GRAPH_BYTES + SAMPLE_GRAPH_BYTES * (batch_size if batch_size <= UNROLLED else 1)
    return batch_size * sample + weights + pipeline + graph


def _voxels(plan: Plan) -> list[int]:
    """Voxels of each level's feature maps."""
    voxels = [math.prod(plan.patch_size)]
    for stride in plan.strides:
        voxels.append(voxels[-1] // math.prod(stride))
    return voxels


def _kept(plan: Plan, level: int, voxels: int, *, gpu: bool) -> int:
    """Numbers that a level keeps of one sample for the backward pass, on the way down and on the way up."""
    tensors = UNITS * UNIT + (1 if plan.residual else 0)
    if level < len(plan.filters) - 1:
        tensors *= 2
        if gpu:  # there the upsampled features are made and joined with those on the way down
            tensors += 2 * (2 if plan.residual else 1)
    return tensors * voxels * plan.filters[level]


def _weights(plan: Plan) -> list[int]:
    """Numbers in the kernels of each level; norms and heads are too small to count."""
    counts, before = [], plan.network_channels
    for level, (filters, kernel) in enumerate(zip(plan.filters, plan.kernels, strict=True)):
        taps = math.prod(kernel)
        count = taps * filters * (before + filters)
        if plan.residual:
            count += _block(plan, level - 1) * before * filters
        if level < len(plan.strides):
            count += _block(plan, level) * plan.filters[level + 1] * filters  # spreads the coarser features
            count += taps * filters * (2 * filters + filters) + (2 * filters * filters if plan.residual else 0)
        counts.append(count)
        before = filters
    return counts


def _block(plan: Plan, level: int) -> int:
    strides: Sequence[int] = plan.strides[level] if level >= 0 else (1,)
    return math.prod(strides)
