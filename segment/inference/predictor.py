"""One or several trained runs, ready to predict scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segment.config import Config, load_config
from segment.data.planning import Plan
from segment.data.preprocessing import Placement, to_network, to_original
from segment.data.scan import Scan
from segment.errors import InputError
from segment.files import read_json, sha256_of
from segment.inference.model_file import compile_forward, load_model, window_batch
from segment.inference.tiles import Forward, predict_volume


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
    def grid(self) -> tuple[tuple[float, float, float], str]:
        """What the way to the network's grid depends on; members that agree in it share the work."""
        return self.plan.spacing_mm, self.plan.normalization


@dataclass(frozen=True, eq=False)
class NetworkScan:
    """A scan on the network's grid of some members.

    `values` is the image, float32 [x, y, z, channels], or the probabilities, float32 [x, y, z, classes] in [0, 1].
    """

    values: np.ndarray
    placement: Placement
    members: tuple[Member, ...]


class Predictor:
    """Predicts scans with the mean of its members' probabilities.

    `predict` does all; `prepare`, `predict_prepared` and `restore` are its three parts, of which only the second uses
    the network, so that the others can run beside it.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        if not members:
            raise InputError("expected at least one run folder, found none")
        self.members = tuple(members)
        first = self.members[0]
        for other in self.members[1:]:
            _require_same(first, other, "channels", first.plan.channel_names, other.plan.channel_names)
            _require_same(first, other, "labels", first.plan.label_values, other.plan.label_values)

    @classmethod
    def load(cls, run_dirs: Sequence[Path]) -> Predictor:
        """Loads runs from their folders: plan.json, config.yaml and model.keras of each.

        Raises:
            InputError: A folder or file is missing or damaged, a model is unsafe or is not the plan's, or the runs
                differ in channels or labels; names the file.
        """
        return cls([load_member(Path(run_dir)) for run_dir in run_dirs])

    @property
    def plan(self) -> Plan:
        """The first member's plan; channels and labels are those of all."""
        return self.members[0].plan

    @property
    def config(self) -> Config:
        """The first member's configuration: threshold and smallest lesion come from it."""
        return self.members[0].config

    def prepare(self, scan: Scan) -> list[NetworkScan]:
        """Brings a scan to each network grid that the members ask for. Raises InputError as `to_network` does."""
        prepared = []
        for grid in dict.fromkeys(member.grid for member in self.members):
            members = tuple(member for member in self.members if member.grid == grid)
            image, _, placement = to_network(scan, members[0].plan)
            prepared.append(NetworkScan(image, placement, members))
        return prepared

    def predict_prepared(self, prepared: Sequence[NetworkScan]) -> list[NetworkScan]:
        """Probabilities on each network grid, the mean over the members there. Raises InputError for NaN."""
        return [NetworkScan(_mean_over(scan), scan.placement, scan.members) for scan in prepared]

    def restore(self, predicted: Sequence[NetworkScan]) -> np.ndarray:
        """Brings probabilities back to the scan's own grid.

        Returns:
            float32 [X, Y, Z, classes]: the mean over all members, each with the same weight.
        """
        total: np.ndarray | None = None
        for scan in predicted:
            own = to_original(scan.values, scan.placement)
            if len(predicted) > 1:
                own *= np.float32(len(scan.members) / len(self.members))
            total = own if total is None else np.add(total, own, out=total)
        if total is None:
            raise ValueError("expected at least one prediction, found none")
        return np.clip(total, 0.0, 1.0, out=total) if len(predicted) > 1 else total

    def predict(self, scan: Scan) -> np.ndarray:
        """Predicts a scan.

        Args:
            scan: Image [X, Y, Z, channels] on its own grid.

        Returns:
            float32 [X, Y, Z, classes] in [0, 1] on the scan's own grid; 0 outside the box of its non-zero voxels.

        Raises:
            InputError: The scan has another number of channels, or a network gave NaN.
        """
        return self.restore(self.predict_prepared(self.prepare(scan)))


def _mean_over(scan: NetworkScan) -> np.ndarray:
    total: np.ndarray | None = None
    for member in scan.members:
        probabilities = predict_volume(
            member.forward,
            scan.values,
            member.plan,
            overlap=member.config.inference.overlap,
            window_batch=member.window_batch,
        )
        total = probabilities if total is None else np.add(total, probabilities, out=total)
    if total is None:
        raise ValueError("expected at least one member, found none")
    return np.divide(total, len(scan.members), out=total) if len(scan.members) > 1 else total


def _require_same(first: Member, other: Member, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise InputError(
            f"{other.run_dir}: expected the {what} {expected} of {first.run_dir}, found {found}; "
            "average only runs of one dataset"
        )


def load_member(run_dir: Path) -> Member:
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
    model = load_model(run_dir / "model.keras", plan)
    batch = window_batch(config)
    forward = compile_forward(model, plan, batch=batch)
    return Member(run_dir, plan, config, forward, batch, sha256_of(run_dir / "model.keras"))
