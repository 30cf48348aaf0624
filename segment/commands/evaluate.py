"""`segment evaluate`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from segment.commands.arguments import LANGUAGES, Commands, add_command, at_least_one
from segment.errors import InputError


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    example = "python scripts/evaluate.py --predictions predictions/masks --labels labels/ --output report/"
    parser = add_command(commands, "evaluate", "Report on masks from any tool against expert labels.", example)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--predictions", type=Path, help="folder of masks CASE.nii.gz")
    source.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="two such folders; differences are B minus A"
    )
    parser.add_argument("--labels", type=Path, required=True, help="folder of expert masks CASE.nii.gz")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the report")
    parser.add_argument("--probabilities", type=Path, help="folder of probability maps CASE.nii.gz, for the FROC")
    parser.add_argument(
        "--images", type=Path, help="folder of scans for the pictures (default: beside an nnU-Net labels folder)"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="values of each class in the masks; channels of probability maps are in the order of the values",
    )
    parser.add_argument(
        "--missing",
        choices=["error", "empty"],
        default="error",
        help="a case on one side only: error, or scored as empty",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG.yaml",
        help="take size bins, matching and seed from a configuration, such as that of the run (RUN/config.yaml)",
    )
    parser.add_argument("--workers", type=at_least_one, default=2, help="cases evaluated at a time (default: 2)")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of the report's labels")
    parser.add_argument("--force", action="store_true", help="replace an existing output folder")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Compares one or two folders of masks with a folder of labels and writes the report."""
    from segment.config import Config, load_config
    from segment.evaluation.class_values import parse_classes
    from segment.evaluation.compare import compare_folders
    from segment.evaluation.folders import evaluate_folders

    if options.images is not None and not os.path.isdir(options.images):
        raise InputError(f"--images {options.images}: expected a folder of scans, found none")
    if options.compare is not None and options.probabilities is not None:
        raise InputError("--probabilities: expected with --predictions, found with --compare; evaluate each alone")
    config = load_config(options.config) if options.config else Config()
    shared = {
        "config": config.evaluation,
        "seed": config.seed,
        "images": options.images,
        "classes": parse_classes(options.classes) if options.classes else None,
        "missing": options.missing,
        "workers": options.workers,
        "language": options.language,
        "force": options.force,
    }
    if options.compare is not None:
        first, second = options.compare
        return compare_folders(first, second, options.labels, options.output, **shared)
    return evaluate_folders(
        options.predictions, options.labels, options.output, probabilities=options.probabilities, **shared
    )
