"""Whole-volume validation: the network on whole scans, measured on their own grids as a reader would see the masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from segment.config import Config
from segment.data.grid import Grid
from segment.data.planning import Plan
from segment.data.preprocessing import PreparedCase, to_original
from segment.data.scan import read_mask, read_scan, write_mask
from segment.errors import InputError
from segment.evaluation.metrics import CaseResult, evaluate_case
from segment.evaluation.pictures import CasePictures
from segment.evaluation.summary import summarise
from segment.evaluation.tables import write_report
from segment.files import atomic_path
from segment.inference.model_file import compile_forward, window_batch
from segment.inference.operating_point import PointSearch, least_volume
from segment.inference.slabs import predict_volume
from segment.inference.tiles import Forward, to_mask
from segment.training.selection import BudgetSearch


def make_forward(model: tf.keras.Model, plan: Plan, config: Config, *, before: Callable[[], None]) -> Forward:
    """The model as `predict_volume` takes it; `before` is called before each batch and may raise to stop."""
    compiled = compile_forward(model, plan, batch=window_batch(config))

    def forward(windows: np.ndarray) -> np.ndarray:
        before()
        return compiled(windows)

    return forward


def predict_case(
    forward: Forward, case: PreparedCase, plan: Plan, config: Config, *, flips: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts a prepared case on the grid of its own scan, with the network's mirrored views if asked for.

    Returns:
        mask uint8 [X, Y, Z] of the dataset's label values, and probabilities float32 [X, Y, Z, classes].
    """
    options = config.inference
    on_network_grid = predict_volume(
        forward, case.image(), plan, overlap=options.overlap, window_batch=window_batch(config), flips=flips
    )
    probabilities = to_original(on_network_grid, case.placement)
    mask = to_mask(
        probabilities,
        plan,
        threshold=options.threshold,
        min_lesion_mm3=least_volume(config),
        voxel_mm3=case.placement.grid.voxel_mm3,
    )
    return mask, probabilities


def evaluate_prepared(
    forward: Forward,
    prepared: Sequence[PreparedCase],
    plan: Plan,
    config: Config,
    *,
    full: bool,
    keep: Callable[[PreparedCase, np.ndarray], None],
    search: PointSearch | BudgetSearch,
) -> list[CaseResult]:
    """Predicts each case and compares it with its label file, one result for each case and class.

    Args:
        prepared: Cases with labels.
        full: As a scan will be predicted, with flips where the configuration has them, and with HD95, surface Dice and
            the greatest probability in each lesion; slower.
        keep: Called with each case and its mask, for example to write it.
        search: Is shown each case and class, to choose the operating point or the model.

    Raises:
        InputError: A label file has vanished or changed its grid.
    """
    results: list[CaseResult] = []
    for case in prepared:
        mask, probabilities = predict_case(forward, case, plan, config, flips=full and config.inference.flips)
        keep(case, mask)
        label, grid = _read_label(case)
        for channel, (name, value) in enumerate(plan.label_values.items()):
            probability = probabilities[..., channel]
            result = evaluate_case(
                case.case.case_id,
                label,
                mask,
                grid,
                config=config.evaluation,
                value=value,
                class_name=name,
                probability=probability if full else None,
                distances=full,
            )
            if isinstance(search, PointSearch):
                sweep = search.add(case.case.case_id, label == value, probability, grid)
                result = replace(result, sweep=sweep)
            else:
                search.add(label == value, probability, grid)
            results.append(result)
    return results


def _read_label(case: PreparedCase) -> tuple[np.ndarray, Grid]:
    if case.case.label_path is None:
        raise InputError(f"case {case.case.case_id}: expected a label file for validation, found none")
    label, grid = read_mask(case.case.label_path)
    if case.case.half is not None:  # which half of the label it is, the image decides
        half = read_scan(case.case, with_label=True).label
        label = label if half is None else half
    if not grid.matches(case.placement.grid):
        raise InputError(f"case {case.case.case_id}: {case.case.label_path} changed its grid since the run began")
    return label, grid


def quick_validation(
    forward: Forward,
    prepared: Sequence[PreparedCase],
    plan: Plan,
    config: Config,
    *,
    keep: Callable[[PreparedCase, np.ndarray], None],
) -> dict[str, Any]:
    """A validation during training: the summary, without intervals that nobody reads, and the figures at the budget.

    Args:
        keep: As for `evaluate_prepared`.

    Returns:
        As `summarise`, with one bootstrap draw, and `at_budget` as `BudgetSearch.figures` gives it.
    """
    search = BudgetSearch(config, n_scans=len(prepared))
    results = evaluate_prepared(forward, prepared, plan, config, full=False, keep=keep, search=search)
    quick = config.evaluation.model_copy(update={"bootstrap_draws": 1})
    return summarise(results, config=quick, seed=config.seed, inputs={}) | {"at_budget": search.figures()}


def save_model(model: tf.keras.Model, path: Path) -> None:
    """Writes the model file atomically. Raises InputError when it cannot be written."""
    with atomic_path(path) as temporary:
        model.save(temporary)


def write_validation(
    forward: Forward,
    prepared: Sequence[PreparedCase],
    plan: Plan,
    config: Config,
    *,
    folder: Path,
    inputs: dict[str, str],
    search: PointSearch,
) -> dict[str, Any]:
    """Predicts the validation cases once more in full: masks/CASE.nii.gz and report/ in `folder`.

    Args:
        inputs: SHA-256 by path of the files that were read, for the report.
        search: Is shown every case, to choose the operating point; the masks are those of the configured one.

    Returns:
        The report's summary.
    """
    masks = folder / "masks"
    masks.mkdir(parents=True, exist_ok=True)

    def keep(case: PreparedCase, mask: np.ndarray) -> None:
        scan = read_scan(case.case, with_label=False)
        write_mask(masks / f"{case.case.case_id}.nii.gz", mask, scan.grid, scan.header)

    results = evaluate_prepared(forward, prepared, plan, config, full=True, keep=keep, search=search)
    by_id = {case.case.case_id: case for case in prepared}

    def pictures(case_id: str) -> CasePictures | None:
        scan = read_scan(by_id[case_id].case, with_label=True)
        mask, _ = read_mask(masks / f"{case_id}.nii.gz")
        return None if scan.label is None else CasePictures(scan.image[..., 0], scan.label, mask, scan.grid)

    return write_report(
        results,
        folder / "report",
        config=config.evaluation,
        seed=config.seed,
        inputs=inputs,
        scans=pictures,
        operating_point={"threshold": config.inference.threshold, "min_lesion_mm3": least_volume(config)},
    )
