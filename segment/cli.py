"""The command line: one function per command. `scripts/*.py` and the console command `segment` both come here.

Exit codes: 0 all done; 1 some cases failed and the rest are written; 2 bad usage, configuration or data, said in one line;
130 and 143 stopped by Ctrl-C or SIGTERM after a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from segment import __version__
from segment.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. `arguments` are those after the program's name; None takes the process's own. Returns the exit code."""
    options = _parser().parse_args(arguments)
    _quiet_libraries()
    try:
        return int(options.run(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _quiet_libraries() -> None:
    # TensorFlow prints its start-up notes below level 3 and albumentations asks the network for its newest version,
    # both at import, so this comes before either.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    os.environ.setdefault("MPLBACKEND", "Agg")


def train(options: argparse.Namespace) -> int:
    """Trains one model and prints the command that predicts with it."""
    from segment.config import load_config
    from segment.training.trainer import train as run

    overrides = list(options.overrides)
    if options.run_dir is not None:
        overrides.append(f"run_dir={options.run_dir}")
    return run(load_config(options.config, overrides), resume=options.resume, force=options.force)


def infer(options: argparse.Namespace) -> int:
    """Predicts scans with one or more runs, and reports on them when labels are given."""
    from segment.inference.batch import predict_cases

    return predict_cases(
        options.run,
        options.input,
        options.output,
        labels=options.labels,
        probabilities=options.probabilities,
        threshold=options.threshold,
        force=options.force,
    )


def evaluate(options: argparse.Namespace) -> int:
    """Compares a folder of masks with a folder of labels and writes the report."""
    from segment.config import EvaluationConfig
    from segment.evaluation.folders import evaluate_folders

    return evaluate_folders(
        options.predictions,
        options.labels,
        options.output,
        config=EvaluationConfig(),
        probabilities=options.probabilities,
        force=options.force,
    )


def check(options: argparse.Namespace) -> int:
    """Reads every file of a dataset and lists what is wrong with it."""
    from segment.data.cases import find_dataset
    from segment.data.checks import check_all

    return check_all(find_dataset(options.dataset, layout=options.layout), workers=options.workers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segment", description="Trains U-Nets that find small lesions, and reports on them.")
    parser.add_argument("--version", action="version", version=f"segment {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_train, _add_infer, _add_evaluate, _add_check):
        add(commands)
    return parser


Commands = argparse._SubParsersAction


def _command(commands: Commands, name: str, help_line: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=help_line,
        description=help_line,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_train(commands: Commands) -> None:
    example = "python scripts/train.py configs/quickstart.yaml train.steps=500 --run-dir runs/short"
    parser = _command(commands, "train", "Train a model from a configuration file.", example)
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="options that replace those of the file")
    parser.add_argument("--run-dir", type=Path, help="the run folder (run_dir in the file)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")
    parser.add_argument("--force", action="store_true", help="replace an existing run folder")
    parser.set_defaults(run=train)


def _add_infer(commands: Commands) -> None:
    example = "python scripts/infer.py --run runs/ms --input scans/ --output predictions/ --labels labels/"
    parser = _command(commands, "infer", "Write masks for new scans, and the report when labels are given.", example)
    parser.add_argument("--run", type=Path, action="append", required=True, help="run folder; several are averaged")
    parser.add_argument("--input", type=Path, required=True, help="a scan, a folder of CASE_0000.nii.gz files, or a CSV manifest")
    parser.add_argument("--output", type=Path, required=True, help="new folder for masks, report and manifest")
    parser.add_argument("--labels", type=Path, help="folder of expert masks CASE.nii.gz, to report on the result")
    parser.add_argument("--probabilities", action="store_true", help="write the probability maps too")
    parser.add_argument("--threshold", type=_open_share, help="probability from which a voxel is lesion (default: the run's)")
    parser.add_argument("--force", action="store_true", help="replace an existing output folder")
    parser.set_defaults(run=infer)


def _add_evaluate(commands: Commands) -> None:
    example = "python scripts/evaluate.py --predictions predictions/masks --labels labels/ --output report/"
    parser = _command(commands, "evaluate", "Report on masks from any tool against expert labels.", example)
    parser.add_argument("--predictions", type=Path, required=True, help="folder of masks CASE.nii.gz")
    parser.add_argument("--labels", type=Path, required=True, help="folder of expert masks CASE.nii.gz")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the report")
    parser.add_argument("--probabilities", type=Path, help="folder of probability maps CASE.nii.gz")
    parser.add_argument("--force", action="store_true", help="replace an existing output folder")
    parser.set_defaults(run=evaluate)


def _add_check(commands: Commands) -> None:
    parser = _command(commands, "check", "Look for faults in a dataset.", "python scripts/check_data.py sample_data")
    parser.add_argument("dataset", type=Path, help="dataset folder, or a CSV manifest")
    parser.add_argument("--layout", choices=["auto", "nnunet", "csv"], default="auto")
    parser.add_argument("--workers", type=int, default=2)
    parser.set_defaults(run=check)


def _open_share(text: str) -> float:
    value = float(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, found {text}")
    return value
