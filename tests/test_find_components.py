"""Components by runs of voxels against scipy's, block borders and layouts included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from segment.evaluation import lesions
from segment.evaluation.lesions import find_components


class TestFindComponents:
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("density", [0.02, 0.1, 0.6, 1.0])
    def test_against_scipy(self, order: Any, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
        # Blocks of a few voxels, so that runs and components cross them.
        monkeypatch.setattr(lesions, "_BLOCK", 37)
        monkeypatch.setattr(lesions, "_RUNS", 5)
        inside = np.asarray(np.random.default_rng(3).random((9, 11, 13)) < density, order=order)
        found = find_components(inside)
        numbers, count = ndimage.label(inside, np.ones((3, 3, 3)))
        expected = []
        for number, box in enumerate(ndimage.find_objects(numbers), start=1):
            voxels = np.argwhere(numbers == number)
            start, stop = [side.start for side in box], [side.stop for side in box]
            expected.append((-len(voxels), start, stop, voxels.mean(axis=0).tolist(), (voxels[0]).tolist()))
        assert len(found) == count
        got = [
            (-int(n), start.tolist(), stop.tolist(), pytest.approx(centroid.tolist()))
            for n, start, stop, centroid in zip(found.n_voxels, found.start, found.stop, found.centroid, strict=True)
        ]
        expected.sort()
        assert sorted(n for n, *_ in got) == [n for n, *_ in expected] == [n for n, *_ in got]
        for *figures, voxel in expected:
            assert got[found.labels[tuple(voxel)] - 1] == tuple(figures)
        assert ((found.labels > 0) == inside).all()
        for number in range(1, count + 1):
            assert len(np.unique(numbers[found.labels == number])) == 1

    def test_the_smallest_type_that_holds_the_numbers(self) -> None:
        dots = np.zeros((83, 83, 83), bool)
        dots[::2, ::2, ::2] = True  # 42^3 = 74,088
        assert find_components(dots).labels.dtype == np.uint32
        assert find_components(dots[:5, :5, :5]).labels.dtype == np.uint16
