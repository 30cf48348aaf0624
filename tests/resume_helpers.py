"""Predictions of five small scans, counted, for the tests of resuming and of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from inference_helpers import threshold_predictor, write_scan

from segment.data.cases import find_inputs
from segment.data.label_files import find_labels
from segment.data.planning import Plan
from segment.inference.batch import predict_cases, run_job, settings_digest
from segment.inference.point_in_use import PointInUse
from segment.inference.predictor import Predictor
from segment.inference.records import Shard
from segment.inference.stages import Job

SHAPE = (9, 11, 16)
NAMES = ("a", "b", "c", "d", "e")
POINT = PointInUse(0.5, 0.0, "test")


def write_scans(folder: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_scan(folder, name, np.eye(4), SHAPE, seed=seed)
    return folder


class Counting(Predictor):
    """Counts what is really predicted."""

    def __init__(self, plan: Plan | None = None) -> None:
        super().__init__(threshold_predictor(plan).members)
        self.done = 0

    def predict_prepared(self, *given: Any, **wanted: Any) -> Any:
        self.done += 1
        return super().predict_prepared(*given, **wanted)


def predicted(scans: Path, *, output: str = "out", resume: bool = True, shard: Shard | None = None, **more: Any) -> int:
    """How many scans the networks had to look at."""
    predictor = Counting()
    point = more.pop("point", POINT)
    labels = find_labels(scans / "labels") if more.pop("labels", False) else None
    options = {"probabilities": False, "settings": settings_digest(predictor, point), **more}
    job = Job(predictor, scans / output, labels, point=point, resume=resume, shard=shard, **options)
    job.output.mkdir(exist_ok=True)
    run_job(job, find_inputs(scans / "images", channels=("FLAIR",)))
    return predictor.done


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "masks").glob("[!.]*.nii.gz")}


def infer(scans: Path, **changes: Any) -> int:
    options = {"labels": scans / "labels", "probabilities": False, "threshold": 0.5, "changes": {}}
    options |= {"force": False, "resume": False, "shard": None, **changes}
    return predict_cases([scans / "run"], scans / "images", scans / "out", **options)
