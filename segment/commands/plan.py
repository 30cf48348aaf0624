"""`segment plan`."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segment.commands.arguments import Commands, add_command, at_least_one, import_tensorflow, positive_number
from segment.errors import InputError

if TYPE_CHECKING:
    from segment.config_train import TrainConfig
    from segment.data.cases import Dataset
    from segment.data.plan_file import Planned

CPU_GB = 2.0  # on a CPU time is short before memory is: a step within this takes about a second
PREVIEW_CASES = 4
NOT_PLANNED = ("slices", "norm", "residual", "deep_supervision")  # of the section model: taken over


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    example = "python scripts/plan.py sample_data -o my_plan.yaml --memory-gb 4 --preview preview"
    parser = add_command(commands, "plan", "Write a configuration for a dataset, with the reasons.", example)
    parser.add_argument(
        "dataset", type=Path, help="folder with dataset.json (nnU-Net v2, MSD), BIDS folder, or CSV manifest"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="CONFIG.yaml", help="the configuration that is written"
    )
    _add_machine(parser)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="BASE.yaml",
        help="take over what this configuration gives, such as BIDS filters, normalisation or loss",
    )
    parser.add_argument("--layout", choices=["auto", "nnunet", "msd", "bids", "csv"], help="default: auto")
    parser.add_argument("--workers", type=at_least_one, default=2, help="cases read at a time (default: 2)")
    parser.add_argument(
        "--preview",
        type=Path,
        metavar="DIR|PNG",
        help="also draw training patches of the plan, as they are and augmented",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing CONFIG.yaml")
    parser.set_defaults(function=run)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    """What will train, and what kind of network."""
    parser.add_argument(
        "--memory-gb",
        type=positive_number,
        metavar="G",
        help="GiB that the training steps may take, of each GPU or, without one, of the host; patch, network and batch "
        f"follow from it (default: 90%% of the first GPU's, without a GPU {CPU_GB:g})",
    )
    parser.add_argument(
        "--dimensions", type=int, choices=[2, 3], help="of the network (default: as in BASE.yaml, without one 3)"
    )
    parser.add_argument(
        "--device", choices=["cpu", "gpu"], help="what will train, to plan for another machine (default: this one's)"
    )
    parser.add_argument(
        "--gpus",
        type=at_least_one,
        metavar="N",
        help="GPUs that will share each batch, of all machines together (default: those of this one, at least 1)",
    )


def run(options: argparse.Namespace) -> int:
    """Measures a dataset and writes the configuration that its figures and the memory lead to."""
    from segment.config import Config, load_config
    from segment.data.audit import audit_resampling
    from segment.data.budget import choose
    from segment.data.cases import find_dataset
    from segment.data.checks import check_dataset
    from segment.data.fingerprint import fingerprint
    from segment.data.plan_file import Planned, write_plan

    _require_free(options)
    base = load_config(options.config) if options.config else Config()
    options.dimensions = options.dimensions or base.model.dimensions
    layout = options.layout or base.data.layout
    dataset = find_dataset(options.dataset, layout=layout, bids=base.data.bids)
    gpus, memory_gb, precision = _device(options, base.train)
    dataset, audit = check_dataset(dataset, workers=options.workers, skip_invalid=base.data.skip_invalid)
    for finding in audit.findings:
        print(f"{finding.severity}: {finding.message}", file=sys.stderr)
    _require_split(dataset, base)
    found = fingerprint(dataset, workers=options.workers)
    choice = choose(
        dataset,
        found,
        values=_given(base, options.dataset, layout),
        dimensions=options.dimensions,
        memory_gb=memory_gb,
        precision=precision,
        gpus=gpus,
    )
    resampled = audit_resampling(dataset, spacing_mm=choice.plan.spacing_mm, workers=options.workers)
    planned = Planned(dataset, found, choice, resampled, memory_gb, base.evaluation.bin_edges_mm3)
    write_plan(options.output, planned, command=_command(options, memory_gb))
    _print(planned, options.output)
    if options.preview is not None:
        print(f"preview: {_preview(planned, options)}")
    print(f"next:    segment train {shlex.quote(str(options.output))}")
    return 0


def _require_free(options: argparse.Namespace) -> None:
    """Raises InputError before a long measurement whose result could not be written."""
    if os.path.isdir(options.output):
        raise InputError(f"--output {options.output}: expected a file such as plan.yaml, found a folder")
    if os.path.lexists(options.output) and not options.force:
        raise InputError(f"--output {options.output} exists; pass --force to replace it")


def _device(options: argparse.Namespace, train: TrainConfig) -> tuple[int, float, str]:
    """How many GPUs will train, the memory of each or the host's in GiB, and the number format."""
    import_tensorflow()
    from segment.model.hardware import compute_capabilities, read_cpu_flags, resolve_precision

    own = compute_capabilities()
    gpu = bool(own) and train.gpus != () if options.device is None else options.device == "gpu"
    if gpu and not own:
        own = [(8, 0)]  # that of any GPU with as much memory as is planned for
    found = resolve_precision(train.precision, compute_capabilities=own if gpu else [], cpu_flags=read_cpu_flags())
    if gpu and train.gpus == ():
        raise InputError("--device gpu: expected a configuration that trains on GPUs, found train.gpus: []")
    gpus = _gpus(options.gpus, train, len(own)) if gpu else 0
    if options.gpus not in (None, gpus):
        raise InputError(f"--gpus {options.gpus}: expected {gpus}, as --device, train.strategy and train.gpus say")
    if not gpu:
        return 0, options.memory_gb or CPU_GB, found
    return gpus, options.memory_gb or 0.9 * _gpu_gb(), found


def _gpus(asked: int | None, train: TrainConfig, visible: int) -> int:
    """How many GPUs train: as the configuration says, else as was asked, else all that there are."""
    if train.gpus:
        return len(train.gpus)
    return 1 if train.strategy == "single" else asked or visible


def _gpu_gb() -> float:
    """GiB of the first GPU, as NVIDIA's tool says."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return float(done.stdout.splitlines()[0]) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as cause:
        raise InputError("--memory-gb: expected it, as nvidia-smi does not say how much memory the GPU has") from cause


def _require_split(dataset: Dataset, base: Any) -> None:
    """Raises InputError where training could not divide the patients: the configuration has to train as it is."""
    from segment.data.splits import split_dataset

    split_dataset(dataset, base.data, seed=base.seed, loads=None)


def _given(base: Any, root: Path, layout: str) -> dict[str, Any]:
    """What the base configuration itself says, section by section, with the dataset and its layout."""
    values = base.model_dump(mode="json", exclude_unset=True, exclude={"run_dir"})
    model = {key: value for key, value in values.pop("model", {}).items() if key in NOT_PLANNED}
    data = {key: value for key, value in values.pop("data", {}).items() if value is not None}
    own: dict[str, Any] = {"root": str(root)} | ({"layout": layout} if layout != "auto" else {})
    return {"data": {**data, **own}, "model": model, "train": {}, **values}


def _command(options: argparse.Namespace, memory_gb: float) -> str:
    words = ["segment", "plan", str(options.dataset), "-o", str(options.output)]
    words += ["--memory-gb", f"{memory_gb:g}", "--dimensions", str(options.dimensions)]
    for name in ("device", "gpus", "config", "layout"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    return shlex.join(words)


def _print(planned: Planned, output: Path) -> None:
    from segment.data.budget import GIB

    plan, choice = planned.choice.plan, planned.choice
    patch = "x".join(str(size) for size in plan.patch_size)
    spacing = "x".join(f"{side:.3g}" for side in plan.spacing_mm)
    print(f"patch    {patch} voxels of {spacing} mm, {choice.values['train']['batch_size']} at a time")
    print(f"network  {plan.dimensions}D, filters {'-'.join(map(str, plan.filters))}, {plan.normalization}")
    print(f"memory   about {choice.memory_bytes / GIB:.2f} of {planned.memory_gb:g} GiB, {choice.precision}")
    print(f"plan:    {output}")


def _preview(planned: Planned, options: argparse.Namespace) -> Path:
    """Draws patches of the first cases and says where."""
    from segment.config import load_config
    from segment.data.preprocessing import prepare_cases
    from segment.data.preview import write_preview

    path: Path = options.preview
    if path.suffix.lower() != ".png":
        path = path / "preview.png"
    with tempfile.TemporaryDirectory() as folder:
        cases = planned.dataset.cases[:PREVIEW_CASES]
        plan = planned.choice.plan
        prepared = prepare_cases(cases, plan, cache_dir=Path(folder), workers=options.workers)
        write_preview(prepared, plan, load_config(options.output), path)
    return path
