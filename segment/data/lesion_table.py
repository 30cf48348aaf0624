"""The lesions of a case on the network grid, listed so that a patch around one is drawn without searching the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np

from segment.data.components import label_components
from segment.data.mapped import map_npy


@dataclass(frozen=True, eq=False)
class LesionTable:
    """The lesions of one case: 26-connected components per class on the network grid.

    Attributes:
        value: int64 [lesions]: label value of the class.
        volume_mm3: float64 [lesions]: on the network grid.
        box: int64 [lesions, 3, 2]: start and stop per axis of the bounding box, in network voxels.
        offset: int64 [lesions + 1]: lesion i owns entries offset[i] to offset[i + 1] of the voxel file.
        voxels_path: .npy of int64 flat indices (C order) into the network grid, lesion by lesion, rising within each.
    """

    value: np.ndarray
    volume_mm3: np.ndarray
    box: np.ndarray
    offset: np.ndarray
    voxels_path: Path

    def __len__(self) -> int:
        return len(self.value)

    def voxels(self, lesion: int) -> np.ndarray:
        """int64 [voxels]: flat indices of a lesion's voxels, memory-mapped."""
        voxels = map_npy(self.voxels_path, np.int64, (int(self.offset[-1]),))
        return voxels[self.offset[lesion] : self.offset[lesion + 1]]


def find_lesions(label: np.ndarray, values: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lists the 26-connected components of each class.

    Args:
        label: uint8 [x, y, z].
        values: Label values of the foreground classes; others are background.

    Returns:
        value int64 [n]; box int64 [n, 3, 2] of starts and stops; offset int64 [n + 1]; voxels int64 [total], flat
        C-order indices lesion by lesion. n is 0 for an empty label.
    """
    value: list[int] = []
    box: list[list[list[int]]] = []
    counts: list[int] = []
    voxels = [np.zeros(0, np.int64)]
    for current in values:
        inside = label == current
        components = label_components(inside, connectivity=26)[0] if inside.any() else None
        if components is None:
            continue
        flat = np.flatnonzero(components)
        owner = components.reshape(-1)[flat]
        voxels.append(flat[np.argsort(owner, kind="stable")])
        for slices in cc3d.statistics(components)["bounding_boxes"][1:]:
            box.append([[side.start, side.stop] for side in slices])
        counts.extend(np.bincount(owner)[1:])
        value.extend([current] * (len(box) - len(value)))
    offset = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return np.array(value, np.int64), np.array(box, np.int64).reshape(-1, 3, 2), offset, np.concatenate(voxels)
