"""Training in two processes on this machine (`train.strategy: multi_worker`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_dataset
from process_helpers import last_checkpoint, play, rows_of


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder with the runs `one` and `two`, and what the processes said."""
    folder = tmp_path_factory.mktemp("workers")
    tiny_dataset(folder / "data", cases=3, shape=(24, 24, 6))
    return folder, play("workers", folder)


@pytest.mark.slow
class TestTwoWorkers:
    def test_a_signal_to_one_stops_both_with_a_checkpoint(self, played: tuple[Path, dict[str, Any]]) -> None:
        run = played[1]["stopped"]
        assert run["codes"] == [143, 143]
        assert "stopped at step 4 of 12" in run["texts"][0]
        assert "--resume to go on" in run["texts"][0]

    def test_a_worker_that_dies_stops_the_other_with_one_line(self, played: tuple[Path, dict[str, Any]]) -> None:
        run = played[1]["killed"]
        assert run["codes"] == [2, -9]
        last = run["texts"][0].splitlines()[-1]
        assert last.startswith("error: ")
        assert "has stopped" in last
        assert "--resume" in last
        assert "Traceback" not in run["texts"][0]
        assert run["seconds"] < 90  # start, 4 steps and at most a minute until it was noticed

    def test_resuming_afterwards_gives_the_weights_of_one_process_with_two_replicas(
        self, played: tuple[Path, dict[str, Any]]
    ) -> None:
        folder, runs = played
        assert runs["one"]["codes"] == [0]
        assert runs["resumed"]["codes"] == [0, 0]
        one, two = last_checkpoint(folder / "one"), last_checkpoint(folder / "two")
        assert one.step == two.step == 12
        assert sorted(one.arrays) == sorted(two.arrays)
        for name, array in one.arrays.items():
            np.testing.assert_allclose(two.arrays[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
        steps = [row["step"] for row in rows_of(folder / "one" / "metrics.csv")]
        assert [row["step"] for row in rows_of(folder / "two" / "metrics.csv")] == steps == ["5", "10", "12"]

    def test_only_worker_0_speaks_and_writes(self, played: tuple[Path, dict[str, Any]]) -> None:
        folder, runs = played
        assert runs["resumed"]["texts"][1] == ""
        assert "next:" in runs["resumed"]["texts"][0]
        names = {path.name for path in (folder / "one").iterdir()}
        assert {path.name for path in (folder / "two").iterdir()} == names
        manifest = json.loads((folder / "two" / "manifest.json").read_text())
        assert (manifest["replicas"], manifest["strategy"]) == (2, "multi_worker")
