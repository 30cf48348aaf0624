"""The smallest network that trains, and how an error message is read. Not a test module."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import tiny_dataset

from segment.config import Config, save_config

SHAPE = (20, 18, 16)


def tiny_config(folder: Path) -> Path:
    """Writes the configuration, in float32."""
    values = {
        "model": {"filters": [4, 8], "patch_size": [16, 16, 8]},
        "train": {"steps": 2, "validate_every": 2, "log_every": 1, "precision": "float32"},
    }
    path = folder / "tiny.yaml"
    save_config(Config.model_validate(values), path)
    return path


def two_channels(root: Path, *, cases: int) -> Path:
    """Writes a dataset for it."""
    return tiny_dataset(root, cases=cases, channels=("FLAIR", "T1"), shape=SHAPE)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error message, which has to be the only line that begins with `error:` and the last one."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert not any(line.startswith("Traceback") for line in lines)
    return lines[-1]


def truncate(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
