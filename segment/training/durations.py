"""How long a training is, counted in steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from segment.config import TrainConfig
from segment.data.planning import Plan
from segment.data.preprocessing import PreparedCase


def patches_per_epoch(cases: Sequence[PreparedCase], plan: Plan) -> int:
    """Patches that hold as many voxels as all training cases together, rounded up, on the network's grid.

    Patches are drawn at random and overlap, so this is no walk through the data: each voxel is seen once on average,
    those of lesions more often. An epoch of many or large scans is longer than one of few or small ones.

    Args:
        cases: At least one.
        plan: Its patch_size has a 1 on the slice axis of a 2D network, so an epoch is about all slices.
    """
    voxels = sum(math.prod(case.shape) for case in cases)
    return math.ceil(voxels / math.prod(plan.patch_size))


def training_steps(config: TrainConfig, cases: Sequence[PreparedCase], plan: Plan) -> int:
    """The length of a training in steps, at least 1: `steps` itself, or `epochs` or `samples` rounded up.

    A step is one update of the weights; it sees `batch_size * accumulate_steps` patches.
    """
    if config.steps is not None:
        return config.steps
    samples = config.samples or math.ceil((config.epochs or 0.0) * patches_per_epoch(cases, plan))
    return max(1, math.ceil(samples / config.patches_per_step))
