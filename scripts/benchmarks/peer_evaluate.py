"""The pair of `evaluate.py` by panoptica or by MONAI's metrics. Prints JSON; runs in the peers' environment."""

from __future__ import annotations

import json
import os
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
from pair_options import figures_of, load_pair, parse_options

MATCH_IOU = 0.1


def main() -> None:
    """One measurement with `--tool panoptica` or `--tool monai`."""
    os.environ["PANOPTICA_CITATION_REMINDER"] = "false"
    warnings.simplefilter("ignore")
    options = parse_options()
    result = (panoptica if options.tool == "panoptica" else monai)(options)
    print(json.dumps(result))


def panoptica(options: Any) -> dict[str, Any]:
    """Components, one-to-one matching by IoU, Dice and IoU, and the same figures of the whole masks as ours."""
    from panoptica import ConnectedComponentsInstanceApproximator, InputType, Panoptica_Evaluator
    from panoptica.instance_matcher import MaxBipartiteMatching
    from panoptica.metrics import Metric

    whole = [Metric.DSC, Metric.IOU]
    if options.what == "distances":
        whole += [Metric.HD95, Metric.NSD]
    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=MaxBipartiteMatching(matching_metric=Metric.IOU, matching_threshold=MATCH_IOU),
        instance_metrics=[Metric.DSC, Metric.IOU],
        global_metrics=whole,
    )

    def evaluate(label: np.ndarray, prediction: np.ndarray) -> Any:
        return evaluator.evaluate(prediction, label, voxelspacing=tuple(options.spacing), verbose=False)["ungrouped"]

    result = figures_of(evaluate, load_pair(options), repeats=options.repeats)
    found = result.pop("value")
    figures = {"label lesions": found.tp + found.fn, "predicted lesions": found.tp + found.fp}
    figures |= {"lesions found": found.tp, "lesions missed": found.fn, "false positives": found.fp}
    figures |= {"mean IoU of matches": found.sq, "Dice": found.global_bin_dsc, "IoU": found.global_bin_iou}
    if options.what == "distances":
        figures |= {"HD95 mm": found.global_bin_hd95, "surface Dice 1 mm": found.global_bin_nsd}
    figures = {name: float(value) for name, value in figures.items()}
    return result | {"figures": figures, "versions": f"panoptica {version('panoptica')}"}


def monai(options: Any) -> dict[str, Any]:
    """Dice and IoU of the whole masks, and HD95 and surface Dice with sub-voxels; MONAI matches no lesions."""
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

    def evaluate(label: torch.Tensor, prediction: torch.Tensor) -> dict[str, float]:
        figures = {"Dice": compute_dice(prediction, label), "IoU": compute_iou(prediction, label)}
        if options.what == "distances":
            shared: dict[str, Any] = {"include_background": True, "spacing": list(options.spacing)}
            figures["HD95 mm"] = compute_hausdorff_distance(prediction, label, percentile=95, **shared)
            figures["surface Dice 1 mm"] = compute_surface_dice(
                prediction, label, class_thresholds=[1.0], use_subvoxels=True, **shared
            )
        return {name: float(value) for name, value in figures.items()}

    result = figures_of(
        evaluate,
        load_pair(options),
        repeats=options.repeats,
        prepare=lambda mask: torch.from_numpy(mask)[None, None].float(),
    )
    figures = result.pop("value")
    return result | {"figures": figures, "versions": f"MONAI {version('monai')}, torch {version('torch')}"}


if __name__ == "__main__":
    main()
