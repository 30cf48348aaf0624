"""`segment check`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from segment.commands.arguments import Commands, add_command, at_least_one
from segment.errors import InputError


def add(commands: Commands) -> None:
    """Adds the command's parser."""
    example = "python scripts/check_data.py sample_data --output audit.json"
    parser = add_command(commands, "check", "Look for faults in a dataset, and count its lesions.", example)
    parser.add_argument(
        "dataset", type=Path, help="folder with dataset.json (nnU-Net v2, MSD), BIDS folder, or CSV manifest"
    )
    parser.add_argument("--layout", choices=["auto", "nnunet", "msd", "bids", "csv"], help="default: auto")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG.yaml",
        help="take layout, BIDS filters, spacing and size bins from the configuration that will be trained",
    )
    parser.add_argument("--workers", type=at_least_one, default=2, help="cases read at a time (default: 2)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("audit.json"),
        help="where all that is found is written (default: %(default)s)",
    )
    parser.set_defaults(function=run)


def run(options: argparse.Namespace) -> int:
    """Reads every file of a dataset, lists what is wrong with it and what its labels hold, and writes audit.json."""
    from segment.commands.check_tables import print_audit
    from segment.config import Config, load_config
    from segment.data.audit import ResampledCase, audit_resampling
    from segment.data.audit_file import claim_audit, planned_spacing, write_audit
    from segment.data.cases import find_dataset
    from segment.data.checks import audit_dataset, valid_cases

    config = load_config(options.config) if options.config else Config()
    claim_audit(options.output)
    dataset = find_dataset(options.dataset, layout=options.layout or config.data.layout, bids=config.data.bids)
    audit = audit_dataset(dataset, workers=options.workers)
    sound = valid_cases(dataset, audit)
    spacing = planned_spacing(audit, sound, config)
    resampled: Sequence[ResampledCase] = ()
    failed = None  # said after all that the audit has found
    if spacing:
        try:
            resampled = audit_resampling(sound, spacing_mm=spacing, workers=options.workers)
        except InputError as cause:
            failed = cause
    edges = config.evaluation.bin_edges_mm3
    try:
        write_audit(options.output, dataset, audit, resampled, spacing_mm=spacing, edges_mm3=edges)
        output = options.output
    except InputError as cause:
        output, failed = None, failed or cause
    print_audit(dataset, audit, resampled, spacing_mm=spacing, edges_mm3=edges, output=output)
    if failed is not None:
        raise failed
    if audit.errors:
        return 2
    layout = f" data.layout={options.layout}" if options.layout else ""
    given = shlex.quote(str(options.config or "CONFIG.yaml"))
    print(f"next: segment train {given} data.root={shlex.quote(str(options.dataset))}{layout}")
    return 0
