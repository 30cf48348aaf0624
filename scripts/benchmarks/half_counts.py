"""What a trained run finds in the half of a case that it has not seen, after the training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lesion_load import false_positives_by_load
from segment.commands.arguments import import_tensorflow
from segment.data.case import Case
from segment.data.orientation import Half
from segment.data.scan import read_scan
from segment.errors import InputError
from segment.evaluation.metrics import evaluate_case
from segment.inference.operating_point import PointSearch
from segment.inference.tiles import to_mask

if TYPE_CHECKING:
    from segment.inference.predictor import Predictor


def count_load(run_dir: Path, case: Case, half: Half) -> dict[str, list[int]]:
    """`false_positives_by_load` of a run and a case, without flips. Raises InputError where they cannot be read."""
    predictor = _predictor(run_dir, flips=False)
    return false_positives_by_load(predictor, read_scan(case, with_label=True), half)


def count_half(run_dir: Path, case: Case, *, flips: bool) -> dict[str, Any]:
    """Counts of a case and the first class as operating_point.json has them, and the Dice at the configured threshold.

    Args:
        run_dir: The run folder.
        case: With a label, and the half that is counted.
        flips: Whether mirrored copies of each window vote too.

    Raises:
        InputError: The run or the case cannot be read, or the case has no label.
    """
    predictor = _predictor(run_dir, flips=flips)
    scan = read_scan(case, with_label=True)
    if scan.label is None:
        raise InputError(f"case {case.case_id}: expected a label, found none")
    probabilities, config = predictor.predict(scan), predictor.config
    value = next(iter(predictor.plan.label_values.values()))
    search = PointSearch(config)
    search.add(case.case_id, scan.label == value, probabilities[..., 0], scan.grid)
    point = search.finish(model_sha256=predictor.members[0].model_sha256, inputs={})
    options = config.inference
    mask = to_mask(
        probabilities,
        predictor.plan,
        threshold=options.threshold,
        min_lesion_mm3=options.min_lesion_mm3,
        voxel_mm3=scan.grid.voxel_mm3,
    )
    result = evaluate_case(
        case.case_id, scan.label, mask, scan.grid, config=config.evaluation, value=value, distances=False
    )
    return {"counts": point["counts"], "dice": result.case["dice"]}


def _predictor(run_dir: Path, *, flips: bool) -> Predictor:
    import_tensorflow()
    from segment.inference.predictor import Predictor

    return Predictor.load([run_dir], changes={"flips": flips})
