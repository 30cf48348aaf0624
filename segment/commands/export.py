"""`segment export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segment.commands.arguments import Commands, add_command, import_tensorflow


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    help_line = "Write a run's network with its normalisation for other programs."
    parser = add_command(commands, "export", help_line, "segment export --run runs/ms --format onnx")
    parser.add_argument("--run", type=Path, required=True, help="run folder")
    parser.add_argument("--format", choices=("savedmodel", "onnx"), required=True)
    parser.add_argument("--output", type=Path, help="default: saved_model or model.onnx in the run folder")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Exports a run's network."""
    import_tensorflow()
    from segment.inference.export import export_run

    print(f"written: {export_run(options.run, options.output, form=options.format, force=options.force)}")
    return 0
