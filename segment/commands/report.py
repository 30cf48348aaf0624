"""`segment report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from segment.commands.arguments import LANGUAGES, Commands, add_command


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    help_line = "Draw the page of a training run, finished or not."
    parser = add_command(commands, "report", help_line, "segment report runs/quickstart")
    parser.add_argument("run_dir", type=Path, help="the run folder")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of the page's labels")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Draws the page of a training run."""
    from segment.evaluation.run_page import write_run_page

    print(f"curves, validations and configuration: {write_run_page(options.run_dir, language=options.language)}")
    return 0
