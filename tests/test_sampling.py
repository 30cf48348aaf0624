"""Where patches lie: inside the volume, around lesions of every size, and as often as promised."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_helpers import make_test_plan, store_case
from scipy import stats

from segment.data.cases import find_dataset
from segment.data.preprocessing import PreparedCase, prepare_cases
from segment.data.sampling import PatchSampler, read_patch

EDGES = (10.0, 50.0, 200.0)


def case_with(folder: Path, shape: tuple[int, int, int], boxes: list[tuple[slice, slice, slice]]) -> PreparedCase:
    label = np.zeros(shape, np.uint8)
    for box in boxes:
        label[box] = 1
    return store_case(folder, np.zeros((*shape, 1)), label)


class TestLesionPatches:
    def test_lesion_that_fits_is_held_whole_at_every_place(self, tmp_path: Path) -> None:
        case = case_with(tmp_path / "a", (20, 20, 20), [np.s_[9:11, 0:3, 17:20]])
        sampler = PatchSampler([case], (6, 6, 6), bin_edges_mm3=EDGES)
        rng = np.random.default_rng(0)
        starts = np.array([sampler.draw(rng, lesion=True).start for _ in range(400)])
        # All starts that hold 9:11, 0:3 and 17:20 and stay inside 0:20.
        assert sorted(set(starts[:, 0])) == [5, 6, 7, 8, 9]
        assert sorted(set(starts[:, 1])) == [0]
        assert sorted(set(starts[:, 2])) == [14]
        middle = case_with(tmp_path / "b", (30, 30, 30), [np.s_[14:16, 14:16, 14:16]])
        sampler = PatchSampler([middle], (6, 6, 6), bin_edges_mm3=EDGES)
        starts = np.array([sampler.draw(rng, lesion=True).start for _ in range(400)])
        for axis in range(3):
            assert sorted(set(starts[:, axis])) == [10, 11, 12, 13, 14]
        assert len(set(map(tuple, starts))) > 100  # of 125: the axes are drawn independently

    def test_larger_lesion_shows_every_part(self, tmp_path: Path) -> None:
        case = case_with(tmp_path / "a", (40, 12, 12), [np.s_[5:35, 6:7, 6:7]])
        sampler = PatchSampler([case], (8, 8, 8), bin_edges_mm3=EDGES)
        rng = np.random.default_rng(1)
        seen: Counter[int] = Counter()
        for _ in range(500):
            location = sampler.draw(rng, lesion=True)
            patch = read_patch(case.label(), location.start, (8, 8, 8))
            assert patch[2:6].any()  # a voxel of it lies in the middle half
            seen.update((location.start[0] + np.flatnonzero(patch.any(axis=(1, 2)))).tolist())
        assert sorted(seen) == list(range(5, 35))

    def test_2d_patches_meet_the_lesion(self, tmp_path: Path) -> None:
        case = case_with(tmp_path / "a", (16, 16, 16), [np.s_[3:5, 3:5, 4:9]])
        sampler = PatchSampler([case], (8, 8, 1), bin_edges_mm3=EDGES)
        rng = np.random.default_rng(2)
        starts = [sampler.draw(rng, lesion=True).start for _ in range(100)]
        assert {start[2] for start in starts} == {4, 5, 6, 7, 8}
        assert all(read_patch(case.label(), start, (8, 8, 1)).sum() == 4 for start in starts)

    def test_size_bins_come_equally_often(self, tmp_path: Path) -> None:
        # One of 1 mm3 (the edge of a bin counts to the bin below), 20 of 10 mm3, one of 64 mm3, in two cases.
        many = [np.s_[0:1, index * 2 : index * 2 + 1, 0:10] for index in range(20)]
        cases = [
            case_with(tmp_path / "a", (4, 40, 40), many),
            case_with(tmp_path / "b", (20, 20, 20), [np.s_[0:4, 0:4, 0:4]]),
        ]
        sampler = PatchSampler(cases, (4, 4, 4), bin_edges_mm3=(10.0, 50.0))
        rng = np.random.default_rng(3)
        drawn = Counter(sampler.draw(rng, lesion=True).case for _ in range(1000))
        assert stats.binomtest(drawn[1], 1000, 0.5).pvalue > 1e-3

    def test_without_lesions_places_are_random(self, tmp_path: Path) -> None:
        sampler = PatchSampler([case_with(tmp_path / "a", (9, 9, 9), [])], (4, 4, 4), bin_edges_mm3=EDGES)
        assert not sampler.has_lesions
        assert all(0 <= s <= 5 for s in sampler.draw(np.random.default_rng(0), lesion=True).start)


class TestRandomPatches:
    def test_uniform_over_cases_and_places_that_stay_inside(self, tmp_path: Path) -> None:
        cases = [case_with(tmp_path / name, (10, 8, 8), [np.s_[0:2, 0:2, 0:2]]) for name in "ab"]
        sampler = PatchSampler(cases, (8, 8, 8), bin_edges_mm3=EDGES)
        rng = np.random.default_rng(4)
        drawn = Counter((d.case, d.start) for d in (sampler.draw(rng, lesion=False) for _ in range(1200)))
        assert sorted(drawn) == [(case, (x, 0, 0)) for case in (0, 1) for x in (0, 1, 2)]
        assert stats.chisquare(list(drawn.values())).pvalue > 1e-3

    @pytest.mark.parametrize("lesion", [True, False])
    def test_patch_larger_than_the_volume_holds_all_of_it(self, tmp_path: Path, lesion: bool) -> None:
        case = case_with(tmp_path / "a", (3, 8, 20), [np.s_[1:2, 1:2, 1:2]])
        sampler = PatchSampler([case], (8, 8, 8), bin_edges_mm3=EDGES)
        rng = np.random.default_rng(5)
        starts = np.array([sampler.draw(rng, lesion=lesion).start for _ in range(300)])
        assert sorted(set(starts[:, 0])) == ([-5, -4, -3, -2, -1, 0])
        assert set(starts[:, 1]) == {0}

    def test_same_generator_same_place(self, tmp_path: Path) -> None:
        case = case_with(tmp_path / "a", (30, 30, 30), [np.s_[5:25, 5:25, 5:25]])
        sampler = PatchSampler([case], (8, 8, 8), bin_edges_mm3=EDGES)
        first, second = ([sampler.draw(np.random.default_rng(seed), lesion=True) for seed in range(5)] for _ in "ab")
        assert first == second
        assert len(set(first)) == 5


class TestReadPatch:
    volume = np.arange(1, 4 * 5 * 6 * 2 + 1, dtype=np.float32).reshape(4, 5, 6, 2)

    @pytest.mark.parametrize("start", [(0, 0, 0), (1, 2, 3), (-1, -2, -3), (3, 4, 5), (-9, 0, 0), (9, 9, 9)])
    def test_zero_outside(self, start: tuple[int, int, int]) -> None:
        found = read_patch(self.volume, start, (3, 4, 2))
        padded = np.pad(self.volume, [(20, 20)] * 3 + [(0, 0)])
        x, y, z = (first + 20 for first in start)
        np.testing.assert_array_equal(found, padded[x : x + 3, y : y + 4, z : z + 2])
        assert found.dtype == np.float32

    def test_copies_and_keeps_the_type_without_channels(self) -> None:
        volume = np.ones((3, 3, 3), np.uint8)
        patch = read_patch(volume, (0, 0, 0), (3, 3, 3))
        patch[:] = 0
        assert volume.all()
        assert patch.dtype == np.uint8


SHARED = Path(os.environ.get("SEGMENT_SHARED", "")) / "data" / "ms"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    plan = make_test_plan(channels=2, patch_size=(64, 64, 64))
    cases = find_dataset(SHARED, layout="nnunet").cases
    return prepare_cases(cases, plan, cache_dir=tmp_path_factory.mktemp("cache"), workers=2)


@pytest.mark.skipif(
    not os.environ.get("SEGMENT_SHARED") or not SHARED.is_dir(), reason="set SEGMENT_SHARED to the folder with data/ms"
)
class TestRealLesions:
    DRAWS = 2000

    def test_every_lesion_is_seen_and_small_ones_as_often(self, prepared: list[PreparedCase]) -> None:
        assert [len(case.lesions) for case in prepared] == [98, 19]
        sampler = PatchSampler(prepared, (1, 1, 1), bin_edges_mm3=EDGES)  # one voxel shows which lesion was drawn
        owners = [_owner(case) for case in prepared]
        rng = np.random.default_rng(6)
        drawn: Counter[tuple[int, int]] = Counter()
        for _ in range(self.DRAWS):
            location = sampler.draw(rng, lesion=True)
            drawn[location.case, int(owners[location.case][location.start])] += 1
        assert (0, -1) not in drawn
        assert (1, -1) not in drawn
        assert len(drawn) == 98 + 19
        volume = {key: prepared[key[0]].lesions.volume_mm3[key[1]] for key in drawn}
        small = sum(count for key, count in drawn.items() if volume[key] <= 10)
        large = sum(count for key, count in drawn.items() if volume[key] > 200)
        assert stats.chisquare([small, large]).pvalue > 0.01
        assert stats.binomtest(small, self.DRAWS, 0.25).pvalue > 0.01

    def test_drawing_by_voxel_would_miss_some(self, prepared: list[PreparedCase]) -> None:
        volumes = np.concatenate([case.lesions.volume_mm3 for case in prepared])
        unseen = (1 - volumes / volumes.sum()) ** self.DRAWS  # probability that 2,000 voxel draws miss each lesion
        assert 1 - np.prod(1 - unseen) > 0.999999
        assert unseen.sum() > 20  # lesions that are expected to be missed

    def test_a_patch_of_64_holds_every_lesion_that_fits(self, prepared: list[PreparedCase]) -> None:
        sampler = PatchSampler(prepared, (64, 64, 64), bin_edges_mm3=EDGES)
        rng = np.random.default_rng(7)
        for _ in range(100):
            location = sampler.draw(rng, lesion=True)
            case = prepared[location.case]
            assert read_patch(case.label(), location.start, (64, 64, 64)).any()
            assert all(0 <= s <= n - 64 for s, n in zip(location.start, case.shape, strict=True))


def _owner(case: PreparedCase) -> np.ndarray:
    """int64 [x, y, z]: index of the lesion that a voxel belongs to, -1 for none."""
    owner = np.full(case.shape, -1)
    for lesion in range(len(case.lesions)):
        owner.reshape(-1)[case.lesions.voxels(lesion)] = lesion
    return owner
