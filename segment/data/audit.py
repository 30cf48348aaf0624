"""What the network's grid does to the lesions, before any training: labels sent to it and back.

A lesion that is gone after the way there and back cannot be found by any network on that grid, and of lesions that
have become one component at most one can be matched one-to-one: together they are the ceiling on recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np

from segment.data.cases import Case, Dataset
from segment.data.components import label_components
from segment.data.preprocessing import label_to_network, place, to_original
from segment.data.scan import read_scan
from segment.progress import in_threads


@dataclass(frozen=True)
class AuditedLesion:
    """A lesion of a label file: its class, volume, and the voxel of the file nearest to its centre of mass."""

    class_name: str
    volume_mm3: float
    voxel: tuple[int, int, int]


@dataclass(frozen=True)
class ResampledCase:
    """What the grid does to the lesions of one case.

    Attributes:
        case_id: The case.
        lesions: Number in its label file.
        findable: How many of them a network on the grid can find at most, matched one-to-one.
        vanished: Lesions of which no voxel is left.
        merged: Groups of lesions that share a component afterwards.
    """

    case_id: str
    lesions: int
    findable: int
    vanished: tuple[AuditedLesion, ...]
    merged: tuple[tuple[AuditedLesion, ...], ...]


def audit_resampling(dataset: Dataset, *, spacing_mm: Sequence[float], workers: int) -> list[ResampledCase]:
    """Sends each label to the grid of a spacing and back, with the functions that training and inference use.

    Args:
        dataset: Of cases without errors.
        spacing_mm: Of the network's grid, per canonical axis.
        workers: Threads; each holds one case in memory.

    Returns:
        One entry for each case, in order.

    Raises:
        InputError: A file cannot be read; names the case and the file.
    """
    return in_threads(
        "Resampling labels", lambda case: _audit_case(case, dataset, spacing_mm), dataset.cases, workers=workers
    )


def ceiling_on_recall(cases: Sequence[ResampledCase]) -> float | None:
    """Share of all lesions that can be found at most; None where there are none."""
    lesions = sum(case.lesions for case in cases)
    return sum(case.findable for case in cases) / lesions if lesions else None


def _audit_case(case: Case, dataset: Dataset, spacing_mm: Sequence[float]) -> ResampledCase:
    scan = read_scan(case, with_label=True)
    grid = scan.grid
    label = np.zeros(grid.shape, np.uint8) if scan.label is None else scan.label
    placement = place(scan, spacing_mm)
    del scan  # the image has said where the crop lies
    network = label_to_network(label, placement)
    lesions = findable = 0
    vanished: list[AuditedLesion] = []
    merged: list[tuple[AuditedLesion, ...]] = []
    for name, value in dataset.label_values.items():
        back = to_original((network == value).astype(np.float32)[..., None], placement)[..., 0] >= 0.5
        before, count = label_components(label == value, connectivity=26)
        if not count:
            continue
        own = _lesions(before, name, grid.voxel_mm3)
        groups, best = _groups(before, back, count)
        kept = {lesion for group in groups for lesion in group}
        lesions, findable = lesions + count, findable + best
        vanished += [own[index] for index in range(count) if index + 1 not in kept]
        merged += [tuple(own[lesion - 1] for lesion in group) for group in groups if len(group) > 1]
    return ResampledCase(case.case_id, lesions, findable, tuple(vanished), tuple(merged))


def _lesions(components: np.ndarray, class_name: str, voxel_mm3: float) -> list[AuditedLesion]:
    statistics = cc3d.statistics(components)
    lesions = []
    for count, centre in zip(statistics["voxel_counts"][1:], statistics["centroids"][1:], strict=True):
        x, y, z = (round(float(place)) for place in centre)
        lesions.append(AuditedLesion(class_name, float(count * voxel_mm3), (x, y, z)))
    return lesions


def _groups(before: np.ndarray, back: np.ndarray, count: int) -> tuple[list[list[int]], int]:
    """Lesions that hang together through the components that came back, and how many can be matched one-to-one.

    Args:
        before: Components of the label, 1 to `count`.
        back: bool mask that came back.
        count: Number of lesions.

    Returns:
        Groups of lesion numbers, in their order, without those that share no voxel with what came back; and the sum
        over the groups of the smaller of lesions and components.
    """
    after, after_count = label_components(back, connectivity=26)
    both = (before > 0) & back
    pairs = np.unique(np.stack([before[both].astype(np.int64), after[both].astype(np.int64)], axis=1), axis=0)
    root = list(range(count + after_count + 1))  # lesions 1..count, components behind them

    def find(node: int) -> int:
        while root[node] != node:
            node = root[node]
        return node

    for lesion, component in pairs:
        a, b = sorted((find(int(lesion)), find(count + int(component))))
        root[b] = a
    members: dict[int, list[int]] = {}
    components: dict[int, int] = {}
    for lesion in np.unique(pairs[:, 0]):
        members.setdefault(find(int(lesion)), []).append(int(lesion))
    for component in np.unique(pairs[:, 1]):
        group = find(count + int(component))
        components[group] = components.get(group, 0) + 1
    return list(members.values()), sum(min(len(own), components[group]) for group, own in members.items())
