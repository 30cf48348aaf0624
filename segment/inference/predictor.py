"""One or several trained runs, ready to predict scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segment.config import Config, config_from, load_config
from segment.data.planning import Plan
from segment.data.preprocessing import Placement, to_network
from segment.data.scan import Scan, to_canonical
from segment.errors import InputError
from segment.files import read_json, sha256_of
from segment.inference.memory import MemoryLimit, Wanted, windows_within
from segment.inference.model_file import compile_forward, load_model, window_batch
from segment.inference.slabs import Slab, ahead, merge_slabs, predict_slabs, restore_slabs, slab_axis
from segment.inference.tiles import Forward, label_voxels, peak_voxels
from segment.inference.tta import voters_of
from segment.inference.uncertainty import deviation_map, entropy_map


@dataclass(frozen=True, eq=False)
class Member:
    """One run: its folder, what it was trained with, its network, and the SHA-256 of its model file."""

    run_dir: Path
    plan: Plan
    config: Config
    forward: Forward
    window_batch: int
    model_sha256: str

    @property
    def grid(self) -> tuple[object, ...]:
        """What the way to the network's grid depends on; members that agree in it share the work."""
        return self.plan.spacing_mm, self.plan.normalization, self.plan.ct_windows

    @property
    def windows(self) -> tuple[object, ...]:
        """What the windows depend on; members of one grid that agree in it vote on each window together."""
        plan = self.plan
        return plan.patch_size, plan.slice_axis, plan.slices, self.config.inference.overlap, self.window_batch


@dataclass(frozen=True, eq=False)
class NetworkScan:
    """A scan on the network's grid of some members: `image` is float32 [x, y, z, channels]."""

    image: np.ndarray
    placement: Placement
    members: tuple[Member, ...]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found, on the scan's own grid and in its axis order; column-major in memory as its files are.

    Attributes:
        mask: uint8 [X, Y, Z], the dataset's label values at the threshold; `remove_doubtful` has still to be done.
        probabilities: float32 [X, Y, Z, classes] in [0, 1], or None.
        uncertainty: float32 [X, Y, Z, classes] in [0, 1], or None: the standard deviation of the votes or the entropy
            in bits, as `inference.uncertainty` says.
        peaks: bool [X, Y, Z], where the probability reaches the peak that a lesion must reach; None where every lesion
            does.

    All are 0 outside the box of the scan's non-zero voxels.
    """

    mask: np.ndarray
    probabilities: np.ndarray | None
    uncertainty: np.ndarray | None
    peaks: np.ndarray | None


class Predictor:
    """Predicts scans with the mean of its members' probabilities.

    `predict` does all; `prepare` and `predict_prepared` are its two parts, of which only the second uses the network,
    so that the first can run beside it.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        if not members:
            raise InputError("expected at least one run folder, found none")
        self.members = tuple(members)
        first = self.members[0]
        for other in self.members[1:]:
            _require_same(first, other, "channels", first.plan.channel_names, other.plan.channel_names)
            labels, others = (list(member.plan.label_values.items()) for member in (first, other))
            _require_same(first, other, "labels", labels, others)  # in this order the outputs stand
        self.memory = MemoryLimit(self.members, self.config.inference.max_memory_gb)

    def wanted(self, *, probabilities: bool, scored: bool, peaks: bool = False) -> Wanted:
        """What is made of each scan beside its mask, as far as memory goes.

        Args:
            probabilities: Whether the probability maps are written.
            scored: Whether the masks are compared with labels, for which the probabilities are kept too.
            peaks: Whether lesions must reach a peak above the threshold.
        """
        uncertain = self.config.inference.uncertainty != "none"
        return Wanted((probabilities or scored) + uncertain, probabilities or uncertain, scored, peaks)

    @classmethod
    def load(cls, run_dirs: Sequence[Path], *, changes: Mapping[str, Any] | None = None) -> Predictor:
        """Loads runs from their folders: plan.json, config.yaml and model.keras of each.

        Args:
            run_dirs: The folders.
            changes: Options of the section `inference` that replace those of every run.

        Raises:
            InputError: A folder or file is missing or damaged, a model is unsafe or is not the plan's, the runs
                differ in channels or labels, or a changed option is out of range; names the file or the option.
        """
        return cls([load_member(Path(run_dir), changes or {}) for run_dir in run_dirs])

    @property
    def plan(self) -> Plan:
        """The first member's plan; channels and labels are those of all."""
        return self.members[0].plan

    @property
    def config(self) -> Config:
        """The first member's configuration: threshold, smallest lesion, flips and uncertainty come from it."""
        return self.members[0].config

    def prepare(self, scan: Scan) -> list[NetworkScan]:
        """Brings a scan to each network grid that the members ask for. Raises InputError as `to_network` does."""
        prepared = []
        for grid in dict.fromkeys(member.grid for member in self.members):
            members = tuple(member for member in self.members if member.grid == grid)
            image, _, placement = to_network(scan, members[0].plan)
            prepared.append(NetworkScan(image, placement, members))
        return prepared

    def predict_prepared(
        self, prepared: Sequence[NetworkScan], *, threshold: float, keep_probabilities: bool, min_peak: float = 0.0
    ) -> Prediction:
        """Runs the networks and brings what they find back to the scan's own grid, slab by slab.

        Holds the images, the results and a few slabs; the networks go on while a slab is brought back.

        Args:
            prepared: As `prepare` gave it.
            threshold: Probability from which a voxel is foreground, in (0, 1); applied on the scan's own grid.
            keep_probabilities: Whether the probabilities are returned beside the mask.
            min_peak: Highest probability that a lesion must reach, in [0, 1); up to the threshold every one does, and
                `peaks` is not made.

        Raises:
            InputError: A network gave NaN.
        """
        placement, peaked = prepared[0].placement, min_peak > threshold
        found = self._empty(placement, keep_probabilities, peaked)
        wanted = self.wanted(probabilities=keep_probabilities, scored=False, peaks=peaked)
        for slab in self._slabs(prepared, wanted):
            _planes(found.mask, placement, slab)[...] = label_voxels(slab.mean, self.plan, threshold=threshold)
            if found.peaks is not None:
                _planes(found.peaks, placement, slab)[...] = peak_voxels(slab.mean, min_peak=min_peak)
            if found.probabilities is not None:
                _planes(found.probabilities, placement, slab)[...] = slab.mean
            if found.uncertainty is not None:
                doubt = entropy_map(slab.mean) if slab.variance is None else deviation_map(slab.variance)
                _planes(found.uncertainty, placement, slab)[...] = doubt
            del slab
        return found

    def _empty(self, placement: Placement, keep_probabilities: bool, peaked: bool) -> Prediction:
        """A prediction of zeros, to be filled slab by slab."""
        shape = (*placement.grid.shape, self.plan.classes)
        uncertain = self.config.inference.uncertainty != "none"
        return Prediction(
            mask=np.zeros(shape[:3], np.uint8, order="F"),
            probabilities=np.zeros(shape, np.float32, order="F") if keep_probabilities else None,
            uncertainty=np.zeros(shape, np.float32, order="F") if uncertain else None,
            peaks=np.zeros(shape[:3], bool, order="F") if peaked else None,
        )

    def _slabs(self, prepared: Sequence[NetworkScan], wanted: Wanted) -> Iterator[Slab]:
        """Slabs of the mean over all members, each with the same weight, on the crop that all grids share."""
        placement = prepared[0].placement
        axis = slab_axis(placement.shape, self.plan.patch_size)
        waits = not self.memory.allows_ahead(placement.grid, wanted)
        streams, shares = [], []
        for scan in prepared:
            for windows in dict.fromkeys(member.windows for member in scan.members):
                members = [member for member in scan.members if member.windows == windows]
                slabs = predict_slabs(
                    [vote for member in members for vote in self._voters(member)],
                    scan.image,
                    members[0].plan,
                    overlap=members[0].config.inference.overlap,
                    window_batch=members[0].window_batch,
                    axis=axis,
                    spread=self.config.inference.uncertainty == "deviation",
                )
                streams.append(restore_slabs(slabs if waits else ahead(slabs), scan.placement))
                shares.append(len(members) / len(self.members))
        return merge_slabs(streams, shares)

    def _voters(self, member: Member) -> Sequence[Any]:
        return voters_of(member.forward, member.plan, flips=self.config.inference.flips)

    def predict(self, scan: Scan) -> np.ndarray:
        """Predicts a scan's probabilities.

        Args:
            scan: Image [X, Y, Z, channels] on its own grid.

        Returns:
            float32 [X, Y, Z, classes] in [0, 1] on the scan's own grid; 0 outside the box of its non-zero voxels.

        Raises:
            InputError: The scan has another number of channels, or a network gave NaN.
        """
        found = self.predict_prepared(
            self.prepare(scan), threshold=self.config.inference.threshold, keep_probabilities=True
        )
        if found.probabilities is None:
            raise ValueError("expected the probabilities that were asked for, found none")
        return found.probabilities


def _planes(volume: np.ndarray, placement: Placement, slab: Slab) -> np.ndarray:
    """The voxels of a slab as a view of a volume [X, Y, Z, ...] in the scan's own axis order."""
    crop = to_canonical(volume, placement.grid.affine)[placement.crop_slices]
    return crop[(slice(None),) * slab.axis + (slice(slab.first, slab.stop),)]


def _require_same(first: Member, other: Member, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise InputError(
            f"{other.run_dir}: expected the {what} {expected} of {first.run_dir}, found {found}; "
            "average only runs of one dataset"
        )


def load_member(run_dir: Path, changes: Mapping[str, Any]) -> Member:
    """Loads one run folder. Raises InputError as `Predictor.load` does."""
    if not run_dir.is_dir():
        raise InputError(
            f"run folder {run_dir}: expected a folder, found {'a file' if run_dir.exists() else 'nothing'}"
        )
    for name in ("plan.json", "config.yaml", "model.keras"):
        if not (run_dir / name).is_file():
            raise InputError(
                f"run folder {run_dir}: expected {name} in it, found none; has its training come to an end?"
            )
    try:
        plan = Plan.from_json(read_json(run_dir / "plan.json"))
    except InputError as cause:
        raise InputError(f"{run_dir / 'plan.json'}: {cause}") from cause
    config = load_config(run_dir / "config.yaml")
    if changes:
        values = config.model_dump(mode="json")
        values["inference"].update(changes)
        config = config_from(values, source="options of the prediction")
    model = load_model(run_dir / "model.keras", plan)
    batch = windows_within(config.inference.max_memory_gb, plan, window_batch(config))
    forward = compile_forward(model, plan, batch=batch)
    return Member(run_dir, plan, config, forward, batch, sha256_of(run_dir / "model.keras"))
