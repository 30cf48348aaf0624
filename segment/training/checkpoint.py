"""Checkpoints: written whole or not at all, checked when read, the last two and the best kept.

A checkpoint is one file: a line with the SHA-256 of what follows, then NumPy's .npz with every variable under its own
name and a JSON text with the rest. It is the same file in Keras 2 and 3, with any number of replicas.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segment.errors import InputError
from segment.files import atomic_path, jsonable
from segment.progress import CONSOLE

MAGIC = b"segment-checkpoint-1 "
INFO = "info"  # the JSON text's name in the archive; variables are "part/name" and cannot be called that
KEPT = 2
_DAMAGE = (ValueError, KeyError, OSError, zipfile.BadZipFile)
_NAME = re.compile(r"step-([0-9]{8})\.ckpt")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was read: the step after which it was written, the variables' values by name, and the plain rest."""

    step: int
    arrays: dict[str, np.ndarray]
    info: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, `step-00000250.ckpt` and so on in one folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, step: int, variables: Mapping[str, Any], info: Mapping[str, Any], *, best_step: int | None) -> Path:
        """Writes a checkpoint, then removes all but the last two and the best.

        Args:
            step: Number of steps done.
            variables: Name -> tf.Variable (or anything with `.numpy()`).
            info: JSON-able values.
            best_step: The step of the best checkpoint so far, which is kept; None where there is none.

        Raises:
            InputError: It cannot be written, for example because the disk is full; the ones before are untouched.
        """
        arrays = {name: np.asarray(variable.numpy()) for name, variable in variables.items()}
        text = json.dumps(jsonable(dict(info)), allow_nan=False)
        buffer = io.BytesIO()
        arrays[INFO] = np.frombuffer(text.encode(), np.uint8)
        savez: Any = np.savez  # its stub takes the arrays' names for those of its own options
        savez(buffer, **arrays)
        payload = buffer.getbuffer()
        path = self._folder / f"step-{step:08d}.ckpt"
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            handle.write(MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n")
            handle.write(payload)
        self._prune(step, best_step)
        return path

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None when there is none at all; raises as `latest_step` does."""
        step = self.latest_step()
        return None if step is None else self.read(step)

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises InputError when it is missing or damaged."""
        path = self._path(step)
        try:
            return _read(path, step)
        except _DAMAGE as cause:
            raise InputError(f"cannot read checkpoint {path}: {cause}; all workers need the same run folder") from cause

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint that is whole, or None when there is none at all.

        A damaged one is renamed to `.damaged` with a warning, and the one before it is taken.

        Raises:
            InputError: There are checkpoints and every one of them is damaged.
        """
        found = sorted(self._steps(), reverse=True)
        for step in found:
            path = self._path(step)
            try:
                _read(path, step)
                return step
            except _DAMAGE as cause:
                CONSOLE.print(
                    f"warning: checkpoint {path} is damaged ({cause}); going back to the one before it", soft_wrap=True
                )
                path.replace(path.with_suffix(".damaged"))
        if found:
            raise InputError(
                f"{self._folder}: all {len(found)} checkpoints are damaged; start the run again with --force"
            )
        return None

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.ckpt"

    def _steps(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def _prune(self, newest: int, best_step: int | None) -> None:
        steps = self._steps()
        kept = {*steps[-KEPT:], newest, best_step}
        for step in steps:
            if step not in kept:
                self._path(step).unlink(missing_ok=True)


def _read(path: Path, step: int) -> Checkpoint:
    header, _, payload = path.read_bytes().partition(b"\n")
    if not header.startswith(MAGIC):
        raise ValueError("it does not start as a checkpoint does")
    if header.removeprefix(MAGIC) != hashlib.sha256(payload).hexdigest().encode():
        raise ValueError("its checksum does not match")
    with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    info = json.loads(arrays.pop(INFO).tobytes().decode())
    return Checkpoint(step, arrays, info)


def restore(variables: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Assigns every value of a checkpoint; on all replicas, when called in cross-replica context.

    Raises:
        InputError: Names or shapes differ from the checkpoint's; nothing is assigned then.
    """
    missing = sorted(set(variables) ^ set(checkpoint.arrays))
    wrong = missing or [n for n, v in variables.items() if tuple(v.shape) != checkpoint.arrays[n].shape]
    if wrong:
        found = checkpoint.arrays[wrong[0]].shape if wrong[0] in checkpoint.arrays else "nothing"
        expected = tuple(variables[wrong[0]].shape) if wrong[0] in variables else "nothing"
        raise InputError(
            f"checkpoint of step {checkpoint.step}: {wrong[0]}: expected {expected}, found {found}; "
            "it was written by another version or for another model; start the run again with --force"
        )
    for name, variable in variables.items():
        variable.assign(checkpoint.arrays[name])
