"""Names of scans in a folder: stems, channel numbers, and the most similar name for a message."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from segment.data.nifti import ENDINGS
from segment.errors import InputError

CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")


def scan_stem(name: str) -> str:
    """A file's name without .nii.gz or .nii."""
    return name.removesuffix(".gz").removesuffix(".nii")


def stems(folder: Path, endings: Iterable[str] = ENDINGS) -> dict[str, str]:
    """Name without ending -> name, of everything in a folder that is named as a scan (links and folders too).

    Raises:
        InputError: It is no folder, cannot be read, or holds two files of one stem.
    """
    if not os.path.isdir(folder):
        raise InputError(
            f"{folder}: expected a folder with NIfTI files, found {'a file' if os.path.exists(folder) else 'nothing'}"
        )
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as cause:
        raise InputError(f"{folder}: cannot be read: {cause.strerror or cause}; check its permissions") from cause
    found: dict[str, str] = {}
    for name in names:
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        if ending is None or name.startswith("."):
            continue
        stem = name.removesuffix(ending)
        if stem in found:
            raise InputError(f"{folder}: expected one file for {stem}, found {found[stem]} and {name}; remove one")
        found[stem] = name
    return found


def nearest(name: str, names: Collection[str]) -> str:
    """'; did you mean X?' with the most similar name, or nothing when there are no names."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else ""
