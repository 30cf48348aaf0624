"""Pictures of validation slices: the label's and the prediction's outlines on the scan, a few cases each time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segment.data.preprocessing import PreparedCase
from segment.data.scan import read_scan
from segment.evaluation.overlays import overlay_rgb
from segment.evaluation.pictures import CasePictures

CASES = 4  # with a picture at each validation, as many as the run's page shows
PIXELS = 256


def pictured_cases(prepared: Sequence[PreparedCase]) -> frozenset[str]:
    """The names of the cases that get a picture: the first few with lesions, and then the first without."""
    ordered = sorted(prepared, key=lambda case: len(case.lesions) == 0)  # stable: else in the order of the data
    return frozenset(case.case.case_id for case in ordered[:CASES])


def slice_picture(case: PreparedCase, mask: np.ndarray) -> np.ndarray | None:
    """The slice with the most of the label, uint8 [rows, columns, 3]; None for a case without a label file.

    Args:
        case: Its files are read again; the first channel is shown.
        mask: uint8 [X, Y, Z], predicted on the case's own grid.

    Raises:
        InputError: A file has vanished or cannot be read.
    """
    scan = read_scan(case.case, with_label=True)
    if scan.label is None:
        return None
    return overlay_rgb(CasePictures(scan.image[..., 0], scan.label, mask, scan.grid), pixels=PIXELS)
