"""What lesions the labels hold: number and volume of each case, by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from segment.data.components import label_components

EDGE_TOLERANCE = 1e-6  # relative; volumes come from float32 headers, and a lesion of 10 mm3 belongs to the lower bin


@dataclass(frozen=True)
class LesionLoad:
    """The lesions of one label.

    Attributes:
        volumes_mm3: Of each 26-connected component of each class, as the label file has them.
    """

    volumes_mm3: tuple[float, ...]

    @property
    def count(self) -> int:
        """Number of lesions."""
        return len(self.volumes_mm3)

    @property
    def volume_mm3(self) -> float:
        """Of all lesions together."""
        return float(sum(self.volumes_mm3))


def lesion_load(label: np.ndarray, values: Sequence[int], *, voxel_mm3: float) -> LesionLoad:
    """Measures the lesions of a label.

    Args:
        label: uint8 [x, y, z]; it may be empty.
        values: Values of the foreground classes.
        voxel_mm3: Volume of a voxel.
    """
    volumes: list[float] = []
    for value in values:
        inside = label == value
        if inside.any():
            components, _ = label_components(inside, connectivity=26)
            volumes.extend(float(count * voxel_mm3) for count in np.bincount(components[inside])[1:])
    return LesionLoad(tuple(volumes))


def bin_names(edges_mm3: Sequence[float]) -> tuple[str, ...]:
    """Names of the size bins, for example <=10, 10-50, 50-200 and >200."""
    text = [f"{edge:g}" for edge in edges_mm3]
    between = [f"{low}-{high}" for low, high in pairwise(text)]
    return (f"<={text[0]}", *between, f">{text[-1]}")


def count_by_size(load: LesionLoad, edges_mm3: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Number of lesions and their volume in mm3 in each bin; an edge belongs to the bin below it."""
    volumes = np.array(load.volumes_mm3, np.float64)
    index = np.searchsorted(np.asarray(edges_mm3, float) * (1 + EDGE_TOLERANCE), volumes)
    length = len(edges_mm3) + 1
    number = np.bincount(index, minlength=length)
    total = np.bincount(index, weights=volumes, minlength=length)
    return tuple(int(count) for count in number), tuple(float(volume) for volume in total)


def census_table(loads: Mapping[str, LesionLoad], edges_mm3: Sequence[float]) -> list[dict[str, Any]]:
    """One row a case and a last one for all: case, lesions, mm3, and number and mm3 of each bin."""
    everything = LesionLoad(tuple(volume for load in loads.values() for volume in load.volumes_mm3))
    rows = []
    for case_id, load in [*loads.items(), ("all", everything)]:
        number, total = count_by_size(load, edges_mm3)
        names = bin_names(edges_mm3)
        rows.append(
            {
                "case": case_id,
                "lesions": load.count,
                "mm3": round(load.volume_mm3, 3),
                "lesions_by_size": dict(zip(names, number, strict=True)),
                "mm3_by_size": {name: round(volume, 3) for name, volume in zip(names, total, strict=True)},
            }
        )
    return rows
