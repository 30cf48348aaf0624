"""kill -9 at any moment, or a full disk, and --resume: the same as without, to the last bit (CPU)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import tiny_dataset
from process_helpers import last_checkpoint, play, rows_of


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder with the runs `straight`, `killed` and `refilled`, and what the processes said."""
    folder = tmp_path_factory.mktemp("resume")
    tiny_dataset(folder / "data", cases=3, shape=(24, 24, 6))
    return folder, play("resume", folder)


def require_the_same(straight: Path, other: Path) -> None:
    expected, found = last_checkpoint(straight), last_checkpoint(other)
    assert expected.step == found.step == 60
    assert sorted(found.arrays) == sorted(expected.arrays)
    assert {name.split("/")[0] for name in found.arrays} == {"model", "average", "optimizer", "loss", "loss_scale"}
    for name, array in expected.arrays.items():
        assert array.tobytes() == found.arrays[name].tobytes(), name
    for table in ("metrics.csv", "validation.csv"):
        assert rows_of(other / table) == rows_of(straight / table)
    before, after = (
        {key: value for key, value in one.info["progress"].items() if key != "seconds"} for one in (expected, found)
    )
    assert after == before
    assert not list(other.rglob(".tmp-*"))


@pytest.mark.slow
class TestExactResume:
    def test_ten_kills_change_nothing(self, played: tuple[Path, dict[str, Any]]) -> None:
        folder, runs = played
        assert len(runs["kills"]["moments"]) == 10
        assert runs["straight"]["codes"] == runs["resumed"]["codes"] == [0]
        require_the_same(folder / "straight", folder / "killed")

    def test_a_full_disk_is_one_line_and_loses_nothing(self, played: tuple[Path, dict[str, Any]]) -> None:
        folder, runs = played
        assert runs["full"]["codes"] == [2]
        (text,) = runs["full"]["texts"]
        assert "Traceback" not in text
        last = text.splitlines()[-1]
        assert last.startswith("error: cannot write ")
        assert "step-00000031.ckpt: " in last
        assert "; free space" in last
        if runs["disk"]["mounted"]:
            assert "No space left on device" in last
        assert runs["disk"]["left"][-1] == "step-00000030.ckpt"
        assert "going on from step 30 of 60" in runs["with room"]["texts"][0]
        require_the_same(folder / "straight", folder / "refilled")
