"""One row of lesions.csv for each label lesion and each predicted one."""

from __future__ import annotations

from typing import Any

import numpy as np

from segment.config import EvaluationConfig
from segment.data.scan import Grid
from segment.evaluation.lesions import Components, bin_names, highest_inside, size_bins
from segment.evaluation.pairs import LesionPair

COLUMNS = (
    "case_id",
    "class",
    "side",
    "lesion_id",
    "n_voxels",
    "volume_mm3",
    "size_bin",
    "centroid_world_mm",
    "bbox",
    "touches_border",
    "n_overlapping",
    "best_iou",
    "matched_id",
    "matched_iou",
    "detected_any",
    "detected_iou10",
    "score_max",
    "is_fp",
    "fp_touching",
)


def lesion_rows(
    case_id: str,
    class_name: str,
    pair: LesionPair,
    grid: Grid,
    *,
    config: EvaluationConfig,
    probability: np.ndarray | None,
) -> list[dict[str, Any]]:
    """The rows of one case and class, label lesions first, each side by lesion_id, with plain values.

    `centroid_world_mm` is [x, y, z] through the affine, `bbox` is [x0, y0, z0, x1, y1, z1] in voxels of the image, from
    the first voxel to one past the last. Whether it is detected is None for an ignored lesion and for a prediction that
    overlaps ignored ones only; `is_fp` and `fp_touching` are about the one-to-one matching and None for label lesions.

    Args:
        probability: Float [x, y, z] on the whole image, or None, which leaves `score_max` None.
    """
    fixed = {"case_id": case_id, "class": class_name}
    rows = []
    for side, other, components, found_any, ignored in (
        ("gt", "pred", pair.gt, pair.gt_overlapping > 0, pair.gt_ignored),
        ("pred", "gt", pair.pred, pair.pred_overlapping > 0, pair.pred_ignored),
    ):
        columns = _shape_columns(components, pair.origin, grid, config)
        columns |= _overlap_columns(pair, side, other, len(components))
        columns |= _verdict_columns(side, found_any, columns["matched_id"], ignored)
        columns["score_max"] = _scores(components, pair.origin, probability)
        rows += _rows({**fixed, "side": side}, columns)
    return rows


def _rows(fixed: dict[str, Any], columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Columns as rows, every name of `COLUMNS` in its order, None where there is no value."""
    count = len(columns["lesion_id"])
    values = [columns[name] if name in columns else [fixed.get(name)] * count for name in COLUMNS]
    return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*values, strict=True)]


def _shape_columns(
    components: Components, origin: np.ndarray, grid: Grid, config: EvaluationConfig
) -> dict[str, list[Any]]:
    """Size and place of each component."""
    start, stop = components.start + origin, components.stop + origin
    shape = np.array(grid.shape)
    # Along the slice axis of a 2D image every lesion would touch the border.
    at_border = ((start == 0) | (stop == shape)) & (shape > 1)
    volumes = components.n_voxels * grid.voxel_mm3
    names = bin_names(config.bin_edges_mm3)
    world = (components.centroid + origin) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    return {
        "lesion_id": list(range(1, len(components) + 1)),
        "n_voxels": components.n_voxels.tolist(),
        "volume_mm3": volumes.tolist(),
        "size_bin": [names[index] for index in size_bins(volumes, config.bin_edges_mm3)],
        "centroid_world_mm": world.tolist(),
        "bbox": np.concatenate([start, stop], axis=1).tolist(),
        "touches_border": at_border.any(axis=1).tolist(),
    }


def _overlap_columns(pair: LesionPair, own: str, other: str, count: int) -> dict[str, list[Any]]:
    """With how many of the other side each component overlaps, how well at best, and its match."""
    mine = getattr(pair.overlaps, own)
    best = np.zeros(count)
    np.maximum.at(best, mine, pair.overlaps.iou)
    matched_id: list[int | None] = [None] * count
    matched_iou: list[float | None] = [None] * count
    pairs = zip(
        getattr(pair.matches, own).tolist(),
        getattr(pair.matches, other).tolist(),
        pair.matches.iou.tolist(),
        strict=True,
    )
    for index, partner, iou in pairs:
        matched_id[index], matched_iou[index] = partner + 1, iou
    return {
        "n_overlapping": np.bincount(mine, minlength=count).tolist(),
        "best_iou": best.tolist(),
        "matched_id": matched_id,
        "matched_iou": matched_iou,
    }


def _verdict_columns(
    side: str, found_any: np.ndarray, matched_id: list[int | None], ignored: np.ndarray
) -> dict[str, list[Any]]:
    """Found or not, and false positive or not; an ignored component is neither found nor missed nor false."""
    columns: dict[str, list[Any]] = {
        "detected_any": [None if skip else bool(any_) for any_, skip in zip(found_any, ignored, strict=True)],
        "detected_iou10": [
            None if skip else match is not None for match, skip in zip(matched_id, ignored, strict=True)
        ],
    }
    if side == "pred":
        columns["is_fp"] = [detected is False for detected in columns["detected_iou10"]]
        columns["fp_touching"] = [is_fp and bool(any_) for is_fp, any_ in zip(columns["is_fp"], found_any, strict=True)]
    return columns


def _scores(components: Components, origin: np.ndarray, probability: np.ndarray | None) -> list[float | None]:
    if probability is None:
        return [None] * len(components)
    box = tuple(slice(first, first + length) for first, length in zip(origin, components.labels.shape, strict=True))
    return highest_inside(components, probability[box]).tolist()
