"""Reading and writing beside the network, and how many scans are in memory while they do."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inference_helpers import make_job, make_member, write_scan

from segment.data.cases import find_inputs
from segment.data.scan import Scan
from segment.inference.batch import run_job
from segment.inference.predictor import NetworkScan, Prediction, Predictor

SHAPE = (9, 11, 16)


class OverlapWatch(Predictor):
    """Waits in each prediction until the next scan is read and the last is being written; counts scans in memory."""

    def __init__(self) -> None:
        super().__init__([make_member()])
        self.was_read = [threading.Event() for _ in range(5)]
        self.is_written = [threading.Event() for _ in range(4)]
        self.was_read[4].set()
        self.predicted = self.most = 0
        self.volumes = [0] * 4  # alive, by case

    def _keep_count(self, case: int, volume: object) -> None:
        self.volumes[case] += 1
        self.most = max(self.most, sum(count > 0 for count in self.volumes))
        weakref.finalize(volume, self._release, case)

    def _release(self, case: int) -> None:
        self.volumes[case] -= 1

    def prepare(self, scan: Scan) -> list[NetworkScan]:
        prepared = super().prepare(scan)
        for volume in (scan, *prepared):
            self._keep_count(int(scan.case_id), volume)
        self.was_read[int(scan.case_id)].set()
        return prepared

    def predict_prepared(self, prepared: Sequence[NetworkScan], **wanted: Any) -> Prediction:
        assert self.was_read[self.predicted + 1].wait(20)
        assert self.predicted == 0 or self.is_written[self.predicted - 1].wait(20)
        result = super().predict_prepared(prepared, **wanted)
        self._keep_count(self.predicted, result)
        weakref.finalize(result, self.is_written[self.predicted].set)
        self.predicted += 1
        return result


class TestOverlap:
    def test_reading_and_writing_go_on_beside_the_network_with_two_scans_in_memory(self, tmp_path: Path) -> None:
        for name in range(4):
            write_scan(tmp_path, str(name), np.eye(4), SHAPE)
        watch = OverlapWatch()
        assert run_job(make_job(tmp_path / "out", watch), find_inputs(tmp_path / "images", channels=("FLAIR",))) == 0
        assert all(event.is_set() for event in watch.is_written)
        assert watch.most == 2
        assert watch.volumes == [0] * 4
