"""How lesions are counted, in words: stored in every summary, because public tools differ on each of these rules."""

from __future__ import annotations

import platform
from importlib.metadata import version

import segment
from segment.config import EvaluationConfig


def definitions(config: EvaluationConfig) -> dict[str, str]:
    """The rules that the figures follow, by name; the same configuration gives the same text."""
    edges = ", ".join(f"{edge:g}" for edge in config.bin_edges_mm3)
    least = f"{config.min_lesion_mm3:g} mm3"
    smallest = (
        f"label lesions below {least} are ignored: neither found nor missed, a prediction that overlaps"
        " only ignored ones is no false positive, and both are left out of Dice, IoU, distances; predicted components"
        " below it are removed"
        if config.min_lesion_mm3
        else "none: every component counts"
    )
    return {
        "lesion": "a 26-connected component of one class's mask (8-connected in 2D); nothing is dilated or filled",
        "volume": "voxels times the absolute determinant of the affine; spacing is the column norms of the affine",
        "size_bins": f"by label volume in mm3, upper edges {edges} included, compared with relative tolerance 1e-6",
        "small": f"a label lesion of at most {config.small_mm3:g} mm3",
        "minimum_size": smallest,
        "any": "found when at least one voxel is shared; counted on each side",
        "iou10": f"one-to-one, the assignment with the greatest total IoU among pairs with IoU >= {config.match_iou:g}"
        " (inclusive); every unmatched prediction is a false positive, every unmatched lesion a miss",
        "false_positives": "binned by their own volume; per scan is over all scans, the lesion-free ones included",
        "empty_masks": "Dice, IoU and surface Dice are 0 when exactly one mask is empty and undefined when both are;"
        " recall is undefined without label lesions, precision without predictions, HD95 when a mask is empty",
        "hd95_mm": "edge voxels (6-neighbour erosion, outside the volume is background), the larger of the two directed"
        " 95th percentiles, linear interpolation, in mm",
        "surface_dice_1mm": "share of both surfaces within 1 mm by surfel area, as in google-deepmind/surface-distance",
        "micro": "pooled over all lesions (Dice and IoU over all voxels, by volume)",
        "macro": "averaged over the cases where the figure is defined",
        "intervals": f"95%, percentiles of {config.bootstrap_draws} draws of as many cases with replacement; draws in"
        " which the figure is undefined are left out; equal bounds mean that all draws agree, as they do"
        " with few cases, and are no certainty",
        "iou_histogram": "label lesions by the IoU of their match, 10 bins of 0.1, misses in the first",
        "under_resolved": "a size bin whose upper edge holds fewer than 4 voxels",
    }


def versions() -> dict[str, str]:
    """The versions of what computed the figures."""
    packages = ("numpy", "scipy", "connected-components-3d", "nibabel")
    return {"segment": segment.__version__, "python": platform.python_version()} | {
        name: version(name) for name in packages
    }
