"""The network that the benchmarks of speed compare, as a plan."""

from __future__ import annotations

from collections.abc import Sequence

from segment.data.planning import Plan


def cube_plan(*, patch: int, filters: Sequence[int], channels: int) -> Plan:
    """A cube of `patch` voxels a side with one class and stride 2 between the levels."""
    levels = len(filters)
    return Plan(
        channel_names=tuple(f"channel{index}" for index in range(channels)),
        label_values={"lesion": 1},
        spacing_mm=(1.0, 1.0, 1.0),
        normalization="zscore",
        patch_size=(patch,) * 3,
        filters=tuple(filters),
        strides=((2, 2, 2),) * (levels - 1),
        kernels=((3, 3, 3),) * levels,
        residual=False,
        deep_supervision=False,
        foreground_share=0.01,
    )
