"""`segment infer`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from segment.commands.arguments import (
    Commands,
    add_command,
    import_tensorflow,
    not_negative,
    open_share,
    positive_number,
    shard_of,
)


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    example = "python scripts/infer.py --run runs/ms --input scans/ --output predictions/ --labels labels/"
    parser = add_command(commands, "infer", "Write masks for new scans, and the report when labels are given.", example)
    parser.add_argument("--run", type=Path, action="append", required=True, help="run folder; several are averaged")
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help="a scan, a folder of CASE_0000.nii.gz files, a BIDS tree or a CSV manifest",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for masks, report and manifest")
    parser.add_argument(
        "--labels",
        type=Path,
        help="folder of expert masks CASE.nii.gz, or a dataset with labels (also BIDS, CSV), to report on the result",
    )
    parser.add_argument("--probabilities", action="store_true", help="write the probability maps too")
    _add_ways(parser)
    parser.add_argument("--uncertainty", choices=("deviation", "entropy"), help="write maps of it")
    parser.add_argument("--max-memory-gb", type=positive_number, metavar="GIB", help="stay below; refuse larger scans")
    parser.add_argument("--shard", type=shard_of, metavar="K/N", help="predict every N-th case only, from the K-th")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="keep what an earlier run completed with the same inputs"
    )
    existing.add_argument("--force", action="store_true", help="replace an existing output folder")
    parser.set_defaults(function=run)


def _add_ways(parser: argparse.ArgumentParser) -> None:
    """How masks are made from the networks' votes."""
    point = parser.add_mutually_exclusive_group()
    point.add_argument(
        "--max-fp-per-scan",
        type=not_negative,
        metavar="N",
        help="choose the operating point again, for at most so many false positives a scan (default: as in training)",
    )
    point.add_argument(
        "--threshold",
        type=open_share,
        help="probability from which a voxel is lesion, instead of the operating point with its peak and least volume",
    )
    parser.add_argument(
        "--flips",
        action=argparse.BooleanOptionalAction,
        help="average over mirrored copies: 8 times the work in 3D (default: as the first run's configuration has it)",
    )


def run(options: argparse.Namespace) -> int:
    """Predicts scans with one or more runs, and reports on them when labels are given."""
    import_tensorflow()
    from segment.inference.batch import predict_cases
    from segment.inference.records import Shard

    changes = {
        "flips": options.flips,
        "uncertainty": options.uncertainty,
        "max_memory_gb": options.max_memory_gb,
    }
    code = predict_cases(
        options.run,
        options.input,
        options.output,
        labels=options.labels,
        probabilities=options.probabilities,
        threshold=options.threshold,
        max_fp_per_scan=options.max_fp_per_scan,
        changes={name: value for name, value in changes.items() if value is not None},
        force=options.force,
        resume=options.resume,
        shard=None if options.shard is None else Shard(*options.shard),
    )
    if options.labels is None and options.shard is None:
        masks = shlex.quote(str(options.output / "masks"))
        config = _counted_as(options.run[0])
        print(f"next: segment evaluate --predictions {masks} --labels LABELS --output REPORT{config}")
    return code


def _counted_as(run: Path) -> str:
    """The option that makes a report count lesions as a run does, where that is not the default."""
    from segment.config import Config, load_config

    path = run / "config.yaml"
    usual = load_config(path).evaluation == Config().evaluation
    return "" if usual else f" --config {shlex.quote(str(path))}"
