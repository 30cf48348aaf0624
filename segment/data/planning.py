"""From the dataset's fingerprint and the configuration to a plan: the network's grid, patch and layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np

from segment.config import Config
from segment.data.axes import coarsest_axis, plan_kernels, plan_patch, plan_strides
from segment.data.cases import Dataset
from segment.data.fingerprint import Fingerprint
from segment.errors import InputError
from segment.progress import CONSOLE

PATCH_VOXELS = {2: 256**2, 3: 64**3}  # what a planned patch covers, by dimensions


@dataclass(frozen=True)
class Plan:
    """Everything that the network and the way to its grid depend on; stored as plan.json in the run folder.

    Attributes:
        channel_names: Input channels in order.
        label_values: Foreground class name -> value in the label files, in the order of the output channels.
        spacing_mm: Voxel spacing of the network grid, per canonical (RAS) axis.
        normalization: `zscore`, `percentile` or `tissue`.
        patch_size: Voxels per canonical axis, always 3 values; a 2D model has a 1 on its slice axis.
        filters: Channels of each level, finest first.
        strides: Stride into each level after the first, per network axis (2 or 3).
        kernels: Kernel size of each level's convolutions, per network axis.
        residual: Residual blocks.
        deep_supervision: Outputs at the coarser levels too.
        foreground_share: Share of voxels that are foreground, in [0, 1]; the source of the output bias.
        softmax: The classes exclude each other: the background is an output of its own, the first. Else each class is a
            sigmoid of its own.
        distance_head: A last output predicts the signed distance to the lesions, for training only.
        ct_windows: With `percentile`, for each channel that is CT: low, high, mean and standard deviation of the voxels
            inside lesions over the training cases, as in nnU-Net; None for other channels. Empty where no channel is.
        slices: Slices that a 2D model sees as channels, its own in the middle: odd; 1 in 3D.
        norm: `instance` or `none`.
    """

    channel_names: tuple[str, ...]
    label_values: dict[str, int]
    spacing_mm: tuple[float, float, float]
    normalization: str
    patch_size: tuple[int, int, int]
    filters: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    residual: bool
    deep_supervision: bool
    foreground_share: float
    softmax: bool = False
    distance_head: bool = False
    slices: int = 1
    ct_windows: tuple[tuple[float, float, float, float] | None, ...] = ()
    norm: str = "instance"

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.kernels[0])

    @property
    def channels(self) -> int:
        """Number of channels of a scan."""
        return len(self.channel_names)

    @property
    def network_channels(self) -> int:
        """Number of the network's input channels: every channel of every slice that it sees."""
        return self.channels * self.slices

    @property
    def classes(self) -> int:
        """Number of foreground classes."""
        return len(self.label_values)

    @property
    def outputs(self) -> int:
        """Channels of the network's logits: the foreground classes, and with softmax the background before them."""
        return self.classes + 1 if self.softmax else self.classes

    @property
    def slice_axis(self) -> int | None:
        """The canonical axis that a 2D model does not see along; None in 3D.

        The only one along which a patch is 1 voxel; where it is so along several, the coarsest, the last of equals.
        """
        if self.dimensions == 3:
            return None
        flat = [axis for axis, size in enumerate(self.patch_size) if size == 1]
        return flat[0] if len(flat) == 1 else coarsest_axis(self.spacing_mm)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back to an equal plan."""
        return asdict(self)

    @staticmethod
    def from_json(values: Any) -> Plan:
        """Reads what `to_json` gave.

        Raises:
            InputError: A key is missing, unknown or malformed, or the levels do not fit together; names it.
        """
        if not isinstance(values, dict):
            raise InputError(f"plan: expected a mapping, found {type(values).__name__}")
        names = [field.name for field in fields(Plan)]
        # Plans of networks without them need not say so.
        optional = {field.name for field in fields(Plan) if field.default is not MISSING}
        wrong = sorted(set(names) ^ (set(values) | optional))
        if wrong:
            what = "is missing" if wrong[0] in names else "is unknown"
            raise InputError(
                f"plan: key {wrong[0]!r} {what}; expected {names}; was the plan written by another version?"
            )
        try:
            plan = _parse(values)
        except (TypeError, ValueError, AttributeError) as cause:
            raise InputError(f"plan: a value is malformed: {cause}") from cause
        _check(plan)
        return plan


def _parse(values: dict[str, Any]) -> Plan:
    sx, sy, sz = (float(value) for value in values["spacing_mm"])
    px, py, pz = (int(value) for value in values["patch_size"])
    return Plan(
        channel_names=tuple(str(name) for name in values["channel_names"]),
        label_values={str(name): int(value) for name, value in values["label_values"].items()},
        spacing_mm=(sx, sy, sz),
        normalization=str(values["normalization"]),
        patch_size=(px, py, pz),
        filters=tuple(int(count) for count in values["filters"]),
        strides=tuple(tuple(int(step) for step in stride) for stride in values["strides"]),
        kernels=tuple(tuple(int(size) for size in kernel) for kernel in values["kernels"]),
        residual=bool(values["residual"]),
        deep_supervision=bool(values["deep_supervision"]),
        foreground_share=float(values["foreground_share"]),
        softmax=bool(values.get("softmax", False)),
        distance_head=bool(values.get("distance_head", False)),
        slices=int(values.get("slices", 1)),
        ct_windows=tuple(_window(window) for window in values.get("ct_windows", ())),
        norm=str(values.get("norm", "instance")),
    )


def _window(values: Any) -> tuple[float, float, float, float] | None:
    if values is None:
        return None
    low, high, mean, deviation = (float(value) for value in values)
    return low, high, mean, deviation


def _check(plan: Plan) -> None:
    levels = len(plan.filters)
    if levels < 1 or len(plan.kernels) != levels or len(plan.strides) != levels - 1:
        raise InputError(
            f"plan: {levels} filters need {levels} kernels and {levels - 1} strides, "
            f"found {len(plan.kernels)} and {len(plan.strides)}"
        )
    if plan.norm not in ("instance", "none"):
        raise InputError(f"plan: expected the norm instance or none, found {plan.norm!r}")
    lengths = {len(entry) for entry in (*plan.strides, *plan.kernels)}
    if lengths not in ({2}, {3}):
        raise InputError(f"plan: expected 2 or 3 values in every stride and kernel, found {sorted(lengths)}")
    if plan.slices < 1 or plan.slices % 2 == 0 or (plan.dimensions == 3 and plan.slices != 1):
        raise InputError(f"plan: expected an odd number of slices, and 1 in 3D, found {plan.slices}")
    if len(plan.ct_windows) not in (0, plan.channels):
        raise InputError(f"plan: expected {plan.channels} ct_windows or none, found {len(plan.ct_windows)}")
    total = _total_stride(plan)
    if any(size < 1 or size % step for size, step in zip(plan.patch_size, total, strict=True)):
        raise InputError(f"plan: patch_size {plan.patch_size} is not a multiple of the total stride {total}")
    if min(plan.spacing_mm) <= 0 or not plan.channel_names or not plan.label_values:
        raise InputError("plan: expected spacing_mm above 0 and at least one channel and one label value")


def _total_stride(plan: Plan) -> tuple[int, ...]:
    return with_slice_axis(np.prod(np.reshape(plan.strides, (-1, plan.dimensions)), axis=0), plan.slice_axis)


def with_slice_axis(values: Sequence[int], slice_axis: int | None) -> tuple[int, ...]:
    """Values per network axis as values per canonical axis: a 1 is put in at `slice_axis`, nothing when it is None."""
    full = [int(value) for value in values]
    if slice_axis is not None:
        full.insert(slice_axis, 1)
    return tuple(full)


def network_input(volume: np.ndarray, plan: Plan) -> np.ndarray:
    """Arranges patches as the network takes them: the slices of a 2D model become channels.

    Args:
        volume: [..., x, y, z, channels] with `plan.slices` voxels along the slice axis of a 2D plan.
        plan: Dimensions and slices.

    Returns:
        [..., x, y, z, channels] in 3D, a view of [..., *the two other axes, slices * channels] in 2D where strides
        allow, else a copy: all channels of the first slice, then of the second, and so on.
    """
    if plan.slice_axis is None:
        return volume
    moved = np.moveaxis(volume, plan.slice_axis - 4, -2)
    return moved.reshape(*moved.shape[:-2], plan.network_channels)


def make_plan(dataset: Dataset, fingerprint: Fingerprint, config: Config) -> Plan:
    """Plans what the configuration leaves open (null) and checks that the rest fits together.

    A patch size that is not a multiple of the total stride is rounded up, which is said on standard error.

    Args:
        dataset: Names the channels and the label values.
        fingerprint: The dataset's figures.
        config: `config.data` and `config.model` are used, and of `config.loss` what the outputs depend on.
    """
    model = config.model
    spacing = config.data.spacing_mm or fingerprint.spacing_mm
    slice_axis = coarsest_axis(spacing) if model.dimensions == 2 else None
    axes = [axis for axis in range(3) if axis != slice_axis]
    network_mm = [spacing[axis] for axis in axes]
    extent = [fingerprint.shape[axis] * fingerprint.spacing_mm[axis] / spacing[axis] for axis in axes]
    aim = (
        list(model.patch_size)
        if model.patch_size
        else plan_patch(network_mm, extent, voxels=PATCH_VOXELS[model.dimensions])
    )
    strides = model.strides or plan_strides(network_mm, aim, len(model.filters))
    total = np.prod(np.asarray(strides), axis=0)
    patch = _fit_strides(aim, total, given=model.patch_size is not None)
    x, y, z = with_slice_axis(patch, slice_axis)
    return Plan(
        channel_names=tuple(dataset.channel_names),
        label_values=dict(dataset.label_values),
        spacing_mm=spacing,
        normalization=config.data.normalization,
        patch_size=(x, y, z),
        filters=model.filters,
        strides=strides,
        kernels=plan_kernels(network_mm, strides),
        residual=model.residual,
        deep_supervision=model.deep_supervision,
        foreground_share=fingerprint.foreground_share,
        softmax=config.loss.softmax,
        distance_head="predicted_distance" in config.loss.maps,
        slices=model.slices,
        ct_windows=_ct_windows(dataset, fingerprint) if config.data.normalization == "percentile" else (),
        norm=model.norm,
    )


def _ct_windows(dataset: Dataset, fingerprint: Fingerprint) -> tuple[tuple[float, float, float, float] | None, ...]:
    windows = tuple(
        channel.window if channel.is_ct(name) else None
        for name, channel in zip(dataset.channel_names, fingerprint.intensities, strict=True)
    )
    return windows if any(windows) else ()


def _fit_strides(aim: Sequence[int], total: np.ndarray, *, given: bool) -> list[int]:
    """Multiples of the total stride: the nearest ones of a planned patch, the next ones up of a given patch."""
    if not given:
        return [int(max(1, round(size / step)) * step) for size, step in zip(aim, total, strict=True)]
    patch = [int(-(-size // step) * step) for size, step in zip(aim, total, strict=True)]
    if patch != list(aim):
        CONSOLE.print(
            f"model.patch_size {list(aim)} is rounded up to {patch}, multiples of the total stride {total.tolist()}"
        )
    return patch
