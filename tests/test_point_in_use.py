"""Which operating point a prediction uses, and what it says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_helpers import quick_config, threshold_predictor, write_scan
from operating_helpers import CASES, row, searched

from segment.data.cases import find_inputs
from segment.data.label_files import find_labels
from segment.errors import InputError
from segment.evaluation.froc import Sweep, pool
from segment.files import sha256_of
from segment.inference.batch import run_job
from segment.inference.operating_point import FILE, add_sweeps
from segment.inference.operating_point import write_operating_point as write_point
from segment.inference.point_in_use import PointInUse, point_in_use
from segment.inference.stages import CHOSE_THE_POINT, Job


class TestPointInUse:
    def run(self, folder: Path, values: dict[str, Any] | None) -> Path:
        folder.mkdir()
        if values is not None:
            write_point(folder, values)
        return folder

    def used(
        self, *runs: Path, threshold: float | None = None, budget: float | None = None, **inference: object
    ) -> PointInUse:
        config = quick_config(**inference)
        return point_in_use(runs, ["m"] * len(runs), config, threshold=threshold, max_fp_per_scan=budget)

    def test_the_runs_own(self, tmp_path: Path) -> None:
        found = self.used(self.run(tmp_path / "run", searched(CASES)))
        assert (found.threshold, found.min_lesion_mm3) == (0.3, 2.0)
        assert found.source == "operating_point.json, chosen on 2 validation cases"
        assert found.seen == {"sha-a", "sha-b"}

    def test_the_command_line_is_stronger(self, tmp_path: Path) -> None:
        found = self.used(self.run(tmp_path / "run", searched(CASES)), threshold=0.6, min_lesion_mm3=1.0)
        assert (found.threshold, found.min_lesion_mm3, found.source) == (0.6, 1.0, "--threshold")

    def test_without_a_file_the_configuration_holds(self, tmp_path: Path) -> None:
        found = self.used(self.run(tmp_path / "run", None), threshold=None, min_lesion_mm3=1.0)
        assert (found.threshold, found.min_lesion_mm3) == (0.5, 1.0)

    def test_another_budget_chooses_again(self, tmp_path: Path) -> None:
        """Of one lesion at 0.9 and one at 0.3 that no volume tells from the false positive at 0.35, as large."""
        cases = {
            "a": (row(1, 1, 0, 0, 0, 0), row(0.9, 0.9, 0, 0.35, 0.35, 0)),
            "b": (row(1, 1, 0, 0, 0, 0), row(0.3, 0.3, 0, 0, 0, 0)),
        }
        run = self.run(tmp_path / "run", searched(cases, operating_point={"max_fp_per_scan": 0.0}))
        assert self.used(run).threshold == 0.9
        found = self.used(run, budget=0.5)
        assert (found.threshold, found.seen) == (0.3, {"sha-a", "sha-b"})
        assert found.source == "chosen for at most 0.5 false positives a scan on 2 validation cases"
        with pytest.raises(InputError, match=r"--max-fp-per-scan: expected .*operating_point\.json to choose on"):
            self.used(self.run(tmp_path / "old", None), budget=1.0)

    def test_other_flips_than_it_was_chosen_with_are_said(self, tmp_path: Path) -> None:
        run = self.run(tmp_path / "run", searched(CASES))
        assert self.used(run).notes == self.used(run, flips=False).notes
        assert "chosen without flips and used with them" in self.used(run, flips=True).notes[-1]
        both = [run, self.run(tmp_path / "other", searched(CASES, flips=True))]
        assert "chosen with flips and used without them" in self.used(*both).notes[-1]

    def test_counts_of_two_definitions_are_not_added(self, tmp_path: Path) -> None:
        values = searched({"a": CASES["a"]})
        other = {**values, "evaluation": values["evaluation"] | {"small_mm3": 200.0}}
        runs = [self.run(tmp_path / "a", values), self.run(tmp_path / "b", other)]
        with pytest.raises(InputError, match=r"counted with .*50\.0.* and with .*200\.0"):
            self.used(*runs)
        assert self.used(*runs, threshold=0.4).threshold == 0.4

    def test_an_ensemble_pools_the_cases_of_its_members(self, tmp_path: Path) -> None:
        # Alone, a would choose 0.9 (highest of equals), b 0.3; together both lesions are found at 0.3.
        runs = [self.run(tmp_path / name, searched({name: CASES[name]})) for name in "ab"]
        found = self.used(*runs)
        assert (found.threshold, found.min_lesion_mm3) == (0.3, 2.0)
        target = "at most 1 false positives a scan"
        assert found.source == f"chosen for {target} on 2 validation cases of 2 runs together"

    def test_an_ensemble_with_an_old_run(self, tmp_path: Path) -> None:
        runs = [self.run(tmp_path / "a", searched(CASES)), self.run(tmp_path / "b", None)]
        assert "1 of 2 runs have no operating_point.json" in self.used(*runs).notes[-1]

    def test_another_models_point_is_refused(self, tmp_path: Path) -> None:
        run = self.run(tmp_path / "run", searched(CASES) | {"model_sha256": "other"})
        with pytest.raises(InputError, match=r"operating_point\.json: was chosen for another model"):
            self.used(run)

    @pytest.mark.parametrize(
        "change",
        [
            {"threshold": 1.5},
            {"threshold": "x"},
            {"min_lesion_mm3": -1},
            {"min_peak": 1.0},
            {"min_peak": -0.1},
            {"counts": {}},
            {"inputs": None},
        ],
        ids=str,
    )
    def test_a_broken_file_is_one_line(self, tmp_path: Path, change: dict[str, Any]) -> None:
        run = self.run(tmp_path / "run", searched(CASES))
        (run / FILE).write_text(json.dumps(searched(CASES) | change))
        with pytest.raises(InputError, match=r"operating_point\.json: expected an operating point"):
            self.used(run)

    def test_grids_that_differ_share_what_they_have(self) -> None:
        counts = np.arange(6).reshape(3, 2, 1)
        one = Sweep((0.2, 0.5, 0.7), (0.0, 2.0), (0.0,), 3, 2, counts, counts, counts)
        other = replace(one, thresholds=(0.5, 0.6, 0.7))
        total = add_sweeps([one, other])
        assert (total.thresholds, total.n_gt) == ((0.5, 0.7), 6)
        assert total.tp[..., 0].tolist() == [[2 + 0, 3 + 1], [4 + 4, 5 + 5]]
        assert pool([total], n_scans=2)[0].threshold == 0.7


class TestPredicting:
    """What a prediction with labels prints and writes about the point in use."""

    def job(self, folder: Path, point: PointInUse) -> Job:
        for seed, name in enumerate("ab"):
            write_scan(folder, name, np.eye(4), (9, 11, 16), seed=seed)
        (folder / "out").mkdir()
        options = {"probabilities": False, "settings": "0", "resume": False, "shard": None}
        return Job(threshold_predictor(), folder / "out", find_labels(folder / "labels"), point=point, **options)

    def test_a_table_of_both_points(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        job = self.job(tmp_path, PointInUse(0.7, 50.0, "test"))
        assert run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",))) == 0
        lines = capsys.readouterr().out.splitlines()
        half, used = (
            next(line for line in lines if line.startswith(name)) for name in ("│ 0.5 ", "│ 0.7, from 50 mm3")
        )
        # The network is perfect, and nearly all of its predictions are smaller than 50 mm3.
        assert [cell.strip() for cell in half.split("│")[2:5]] == ["1.00", "1.00", "0.00"]
        assert [cell.strip() for cell in used.split("│")[2:5]] == ["0.00", "0.00", "0.00"]

    def test_no_table_at_one_half(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert (
            run_job(self.job(tmp_path, PointInUse(0.5, 0.0, "test")), find_inputs(tmp_path / "images", channels=("x",)))
            == 0
        )
        assert "on these" not in capsys.readouterr().out

    def test_a_scan_that_chose_the_point_is_said_in_the_report(self, tmp_path: Path) -> None:
        job = self.job(tmp_path, PointInUse(0.5, 0.0, "test"))
        seen = frozenset({sha256_of(tmp_path / "images" / "b_0000.nii.gz")})
        job = replace(job, point=replace(job.point, seen=seen))
        run_job(job, find_inputs(tmp_path / "images", channels=("FLAIR",)))
        notes = json.loads((job.output / "report" / "summary.json").read_text())["notes"]
        assert notes == [f"b: {CHOSE_THE_POINT}"]
