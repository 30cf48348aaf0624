"""`segment merge-reports`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segment.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    help_line = "Join the shards of a prediction into one report, manifest and table of failures."
    parser = add_command(commands, "merge-reports", help_line, "segment merge-reports predictions/")
    parser.add_argument("output", type=Path, help="the folder that `segment infer --shard` wrote")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Joins what the shards of a prediction wrote."""
    from segment.inference.merge import merge_reports

    return merge_reports(options.output)
