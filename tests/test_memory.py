"""The limit on memory: what a scan needs is worked out before it is read, and is what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import write_nifti
from data_helpers import make_test_plan
from inference_helpers import make_member, quick_config, write_run

from segment.data.grid import Grid
from segment.data.scan import Case, ScanError
from segment.inference.memory import GIB, MARGIN, MemoryLimit, Wanted, windows_within
from segment.inference.predictor import Predictor
from segment.memory_use import resident_bytes

MASK_ONLY = Wanted(maps=0, written=False, scored=False)

# All that `segment infer` does with one scan, in a process of its own; prints what it took and what was foretold.
WHOLE_WAY = """
import json, sys
from pathlib import Path
from segment.inference.predictor import Predictor
from segment.inference.tiles import remove_doubtful
from segment.data.scan import Case, read_grid, read_scan, write_mask, write_probability
from segment.memory_use import peak_bytes, resident_bytes
run, path, out = map(Path, sys.argv[1:])
predictor = Predictor.load([run], changes={"max_memory_gb": 64, "uncertainty": "deviation", "flips": False})
case = Case("scan", "scan", (path,), None)
wanted = predictor.wanted(probabilities=True, scored=False, peaks=True)
foretold = predictor.memory.bytes_for(read_grid(path), wanted, slabs=3)
base, before = predictor.memory.base, resident_bytes()
scan = read_scan(case, with_label=False)
grid, header = scan.grid, scan.header
prepared = predictor.prepare(scan)
del scan
found = predictor.predict_prepared(prepared, threshold=0.4, keep_probabilities=True, min_peak=0.5)
del prepared
remove_doubtful(found.mask, predictor.plan, min_lesion_mm3=2.0, voxel_mm3=grid.voxel_mm3, peaks=found.peaks)
write_probability(out / "p.nii", found.probabilities, grid, header)
write_probability(out / "u.nii", found.uncertainty, grid, header)
write_mask(out / "m.nii", found.mask, grid, header)
peak = peak_bytes()
print(json.dumps({"base": base, "foretold": foretold, "peak": peak, "before": before}))
"""


def case_of(folder: Path, shape: tuple[int, int, int]) -> Case:
    path = folder / "scan_0000.nii.gz"
    write_nifti(path, np.ones(shape, np.uint8), np.eye(4))
    return Case("scan", "scan", (path,), None)


@pytest.mark.slow
def test_a_whole_prediction_stays_within_what_was_foretold(tmp_path: Path) -> None:
    write_run(tmp_path / "run", make_test_plan(patch_size=(64, 64, 64)), config=quick_config(overlap=0.0))
    rng = np.random.default_rng(0)
    image = rng.integers(100, 200, (256, 256, 96), np.int16)
    image[:20] = 0
    write_nifti(tmp_path / "scan.nii", image, np.eye(4))
    done = subprocess.run(
        [sys.executable, "-c", WHOLE_WAY, str(tmp_path / "run"), str(tmp_path / "scan.nii"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] <= found["base"] + found["foretold"]
    # No scan is refused that would have fitted easily.
    assert found["foretold"] <= 3 * (found["peak"] - found["before"])


class TestNeeds:
    def needs(self, grid: Grid, wanted: Wanted = MASK_ONLY, *, plan=None, **inference: object) -> int:
        members = [make_member(plan or make_test_plan(), **inference)]
        return MemoryLimit(members, None).bytes_for(grid, wanted, slabs=2)

    def test_a_large_scan_is_its_input_twice_and_little_more(self) -> None:
        grid = Grid((512, 512, 600), np.eye(4))
        voxels = 512 * 512 * 600
        # float32 from the file and on the network's grid, the subject's mask, and the labels of its background.
        assert 9 * voxels <= self.needs(grid) <= 11 * voxels + GIB // 4

    def test_maps_finer_grids_and_uncertainty_need_more(self) -> None:
        grid = Grid((256, 256, 100), np.eye(4))
        plain = self.needs(grid)
        assert self.needs(grid, Wanted(maps=2, written=True, scored=False)) > plain
        fine = make_test_plan(spacing_mm=(0.5, 0.5, 0.5))
        assert self.needs(grid, plan=fine) > 4 * plain

    def test_peaks_are_one_byte_a_voxel(self) -> None:
        grid = Grid((256, 256, 100), np.eye(4))
        plain = Wanted(maps=1, written=True, scored=False)
        assert self.needs(grid, replace(plain, peaks=True)) - self.needs(grid, plain) == 256 * 256 * 100

    def test_axes_of_the_file_may_stand_in_any_order(self) -> None:
        turned = Grid((256, 100, 250), np.eye(4)[:, [2, 0, 1, 3]] * [1, 4, 1, 1])
        straight = Grid((100, 250, 256), np.diag([4.0, 1, 1, 1]))
        assert self.needs(turned) == self.needs(straight)


class TestLimit:
    def test_a_scan_above_the_limit_is_refused_before_it_is_read(self, tmp_path: Path) -> None:
        member = make_member()
        limit = MemoryLimit([member], resident_bytes() / GIB + 0.2)
        limit.require(case_of(tmp_path, (50, 50, 50)), MASK_ONLY)
        large = case_of(tmp_path, (400, 400, 300))
        with pytest.raises(ScanError, match=r"case scan: .* needs .* GiB, inference.max_memory_gb allows") as caught:
            limit.require(large, MASK_ONLY)
        assert caught.value.kind == "memory"
        assert "\n" not in str(caught.value)

    def test_two_scans_that_fit_alone_may_not_fit_together(self, tmp_path: Path) -> None:
        case = case_of(tmp_path, (100, 100, 100))
        needed = MemoryLimit([make_member()], None).bytes_for(Grid((100, 100, 100), np.eye(4)), MASK_ONLY, slabs=3)
        limit = MemoryLimit([make_member()], (resident_bytes() + MARGIN + 1.5 * needed) / GIB)
        assert limit.fit_together([case], MASK_ONLY)
        assert not limit.fit_together([case, case], MASK_ONLY)

    def test_without_a_limit_everything_fits(self, tmp_path: Path) -> None:
        missing = Case("none", "none", (tmp_path / "none.nii",), None)
        limit = MemoryLimit([make_member()], None)
        limit.require(missing, MASK_ONLY)
        assert limit.fit_together([missing], MASK_ONLY)

    def test_windows_at_a_time(self) -> None:
        plan = replace(make_test_plan(patch_size=(64, 64, 64)))
        # 4 bytes x 64^3 x (2 channels in and out + 4 of the results) = 6 MiB a window; a sixteenth of 1 GiB is 64 MiB.
        assert windows_within(1.0, plan, 4) == 4
        assert windows_within(1.0, plan, 100) == 10
        assert windows_within(0.01, plan, 4) == 1
        assert windows_within(None, plan, 100) == 100

    def test_the_option_reaches_the_predictor(self, tmp_path: Path) -> None:
        write_run(tmp_path, make_test_plan())
        assert Predictor.load([tmp_path]).memory.limit is None
        assert Predictor.load([tmp_path], changes={"max_memory_gb": 2.5}).memory.limit == 2.5 * GIB
