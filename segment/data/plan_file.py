"""The configuration that `segment plan` writes: every choice with the figure that led to it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segment.data.audit import ResampledCase, ceiling_on_recall
from segment.data.axes import CLOSE_RATIO
from segment.data.budget import BATCH_SHARE, GIB, MOST_BATCH, Choice
from segment.data.cases import Dataset
from segment.data.census import LesionLoad, bin_names, count_by_size
from segment.data.fingerprint import Fingerprint
from segment.files import write_text

WIDTH = 110  # columns of a comment
AXES = ("left to right", "back to front", "bottom to top")


@dataclass(frozen=True)
class Planned:
    """All that a written plan tells.

    Attributes:
        dataset: The checked dataset.
        found: Its figures.
        choice: What has been made of them.
        resampled: The resampling audit on the chosen grid.
        memory_gb: The budget in GiB.
        bin_edges_mm3: Of the lesions' sizes.
    """

    dataset: Dataset
    found: Fingerprint
    choice: Choice
    resampled: Sequence[ResampledCase]
    memory_gb: float
    bin_edges_mm3: Sequence[float]


def write_plan(path: Path, planned: Planned, *, command: str) -> None:
    """Writes the commented configuration; `command` is what made it. Raises InputError when it cannot be written."""
    choice = planned.choice
    whys = {**_data_comments(planned), **_model_comments(planned), **_train_comments(planned)}
    lines = [*_header(planned, path, command), "", f"run_dir: {_flow(f'runs/{path.stem}')}"]
    sections = dict(choice.values)
    if "seed" in sections:
        lines.append(f"seed: {sections.pop('seed')}")
    for section, values in sections.items():
        lines += ["", f"{section}:"]
        for key, value in values.items():
            lines += _comment(whys.get(f"{section}.{key}", ""), indent=2)
            lines.append(f"  {key}: {_flow(value)}")
    write_text(path, "\n".join(lines) + "\n")


def _flow(value: Any) -> str:
    """A value on one line that `load_config` reads back to the same."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, *, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent + "# ",
        subsequent_indent=" " * indent + "# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def _header(planned: Planned, path: Path, command: str) -> list[str]:
    found, choice, dataset = planned.found, planned.choice, planned.dataset
    low, high = zip(*found.spacing_range_mm, strict=True)
    patients = len({case.patient_id for case in dataset.cases})
    where = {0: "of the host", 1: "of the GPU"}.get(choice.gpus, f"of each of {choice.gpus} GPUs")
    figures = [
        f"{found.cases} cases of {patients} patients; channels {', '.join(dataset.channel_names)}",
        f"spacing in mm ({', '.join(AXES)}): median {_by(found.spacing_mm)}, from {_by(low)} to {_by(high)}",
        f"shape of the non-zero box: median {_by(found.shape)} voxels of the median spacing",
        f"lesions: {_lesions(planned)}",
        *(_intensities(name, planned, index) for index, name in enumerate(dataset.channel_names)),
        f"memory: about {choice.memory_bytes / GIB:.2f} GiB {where} with {choice.precision}, "
        f"of {planned.memory_gb:g} given",
    ]
    lines = [
        *_comment(f"Planned from {dataset.root} by the command"),
        f"# {command}",
        "# Train it by",
    ]
    lines += [f"# segment train {path}", "#", "# What the dataset looks like:"]
    for figure in figures:
        first, *rest = _comment(figure, indent=0)
        lines += ["# - " + first.removeprefix("# "), *("#   " + line.removeprefix("# ") for line in rest)]
    return lines


def _lesions(planned: Planned) -> str:
    volumes = planned.found.lesion_mm3
    if not volumes:
        return "none"
    count, _ = count_by_size(LesionLoad(volumes), planned.bin_edges_mm3)
    bins = ", ".join(f"{name}: {n}" for name, n in zip(bin_names(planned.bin_edges_mm3), count, strict=True))
    share = planned.found.foreground_share
    return (
        f"{len(volumes)}, of {_mm3(volumes[0])} to {_mm3(volumes[-1])} mm3, median {_mm3(float(np.median(volumes)))}; "
        f"by mm3 {bins}; {share:.3%} of all voxels"
    )


def _mm3(volume: float) -> str:
    return f"{volume:,.0f}" if volume >= 100 else f"{volume:.3g}"


def _intensities(name: str, planned: Planned, index: int) -> str:
    channel = planned.found.intensities[index]

    def shown(values: tuple[float, ...] | None) -> str:
        return "none" if values is None else ", ".join(f"{value:.4g}" for value in values)

    return (
        f"{name}, percentiles 0.5, 50, 99.5: inside lesions {shown(channel.lesions)}; "
        f"elsewhere {shown(channel.elsewhere)}"
    )


def _data_comments(planned: Planned) -> dict[str, str]:
    found, spacing = planned.found, planned.choice.plan.spacing_mm
    coarse = max(spacing) / min(spacing)
    axis = AXES[int(np.argmax(spacing))]
    words = f"The median spacing, {_by(found.spacing_mm)} mm."
    if not np.allclose(found.spacing_mm, spacing, rtol=1e-5):
        words = f"Given; the median spacing is {_by(found.spacing_mm)} mm."
    if coarse >= CLOSE_RATIO:
        words += f" The axis {axis} is {coarse:.3g} times as coarse as the finest and stays so."
    ceiling = ceiling_on_recall(planned.resampled)
    if ceiling is not None:
        total = sum(case.lesions for case in planned.resampled)
        vanished = sum(len(case.vanished) for case in planned.resampled)
        merged = sum(len(group) for case in planned.resampled for group in case.merged)
        words += (
            f" On this grid recall is at most {ceiling:.3f}: of {total} lesions {vanished} vanish and {merged} merge."
        )
    why = planned.choice.why_normalization
    normalization = {
        "zscore": "Mean 0 and standard deviation 1 within the non-zero voxels, as for MR",
        "percentile": "Clipped at the 0.5th and 99.5th percentile first",
        "tissue": "The main tissue peak at 0",
    }[planned.choice.plan.normalization]
    return {"data.spacing_mm": words, "data.normalization": f"{normalization}: {why}.{_ct_words(planned)}"}


def _ct_words(planned: Planned) -> str:
    plan = planned.choice.plan
    windows = [
        f"{name} at {window[0]:.4g} and {window[1]:.4g}"
        for name, window in zip(plan.channel_names, plan.ct_windows, strict=False)
        if window is not None
    ]
    if not windows:
        return ""
    return f" CT at the percentiles inside all lesions, in training those of the training cases: {', '.join(windows)}."


def _model_comments(planned: Planned) -> dict[str, str]:
    plan, found = planned.choice.plan, planned.found
    seen = [axis for axis in range(3) if axis != plan.slice_axis]
    shape = [found.shape[axis] * found.spacing_mm[axis] / plan.spacing_mm[axis] for axis in seen]
    patch, spacing = [plan.patch_size[axis] for axis in seen], [plan.spacing_mm[axis] for axis in seen]
    share = math.prod(min(size / whole, 1.0) for size, whole in zip(patch, shape, strict=True))
    extent = [size * step for size, step in zip(patch, spacing, strict=True)]
    across = "" if plan.slice_axis is None else f"Slices across {AXES[plan.slice_axis]}, the coarsest axis. "
    totals = [math.prod(axis) for axis in zip(*plan.strides, strict=True)]
    coarsest = [size // total for size, total in zip(patch, totals, strict=True)]
    kernels = " ".join(_by(kernel).replace(" ", "") for kernel in plan.kernels)
    return {
        "model.patch_size": (
            f"{across}{_by(extent)} mm, {share:.0%} of the median shape of {_by(shape)} voxels; "
            f"{_largest(planned)}the largest of the planner's patches that the memory allows with this network."
        ),
        "model.filters": (
            f"{plan.filters[0]} at the finest level as the memory allows, twice as many at each further one; "
            f"{len(plan.filters)} levels, until the feature map is {_by(coarsest)}."
        ),
        "model.strides": (
            f"An axis is halved while its spacing is below twice the finest and 4 voxels are left; from "
            f"{_by(spacing)} mm to {_by([a * b for a, b in zip(spacing, totals, strict=True)])} mm. "
            f"Kernels follow the same rule: {kernels}; 3 along a stride."
        ),
    }


def _largest(planned: Planned) -> str:
    volumes = planned.found.lesion_mm3
    if not volumes:
        return ""
    return f"the largest lesion as a ball is {(6 * volumes[-1] / math.pi) ** (1 / 3):.3g} mm across; "


def _train_comments(planned: Planned) -> dict[str, str]:
    choice, found = planned.choice, planned.found
    train, plan = choice.values["train"], choice.plan
    batch, steps = train["batch_size"], train.get("steps")
    voxels = math.prod(plan.patch_size)
    each = " on each GPU" if choice.gpus > 1 else ""
    words = (
        f"As many as fit{each}: about {choice.memory_bytes / GIB:.2f} GiB of {planned.memory_gb:g}, a fifth left free "
        f"for the estimate's error; at most {MOST_BATCH[plan.dimensions]}, and {BATCH_SHARE:.0%} of all "
        f"{found.voxels / 1e6:.3g} million voxels; one patch is {voxels / found.voxels:.2%} of them."
    )
    if choice.gpus > 1:
        words += f" Divided among {choice.gpus} GPUs, at least one patch each; more or fewer need another plan."
    if choice.gpus:
        words += " The model of a GPU's memory has not been measured."
    comments = {"train.batch_size": words}
    if steps is not None:
        seen = steps * batch * voxels / found.voxels
        comments["train.steps"] = (
            f"The volume of all scans {seen:.3g} times over. Not planned from the data: give what time there is."
        )
    return comments
