"""`segment train`."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from segment.commands.arguments import Commands, add_command, import_tensorflow


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    example = "python scripts/train.py configs/quickstart.yaml train.steps=500 --run-dir runs/short"
    parser = add_command(commands, "train", "Train a model from a configuration file.", example)
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="options that replace those of the file")
    parser.add_argument("--run-dir", type=Path, help="the run folder (run_dir in the file)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")
    parser.add_argument("--force", action="store_true", help="replace an existing run folder")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Trains one model and prints the command that predicts with it."""
    from segment.config import load_config

    overrides = list(options.overrides)
    if options.run_dir is not None:
        overrides.append(f"run_dir={json.dumps(str(options.run_dir))}")
    config = load_config(options.config, overrides)  # before the long import: a typing error is answered at once
    import_tensorflow()
    from segment.training.trainer import train as train_run

    result = train_run(config, resume=options.resume, force=options.force)
    if result.summary is not None:
        print(f"next:    segment infer --run {shlex.quote(str(result.run_dir))} --input SCANS --output PREDICTIONS")
    return result.exit_code
