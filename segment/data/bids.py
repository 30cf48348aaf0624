"""Cases of a BIDS dataset: sub-*/[ses-*/]anat and dwi, lesion masks in derivatives/, JSON sidecars.

https://bids-specification.readthedocs.io: a file name is a chain of entities `key-value` and a suffix, joined by `_`.
A session is a case, a subject is a patient.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segment.config_data import BidsConfig, Entities
from segment.data.folder_names import scan_stem, stems
from segment.data.scan import Case
from segment.errors import InputError
from segment.files import read_json

MODALITY_FOLDERS = ("anat", "dwi")
ACQUISITION = frozenset(
    (
        "Modality",
        "Manufacturer",
        "ManufacturersModelName",
        "SoftwareVersions",
        "MagneticFieldStrength",
        "ImagingFrequency",
        "ReceiveCoilName",
        "MRAcquisitionType",
        "ScanningSequence",
        "SequenceVariant",
        "ScanOptions",
        "EchoTime",
        "RepetitionTime",
        "InversionTime",
        "FlipAngle",
        "EchoTrainLength",
        "NumberOfAverages",
        "SliceThickness",
        "SpacingBetweenSlices",
        "PixelBandwidth",
        "PhaseEncodingDirection",
        "ParallelReductionFactorInPlane",
        "ImageType",
        "ContrastBolusIngredient",
        "KVP",
        "XRayExposure",
        "ConvolutionKernel",
    )
)


def is_bids(root: Path) -> bool:
    """Whether a folder holds sub-* folders."""
    return os.path.isdir(root) and any(entry.is_dir() for entry in root.glob("sub-*"))


def bids_cases(root: Path, config: BidsConfig) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The training cases, in the order of their ids, and the names of the channels.

    A session is a case when it has one of the channels or a mask; what it lacks is listed with the name that was
    expected, and left to `segment.data.checks`.

    Raises:
        InputError: No session has an image that fits, or two files of a session fit one filter.
    """
    filters = config.channels or _common_suffixes(root)
    found = _sessions_as_cases(root, filters, config.label)
    if not found:
        raise InputError(
            f"dataset {root}: expected images such as sub-01/anat/sub-01_FLAIR.nii.gz that fit data.bids.channels "
            f"{filters}, found the suffixes {', '.join(_suffixes(root)) or 'none'}"
        )
    return found, tuple(filters)


def bids_inputs(root: Path, filters: Mapping[str, Entities]) -> tuple[Case, ...]:
    """The cases to predict: as `bids_cases`, without masks, with a filter for each channel of the model."""
    found = _sessions_as_cases(root, filters, None)
    if not found:
        raise InputError(
            f"input {root}: expected BIDS images that fit {dict(filters)}, found the suffixes "
            f"{', '.join(_suffixes(root)) or 'none'}"
        )
    return found


def input_filters(config: BidsConfig, channel_names: Sequence[str]) -> dict[str, Entities]:
    """The filter of each channel of a model: those that it was trained with; else its name, or its name and w (T1w)."""
    if tuple(config.channels) == tuple(channel_names):
        return dict(config.channels)
    return {name: {"suffix": f"{name}w" if name in ("T1", "T2", "PD") else name} for name in channel_names}


def read_sidecars(root: Path, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Case -> image file -> the content of its JSON sidecars, the nearer ones on top (BIDS inheritance principle).

    Only what says how a scan was acquired is taken: sidecars may also name patient, date and place.

    Images without a sidecar are left out; a sidecar that is not valid JSON gives {"error": message}.
    """
    found = {}
    for case in cases:
        own = {path.relative_to(root).as_posix(): _sidecar(root, path) for path in dict.fromkeys(case.image_paths)}
        if any(own.values()):
            found[case.case_id] = {name: values for name, values in own.items() if values}
    return found


def _sidecar(root: Path, image: Path) -> dict[str, Any]:
    entities, suffix = _parse(scan_stem(image.name))
    merged: dict[str, Any] = {}
    folders = [root, *reversed([folder for folder in image.parents if root in folder.parents])]
    for folder in folders:
        fitting = []
        for path in folder.glob(f"*{suffix}.json"):
            own, own_suffix = _parse(path.stem)
            if own_suffix == suffix and own.items() <= entities.items():
                fitting.append((len(own), path))
        for _, path in sorted(fitting):
            try:
                values = read_json(path)
            except InputError as cause:
                return {"error": str(cause)}
            merged |= values if isinstance(values, dict) else {}
    return {key: value for key, value in merged.items() if key in ACQUISITION}


def _parse(stem: str) -> tuple[dict[str, str], str]:
    """Entities and suffix of a name without ending."""
    *parts, suffix = stem.split("_")
    pairs = [part.partition("-") for part in parts]
    return {key: value for key, dash, value in pairs if dash}, suffix


def _fits(stem: str, wanted: Entities) -> bool:
    entities, suffix = _parse(stem)
    return all(value == (suffix if key == "suffix" else entities.get(key)) for key, value in wanted.items())


def _sessions(root: Path) -> Iterator[Path]:
    """sub-* folders, or the ses-* folders in them where there are any."""
    for subject in sorted(entry for entry in root.glob("sub-*") if entry.is_dir()):
        sessions = sorted(entry for entry in subject.glob("ses-*") if entry.is_dir())
        yield from sessions or [subject]


def _images(folders: Sequence[Path]) -> dict[Path, str]:
    """Path -> stem of the scans in those folders that are there."""
    return {
        folder / name: stem
        for folder in folders
        if os.path.isdir(folder)
        for stem, name in sorted(stems(folder).items())
    }


def _sessions_as_cases(root: Path, filters: Mapping[str, Entities], label: Entities | None) -> tuple[Case, ...]:
    cases = []
    for session in _sessions(root):
        place = session.relative_to(root)
        case_id = "_".join(place.parts)
        images = _images([session / folder for folder in MODALITY_FOLDERS])
        paths = [_only(images, wanted, f"data.bids.channels.{name}") for name, wanted in filters.items()]
        mask = None if label is None else _only(_masks(root, place), label, "data.bids.label")
        if mask is None and not any(paths):
            continue
        expected = (
            path or session / MODALITY_FOLDERS[0] / f"{case_id}_{wanted.get('suffix') or name}.nii.gz"
            for path, (name, wanted) in zip(paths, filters.items(), strict=True)
        )
        cases.append(Case(case_id, place.parts[0], tuple(expected), mask))
    return tuple(sorted(cases, key=lambda case: case.case_id))


def _masks(root: Path, place: Path) -> dict[Path, str]:
    derivatives = root / "derivatives"
    bases = [derivatives, *sorted(derivatives.glob("*"))] if os.path.isdir(derivatives) else []
    return _images([base / place / folder for base in bases for folder in ("", *MODALITY_FOLDERS)])


def _only(images: Mapping[Path, str], wanted: Entities, key: str) -> Path | None:
    fitting = [path for path, stem in images.items() if _fits(stem, wanted)]
    if len(fitting) > 1:
        raise InputError(
            f"{key}: expected one file that fits {dict(wanted)}, found {fitting[0]} and {fitting[1]}; "
            "name an entity that tells them apart, such as acq: NAME or acq: null"
        )
    return fitting[0] if fitting else None


def _suffixes(root: Path) -> list[str]:
    images = [_images([session / folder for folder in MODALITY_FOLDERS]) for session in _sessions(root)]
    return sorted({_parse(stem)[1] for session in images for stem in session.values()})


def _common_suffixes(root: Path) -> dict[str, Entities]:
    """A filter for each suffix that every session with images has."""
    sessions = [_images([session / folder for folder in MODALITY_FOLDERS]) for session in _sessions(root)]
    sets = [{_parse(stem)[1] for stem in session.values()} for session in sessions if session]
    common = sorted(set.intersection(*sets)) if sets else []
    if sets and not common:
        raise InputError(
            f"dataset {root}: no suffix is there in all {len(sets)} sessions, found {', '.join(_suffixes(root))}; "
            "set data.bids.channels, for example {FLAIR: {suffix: FLAIR}}"
        )
    return {suffix: {"suffix": suffix} for suffix in common}
