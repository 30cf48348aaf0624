"""Cases of a line of voxels, searched for their operating point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from inference_helpers import quick_config

from segment.data.scan import Grid
from segment.inference.operating_point import PointSearch


def row(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)


def searched(cases: Mapping[str, tuple[np.ndarray, np.ndarray]], **inference: object) -> dict[str, Any]:
    """operating_point.json's content for cases of (label, probability), 1 mm3 a voxel."""
    search = PointSearch(quick_config(**inference))
    for case_id, (label, probability) in cases.items():
        search.add(case_id, label > 0, probability, Grid(label.shape, np.eye(4)))
    return search.finish(model_sha256="m", inputs={f"{case_id}.nii": f"sha-{case_id}" for case_id in cases})


# Both lesions need 0.3; at 0.3 a single voxel of 0.35 is a false positive in each of the two scans, 2 mm3 removes it.
CASES = {
    "a": (row(1, 1, 0, 0, 0, 0), row(0.9, 0.9, 0, 0.35, 0, 0)),
    "b": (row(1, 1, 0, 0, 0, 0), row(0.3, 0.3, 0, 0.35, 0, 0)),
}
