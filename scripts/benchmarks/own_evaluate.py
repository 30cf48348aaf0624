"""The evaluation of one pair of masks by this package, timed in a process of its own. Prints JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from pair_options import figures_of, load_pair, parse_options

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.evaluation.definitions import versions
from segment.evaluation.metrics import evaluate_case


def main() -> None:
    """One measurement: counts, matching, Dice and IoU, and with `distances` HD95 and surface Dice too."""
    options = parse_options()
    config = EvaluationConfig()

    def evaluate(label: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
        grid = Grid(label.shape, np.diag([*options.spacing, 1.0]))
        distances = options.what == "distances"
        return evaluate_case("made", label, prediction, grid, config=config, distances=distances).case

    result = figures_of(evaluate, load_pair(options), repeats=options.repeats)
    case = result.pop("value")
    figures = {"label lesions": case["n_gt"], "predicted lesions": case["n_pred"]}
    figures |= {f"lesions {name}": case["iou10"][key] for name, key in (("found", "tp"), ("missed", "fn"))}
    figures |= {"false positives": case["iou10"]["fp"], "mean IoU of matches": case["mean_matched_iou"]}
    figures |= {"Dice": case["dice"], "IoU": case["iou"], "HD95 mm": case["hd95_mm"]}
    figures["surface Dice 1 mm"] = case["surface_dice_1mm"]
    print(json.dumps(result | {"figures": figures, "versions": f"segment {versions()['segment']}"}))


if __name__ == "__main__":
    main()
