"""`segment check`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from segment.commands.arguments import Commands, add_command, at_least_one


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    parser = add_command(commands, "check", "Look for faults in a dataset.", "python scripts/check_data.py sample_data")
    parser.add_argument("dataset", type=Path, help="dataset folder, or a CSV manifest")
    parser.add_argument("--layout", choices=["auto", "nnunet", "csv"], default="auto")
    parser.add_argument("--workers", type=at_least_one, default=2, help="cases read at a time (default: 2)")
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Reads every file of a dataset and lists what is wrong with it."""
    from segment.data.cases import find_dataset
    from segment.data.checks import audit_dataset

    dataset = find_dataset(options.dataset, layout=options.layout)
    findings = audit_dataset(dataset, workers=options.workers)
    for finding in findings:
        print(f"{finding.severity}: {finding.message}")
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{len(dataset.cases)} cases; errors: {errors}, warnings: {len(findings) - errors}")
    if not errors:
        print(f"next: segment train CONFIG.yaml data.root={shlex.quote(str(options.dataset))}")
    return 2 if errors else 0
