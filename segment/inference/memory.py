"""How much memory a prediction takes, worked out before a voxel is read, and what is done to stay below a limit.

The terms follow the code that they describe (`read_scan`, `to_network`, `predict_slabs`, `restore_slabs`, the writers).
A test compares the sum with the peak of a whole prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from segment.data.geometry import canonical_spacing, network_shape
from segment.data.grid import Grid
from segment.data.planning import Plan
from segment.data.scan import Case, ScanError, read_grid
from segment.inference.model_file import network_shape as input_shape
from segment.inference.slabs import RESTORED_VALUES, slab_axis
from segment.memory_use import resident_bytes

if TYPE_CHECKING:
    from segment.inference.predictor import Member

GIB = 2**30
LEAST_SLABS, MOST_SLABS = 2, 3  # in memory at once: without, and with the network running ahead
MARGIN = 2**26  # bytes: what the allocator and Python itself come to beside the arrays
WINDOWS_SHARE = 1 / 16  # of the limit: what one batch of windows and what comes of it may take
STATISTICS_BYTES = {"percentile": 4, "tissue": 24}  # a voxel, beside the image, while a channel is normalised
SPLINE_BYTES = 12  # a voxel of the larger grid, while a channel is resampled
COMPONENTS_BYTES = 5  # a voxel, while the background of a channel is found
READ_BACK_BYTES = 6  # a voxel, while a mask that was written is compared with what was meant
MAP_WRITING_BYTES = 11  # a voxel and class, while a map is rounded, written and compared
EVALUATION_BYTES = 16  # a voxel, while a mask is compared with the expert's


@dataclass(frozen=True)
class Wanted:
    """What is made of a scan beside its mask.

    Attributes:
        maps: How many float maps are kept.
        written: Whether any of them is written.
        scored: Whether the mask is compared with the expert's.
        peaks: Whether it is kept where a lesion reaches its peak.
    """

    maps: int
    written: bool
    scored: bool
    peaks: bool = False


class MemoryLimit:
    """The limit of `inference.max_memory_gb`, and what scans take of it. Without a limit everything fits.

    Attributes:
        limit: Bytes, or None.
        base: Bytes that this process takes with its networks running on windows, before any scan.
    """

    def __init__(self, members: Sequence[Member], limit_gb: float | None) -> None:
        self.limit = None if limit_gb is None else int(limit_gb * GIB)
        self._members = members
        self.base = 0 if self.limit is None else MARGIN + _networks_bytes(members)

    def require(self, case: Case, wanted: Wanted) -> None:
        """Raises ScanError (kind `memory`) when a scan cannot be predicted within the limit; reads its header only."""
        if self.limit is None:
            return
        grid = read_grid(case.image_paths[0])
        needed = self.base + self.bytes_for(grid, wanted, slabs=LEAST_SLABS)
        if needed > self.limit:
            raise ScanError(
                "memory",
                f"case {case.case_id}: {case.image_paths[0]} of {grid.shape} voxels needs {needed / GIB:.2f} GiB, "
                f"inference.max_memory_gb allows {self.limit / GIB:g}; raise it or predict the scan elsewhere",
            )

    def fit_together(self, cases: Sequence[Case], wanted: Wanted) -> bool:
        """Whether the scans can be in memory at the same time; not where a header cannot be read."""
        if self.limit is None:
            return True
        try:
            grids = [read_grid(case.image_paths[0]) for case in cases]
        except ScanError:
            return False
        return self.base + sum(self.bytes_for(grid, wanted, slabs=MOST_SLABS) for grid in grids) <= self.limit

    def allows_ahead(self, grid: Grid, wanted: Wanted) -> bool:
        """Whether the next slab may be computed while the last is still being brought back."""
        return self.limit is None or self.base + self.bytes_for(grid, wanted, slabs=MOST_SLABS) <= self.limit

    def bytes_for(self, grid: Grid, wanted: Wanted, *, slabs: int) -> int:
        """Bytes beside the loaded networks at the busiest moment between reading a scan and having written its mask.

        Args:
            grid: The scan's own.
            wanted: What is made of it.
            slabs: How many are in memory at once.
        """
        plan = self._members[0].plan
        voxels, channels, classes = math.prod(grid.shape), plan.channels, plan.classes
        shapes = {member.grid: _network_shape(grid, member.plan) for member in self._members}
        networks = [math.prod(shape) for shape in shapes.values()]
        images = sum(4 * channels * count for count in networks)
        image = 4 * voxels * channels
        reading = image + (4 * voxels if channels > 1 else 0) + voxels
        preparing = 0
        for count in networks:
            spline = 0 if count == voxels else SPLINE_BYTES * max(count, voxels)
            channel = max(COMPONENTS_BYTES * voxels, 4 * count + spline + self._statistics * count)
            preparing = max(preparing, image + voxels + images - 4 * count + channel)
        resampled = any(count != voxels for count in networks)
        restoring = 4 * 6 * min(RESTORED_VALUES, classes * voxels) if resampled else 0
        maps = (1 + wanted.peaks) * voxels + 4 * wanted.maps * voxels * classes
        predicting = images + maps + slabs * self._slab_bytes(shapes) + restoring
        writing = maps + READ_BACK_BYTES * voxels
        if wanted.written:
            writing = max(writing, maps + MAP_WRITING_BYTES * voxels * classes)
        if wanted.scored:
            writing = max(writing, maps + EVALUATION_BYTES * voxels)
        return max(reading, preparing, predicting, writing)

    @property
    def _statistics(self) -> int:
        return max(STATISTICS_BYTES.get(member.plan.normalization, 0) for member in self._members)

    def _slab_bytes(self, shapes: Mapping[Any, tuple[int, int, int]]) -> int:
        total = 0
        for member in {member.windows: member for member in self._members}.values():
            shape, patch = shapes[member.grid], member.plan.patch_size
            axis = slab_axis(shape, patch)
            moments = 2 if member.config.inference.uncertainty == "deviation" else 1
            depth = min(patch[axis], shape[axis])
            total += 4 * moments * member.plan.classes * math.prod(shape) // shape[axis] * depth
        return total


def _networks_bytes(members: Sequence[Member]) -> int:
    """What the process takes while the hungriest network runs, after each has run; runs them on empty windows.

    How much of it an allocator gives back between two runs depends on the machine, so the busiest moment is sought.
    """
    running = 0
    for member in members:
        run = partial(member.forward, np.zeros((member.window_batch, *input_shape(member.plan)), np.float32))
        run()  # the first call builds the graph
        peak = _peak_bytes(run)
        running = max(running, peak - resident_bytes())
    return resident_bytes() + running


def _peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that the process held during a call, looked at every millisecond."""
    done = Event()

    def watch() -> int:
        most = resident_bytes()
        while not done.wait(0.001):
            most = max(most, resident_bytes())
        return most

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            call()
        finally:
            done.set()
        return watching.result()


def _network_shape(grid: Grid, plan: Plan) -> tuple[int, int, int]:
    """The network grid of the whole scan: its non-zero box can only be smaller."""
    order = np.argsort(nib.orientations.io_orientation(grid.affine)[:, 0])
    shape = [grid.shape[axis] for axis in order]
    return network_shape(shape, canonical_spacing(grid), plan.spacing_mm)


def windows_within(limit_gb: float | None, plan: Plan, wanted: int) -> int:
    """Windows at a time, at least 1: as wanted, or fewer where a batch would take too large a part of the limit."""
    if limit_gb is None:
        return wanted
    window = 4 * math.prod(plan.patch_size) * (2 * plan.network_channels + 4 * plan.outputs)
    return max(1, min(wanted, int(limit_gb * GIB * WINDOWS_SHARE / window)))
