"""The command line: one function per command. `scripts/*.py` and the console command `segment` both come here.

Exit codes: 0 all done; 1 some cases failed, the rest are written; 2 bad usage, configuration or data, said in one line;
130 and 143 stopped by Ctrl-C or SIGTERM after a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from segment import __version__
from segment.errors import InputError

LANGUAGES = ("en", "zh")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: Those after the program's name; None takes the process's own.
    """
    options = _parser().parse_args(arguments)
    _quiet_libraries()
    try:
        return int(options.function(options))
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


def _import_tensorflow() -> None:
    """Imports it without the notes that its C++ side prints whatever the log level is; errors are raised as ever."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def train(options: argparse.Namespace) -> int:
    """Trains one model and prints the command that predicts with it."""
    from segment.config import load_config

    overrides = list(options.overrides)
    if options.run_dir is not None:
        overrides.append(f"run_dir={json.dumps(str(options.run_dir))}")
    config = load_config(options.config, overrides)  # before the long import: a typing error is answered at once
    _import_tensorflow()
    from segment.training.trainer import train as run

    result = run(config, resume=options.resume, force=options.force)
    if result.exit_code == 0:
        print(f"next:    segment infer --run {shlex.quote(str(result.run_dir))} --input SCANS --output PREDICTIONS")
    return result.exit_code


def infer(options: argparse.Namespace) -> int:
    """Predicts scans with one or more runs, and reports on them when labels are given."""
    _import_tensorflow()
    from segment.inference.batch import predict_cases

    code = predict_cases(
        options.run,
        options.input,
        options.output,
        labels=options.labels,
        probabilities=options.probabilities,
        threshold=options.threshold,
        force=options.force,
    )
    if options.labels is None:
        masks = shlex.quote(str(options.output / "masks"))
        print(f"next: segment evaluate --predictions {masks} --labels LABELS --output REPORT")
    return code


def evaluate(options: argparse.Namespace) -> int:
    """Compares one or two folders of masks with a folder of labels and writes the report."""
    from segment.config import Config
    from segment.evaluation.class_values import parse_classes
    from segment.evaluation.compare import compare_folders
    from segment.evaluation.folders import evaluate_folders

    defaults = Config()
    shared = {
        "config": defaults.evaluation,
        "seed": defaults.seed,
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


def check(options: argparse.Namespace) -> int:
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


def report(options: argparse.Namespace) -> int:
    """Draws the page of a training run."""
    from segment.evaluation.run_page import write_run_page

    print(f"curves, validations and configuration: {write_run_page(options.run_dir, language=options.language)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segment", description="Trains U-Nets that find small lesions, and reports on them."
    )
    parser.add_argument("--version", action="version", version=f"segment {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_train, _add_infer, _add_evaluate, _add_check, _add_report):
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
    parser.set_defaults(function=train)


def _add_infer(commands: Commands) -> None:
    example = "python scripts/infer.py --run runs/ms --input scans/ --output predictions/ --labels labels/"
    parser = _command(commands, "infer", "Write masks for new scans, and the report when labels are given.", example)
    parser.add_argument("--run", type=Path, action="append", required=True, help="run folder; several are averaged")
    parser.add_argument(
        "--input", type=Path, required=True, help="a scan, a folder of CASE_0000.nii.gz files, or a CSV manifest"
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder for masks, report and manifest")
    parser.add_argument("--labels", type=Path, help="folder of expert masks CASE.nii.gz, to report on the result")
    parser.add_argument("--probabilities", action="store_true", help="write the probability maps too")
    parser.add_argument(
        "--threshold", type=_open_share, help="probability from which a voxel is lesion (default: the run's)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing output folder")
    parser.set_defaults(function=infer)


def _add_evaluate(commands: Commands) -> None:
    example = "python scripts/evaluate.py --predictions predictions/masks --labels labels/ --output report/"
    parser = _command(commands, "evaluate", "Report on masks from any tool against expert labels.", example)
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
        "--classes", nargs="+", default=[], metavar="NAME=VALUE", help="values of each class in the masks"
    )
    parser.add_argument(
        "--missing",
        choices=["error", "empty"],
        default="error",
        help="a case on one side only: error, or scored as empty",
    )
    parser.add_argument("--workers", type=_at_least_one, default=2, help="cases evaluated at a time (default: 2)")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of the report's labels")
    parser.add_argument("--force", action="store_true", help="replace an existing output folder")
    parser.set_defaults(function=evaluate)


def _add_check(commands: Commands) -> None:
    parser = _command(commands, "check", "Look for faults in a dataset.", "python scripts/check_data.py sample_data")
    parser.add_argument("dataset", type=Path, help="dataset folder, or a CSV manifest")
    parser.add_argument("--layout", choices=["auto", "nnunet", "csv"], default="auto")
    parser.add_argument("--workers", type=_at_least_one, default=2, help="cases read at a time (default: 2)")
    parser.set_defaults(function=check)


def _add_report(commands: Commands) -> None:
    help_line = "Draw the page of a training run, finished or not."
    parser = _command(commands, "report", help_line, "segment report runs/quickstart")
    parser.add_argument("run_dir", type=Path, help="the run folder")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="of the page's labels")
    parser.set_defaults(function=report)


def _at_least_one(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return value


def _open_share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, found {text!r}")
    return value
