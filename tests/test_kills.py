"""kill -9 at any moment, and --resume: the same weights as without, to the last bit (CPU)."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import tiny_dataset
from process_helpers import last_checkpoint, play, rows_of

from segment.training.checkpoint import Checkpoints


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "data", cases=3, shape=(24, 24, 6))
    played = play("kills", tmp_path)
    assert len(played["kills"]["moments"]) == 10
    assert played["straight"]["codes"] == played["resumed"]["codes"] == [0]
    expected, found = last_checkpoint(tmp_path / "straight"), last_checkpoint(tmp_path / "killed")
    assert sorted(found.arrays) == sorted(expected.arrays)
    assert {name.split("/")[0] for name in found.arrays} == {"model", "average", "optimizer", "loss", "loss_scale"}
    for name, array in expected.arrays.items():
        assert array.tobytes() == found.arrays[name].tobytes(), name
    for table in ("metrics.csv", "validation.csv"):
        assert rows_of(tmp_path / "killed" / table) == rows_of(tmp_path / "straight" / table)
    clocks = {"seconds"}
    before, after = (
        {key: value for key, value in one.info["progress"].items() if key not in clocks} for one in (expected, found)
    )
    assert after == before
    assert not list((tmp_path / "killed").rglob(".tmp-*"))
    assert Checkpoints(tmp_path / "killed" / "checkpoints").latest_step() == 60
