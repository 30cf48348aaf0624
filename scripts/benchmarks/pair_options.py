"""What the timed processes of `evaluate.py` share in both environments: options, input, measurement."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from memory import extra_mib
from timing import seconds_of


def parse_options() -> argparse.Namespace:
    """The command line of a timed process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="holds label.npy and prediction.npy")
    parser.add_argument("--what", choices=["counts", "distances"], required=True)
    parser.add_argument("--tool", default="")
    parser.add_argument("--order", choices=["F", "C"], required=True, help="memory layout of the masks")
    parser.add_argument("--spacing", type=float, nargs=3, required=True, help="mm")
    parser.add_argument("--repeats", type=int, required=True)
    return parser.parse_args()


def load_pair(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Label and prediction, uint8 [x, y, z]."""
    label, prediction = (
        np.asarray(np.load(options.folder / f"{name}.npy"), order=options.order) for name in ("label", "prediction")
    )
    return label, prediction


def figures_of(
    evaluate: Callable[[Any, Any], Any],
    pair: Sequence[np.ndarray],
    *,
    repeats: int,
    prepare: Callable[[np.ndarray], Any] = lambda mask: mask,
) -> dict[str, Any]:
    """Extra memory of the first call on the pair, seconds of each of the others, and the value of one.

    Args:
        evaluate: Compares a label and a prediction.
        pair: Label and prediction.
        repeats: Counted calls.
        prepare: Makes of a mask what `evaluate` takes; not measured.
    """
    cube = np.zeros((24, 24, 24), np.uint8)
    cube[8:12, 8:12, 8:12] = 1
    small = prepare(cube)
    evaluate(small, small)  # so that what is imported late is there before the memory is measured
    label, prediction = map(prepare, pair)
    mib = extra_mib(lambda: evaluate(label, prediction))
    taken = seconds_of(lambda: evaluate(label, prediction), repeats=repeats)
    return {"extra_mib": mib, "seconds": taken, "value": evaluate(label, prediction)}
