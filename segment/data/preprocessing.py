"""Scans to the network's grid and results back, and the cache of prepared cases.

A prepared case is a folder named by the case id and by a hash of its files and of all that its content depends on: a
changed input or setting gives another folder. Folders appear whole, by one rename, so an interrupted run goes on
where it was and two runs at once do no harm.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segment.data.cases import Case
from segment.data.geometry import (
    Placement,
    canonical_spacing,
    network_shape,
    nonzero_box,
    resample,
    resample_nearest,
    spline_orders,
)
from segment.data.lesion_table import LesionTable, find_lesions
from segment.data.mapped import map_npy
from segment.data.nifti import MAX_VOXELS, ScanError
from segment.data.normalization import inside_mask, normalise
from segment.data.planning import Plan
from segment.data.scan import Scan, read_scan, to_canonical
from segment.errors import InputError
from segment.files import read_json, sha256_of, write_json
from segment.progress import in_threads

MAX_RESAMPLED = 4096  # voxels: the matrix that resamples an axis has the product of the old and the new length
LEFTOVER_SECONDS = 24 * 3600
FORMAT = 1  # raise it when the content of a prepared case changes for the same input and plan


def to_network(scan: Scan, plan: Plan) -> tuple[np.ndarray, np.ndarray | None, Placement]:
    """Brings a scan to the network's grid: canonical axes, non-zero box, target spacing, normalised intensities.

    The image is resampled by cubic splines clipped to each channel's range (linear across a coarse axis), the label by
    the voxel in which each new centre lies. Where the spacing agrees within 0.1% nothing is resampled.

    Args:
        scan: Image float32 [X, Y, Z, channels] on its own grid, with or without a label.
        plan: The target spacing and normalisation.

    Returns:
        Image float32 [x, y, z, channels], 0 outside the subject; label uint8 [x, y, z] of the file's values, or None;
        and the placement that leads back.

    Raises:
        InputError: The scan has another number of channels than the plan; names the case.
    """
    if scan.image.shape[-1] != plan.channels:
        raise InputError(
            f"case {scan.case_id}: expected {plan.channels} channels {list(plan.channel_names)}, "
            f"found {scan.image.shape[-1]}"
        )
    placement = place(scan, plan.spacing_mm)
    shape = placement.shape
    image = to_canonical(scan.image, scan.grid.affine)[placement.crop_slices]
    orders = spline_orders(canonical_spacing(scan.grid), plan.spacing_mm)
    result = np.empty((*shape, plan.channels), np.float32)
    for channel in range(plan.channels):  # one at a time: a spline needs several copies of what it works on
        own = image[..., channel]
        inside = resample_nearest(inside_mask(own), shape)
        window = plan.ct_windows[channel] if plan.ct_windows else None
        how, out = plan.normalization, result[..., channel]
        normalise(resample(own, shape, orders), inside, how, out=out, window=window)
    label = None if scan.label is None else label_to_network(scan.label, placement)
    return result, label, placement


def place(scan: Scan, spacing_mm: Sequence[float]) -> Placement:
    """Where a scan lies on the network's grid: its non-zero box, in voxels of the target spacing (canonical axes).

    Raises ScanError (kind `too_large`) where the voxel size makes that grid absurdly large.
    """
    crop = nonzero_box(to_canonical(scan.image, scan.grid.affine))
    shape = network_shape([stop - start for start, stop in crop], canonical_spacing(scan.grid), spacing_mm)
    _require_sensible(scan, [stop - start for start, stop in crop], shape)
    return Placement(grid=scan.grid, crop=crop, shape=shape)


def _require_sensible(scan: Scan, own: Sequence[int], resampled: Sequence[int]) -> None:
    """Refuses what a wrong voxel size in a header leads to, before memory is asked for it."""
    longest = max((max(old, new) for old, new in zip(own, resampled, strict=True) if old != new), default=0)
    if math.prod(resampled) > MAX_VOXELS or longest > MAX_RESAMPLED:
        grid = "x".join(str(length) for length in resampled)
        raise ScanError(
            "too_large",
            f"case {scan.case_id}: {scan.grid.describe()} would be {grid} voxels on the network's grid; expected at "
            f"most {MAX_VOXELS} in all, and {MAX_RESAMPLED} along an axis that is resampled: is the voxel size right?",
        )


def label_to_network(label: np.ndarray, placement: Placement) -> np.ndarray:
    """uint8 [x, y, z] of `placement.shape`: the label at the voxel in which each new centre lies.

    Args:
        label: uint8 [X, Y, Z] on the scan's own grid.
        placement: The scan's.
    """
    cropped = to_canonical(label, placement.grid.affine)[placement.crop_slices]
    return np.ascontiguousarray(resample_nearest(cropped, placement.shape), np.uint8)


def to_original(probabilities: np.ndarray, placement: Placement) -> np.ndarray:
    """Brings a result on the network's grid back to the scan's own grid, axis order and direction.

    Args:
        probabilities: float32 [x, y, z, classes] of `placement.shape`, in [0, 1].
        placement: As `to_network` gave it.

    Returns:
        float32 [X, Y, Z, classes], linearly interpolated, 0 outside the crop; the very same values where nothing was
        resampled. Holds one class at a time beside input and result.

    Raises:
        ValueError: The shape is not the placement's.
    """
    if probabilities.shape[:-1] != placement.shape:
        raise ValueError(f"expected probabilities of shape {placement.shape}, found {probabilities.shape[:-1]}")
    result = np.zeros((*placement.grid.shape, probabilities.shape[-1]), np.float32)
    cropped = to_canonical(result, placement.grid.affine)[
        placement.crop_slices
    ]  # a view: writing to it fills the result
    for index in range(probabilities.shape[-1]):
        cropped[..., index] = resample(probabilities[..., index], placement.crop_shape, (1, 1, 1))
    return result


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the network's grid, in files.

    Attributes:
        case: The case it was made from.
        image_path: .npy of float32 [x, y, z, channels].
        label_path: .npy of uint8 [x, y, z] with the label file's values.
        lesions: The lesion table.
        placement: The way back to the scan's own grid.
        shape: Voxels per axis of the network grid.
    """

    case: Case
    image_path: Path
    label_path: Path
    lesions: LesionTable
    placement: Placement
    shape: tuple[int, int, int]

    def image(self) -> np.ndarray:
        """float32 [x, y, z, channels], memory-mapped and read-only: only what is used is read."""
        return map_npy(self.image_path, np.float32, (*self.shape, len(self.case.image_paths)))

    def label(self) -> np.ndarray:
        """uint8 [x, y, z], memory-mapped and read-only."""
        return map_npy(self.label_path, np.uint8, self.shape)


def prepare_cases(cases: Sequence[Case], plan: Plan, *, cache_dir: Path, workers: int) -> list[PreparedCase]:
    """Brings cases with labels to the network's grid, taking from the cache what is there.

    Args:
        cases: Cases with a label file each.
        plan: Spacing, channels, classes and normalisation decide on the content.
        cache_dir: Made when missing. Holds 4 bytes a voxel and channel, and 1 for the label.
        workers: Threads; each holds one case in memory.

    Returns:
        One prepared case for each, in order.

    Raises:
        InputError: A file cannot be read or the cache cannot be written; names the case or the path.
    """
    _remove_leftovers(cache_dir)
    return in_threads("Preparing cases", lambda case: _prepare(case, plan, cache_dir), cases, workers=workers)


def _remove_leftovers(cache_dir: Path) -> None:
    """Removes what killed runs left half written; a running one renames its folder long before this age."""
    for folder in cache_dir.glob(".tmp-*"):
        with suppress(FileNotFoundError):  # another run may rename its own between the listing and the look at it
            if folder.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _prepare(case: Case, plan: Plan, cache_dir: Path) -> PreparedCase:
    if case.label_path is None:
        raise InputError(
            f"case {case.case_id}: expected a label file for training, found none; add one or leave the case out"
        )
    folder = cache_dir / f"{case.case_id}-{_key(case, plan)[:24]}"
    if not folder.is_dir():
        scan = read_scan(case, with_label=True)
        image, label, placement = to_network(scan, plan)
        if label is None:
            raise InputError(f"case {case.case_id}: expected a label in {case.label_path}, found none")
        _store(folder, image, label, placement, plan)
    return _open(case, folder)


def _key(case: Case, plan: Plan) -> str:
    """SHA-256 of the content of the files and of every setting that the prepared case depends on."""
    paths = [*dict.fromkeys(case.image_paths), *([case.label_path] if case.label_path else [])]
    try:
        files = [sha256_of(path) for path in paths]
    except OSError as cause:
        raise InputError(f"case {case.case_id}: cannot read {cause.filename}: {cause.strerror or cause}") from cause
    settings = {
        "format": FORMAT,
        "files": files,
        "volumes": case.image_volumes,
        "half": case.half,
        "spacing_mm": plan.spacing_mm,
        "normalization": plan.normalization,
        "ct_windows": plan.ct_windows,
        "values": list(plan.label_values.values()),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _store(folder: Path, image: np.ndarray, label: np.ndarray, placement: Placement, plan: Plan) -> None:
    value, box, offset, voxels = find_lesions(label, tuple(plan.label_values.values()))
    temporary = folder.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}-{folder.name}")
    try:
        temporary.mkdir(parents=True)
        for name, array in (("image", image), ("label", label), ("voxels", voxels)):
            with (temporary / f"{name}.npy").open("wb") as handle:
                np.save(handle, array)
                handle.flush()
                os.fsync(handle.fileno())
        lesions = {"value": value, "volume_mm3": np.diff(offset) * placement.voxel_mm3, "box": box, "offset": offset}
        write_json(temporary / "case.json", {"placement": placement.to_json(), "lesions": lesions})
        if not folder.is_dir():
            temporary.rename(folder)
    except OSError as cause:
        # Another run may have put the same content there between the check and the rename.
        if not folder.is_dir():
            raise InputError(
                f"cannot write the cache {folder}: {cause.strerror or cause}; free space or choose another run folder"
            ) from cause
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(case: Case, folder: Path) -> PreparedCase:
    values: dict[str, Any] = read_json(folder / "case.json")
    lesions = values["lesions"]
    placement = Placement.from_json(values["placement"])
    table = LesionTable(
        value=np.array(lesions["value"], np.int64),
        volume_mm3=np.array(lesions["volume_mm3"], np.float64),
        box=np.array(lesions["box"], np.int64).reshape(-1, 3, 2),
        offset=np.array(lesions["offset"], np.int64),
        voxels_path=folder / "voxels.npy",
    )
    return PreparedCase(case, folder / "image.npy", folder / "label.npy", table, placement, placement.shape)
