"""Makes the sample dataset: brain-like phantoms with lesions, see sample_data/README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segment.config import Config, EvaluationConfig
from segment.data.sample_data import write_sample_data
from segment.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 2 when the output cannot be written or a seed is not valid."""
    defaults = Config()
    parser = argparse.ArgumentParser(
        description="Makes 12 brain-like phantoms with lesions (8 to train on, 4 held out) in nnU-Net v2 layout, "
        "in about a minute. The same seed gives the same bytes.",
        epilog="Exit code 0: done; 2: bad usage, or the folder holds other files or cannot be written.",
    )
    parser.add_argument("--output", type=Path, default=defaults.data.root, help="folder to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of all random numbers (default: %(default)s)")
    parser.add_argument(
        "--force", action="store_true", help="replace the folder if an earlier run of this command made it"
    )
    options = parser.parse_args(arguments)
    try:
        if options.seed < 0:
            raise InputError(f"--seed: expected a whole number of at least 0, found {options.seed}")
        edges = EvaluationConfig().bin_edges_mm3
        summaries = write_sample_data(options.output, seed=options.seed, force=options.force, bin_edges_mm3=edges)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lesions = sum(len(summary.volumes_mm3) for summary in summaries)
    print(f"wrote {len(summaries)} cases with {lesions} lesions to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
