"""The tissue scale: where the main tissue lies, whatever a patient has of lesions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from segment.data.cases import find_dataset
from segment.data.normalization import inside_mask, normalise, tissue_scale
from segment.data.scan import read_scan

SHARED = os.environ.get("SEGMENT_SHARED")
LITRE = 100**3  # voxels: the head stands for a litre, at one cubic millimetre a voxel
FLUID, GREY, WHITE, LESION = (20.0, 5.0), (110.0, 8.0), (90.0, 8.0), (150.0, 15.0)


def flair(lesion_ml: int, *, fluid: float = 0.1, grey: float = 0.5) -> np.ndarray:
    """Voxels of a litre of brain; lesions take the place of white matter."""
    rng = np.random.default_rng(5)
    shares = {FLUID: fluid, GREY: grey, WHITE: 1 - fluid - grey - lesion_ml / 1000, LESION: lesion_ml / 1000}
    return np.concatenate([rng.normal(*tissue, round(share * LITRE)) for tissue, share in shares.items()])


class TestTissueScale:
    def test_one_tissue_and_fluid_by_arithmetic(self) -> None:
        rng = np.random.default_rng(0)
        values = np.concatenate([rng.normal(100, 5, 95_000), np.full(5_000, 10.0)])
        centre, unit = tissue_scale(values)
        assert centre == pytest.approx(100, abs=0.2)
        assert unit == pytest.approx((100 - 10) / 3, abs=0.1)  # 5% are fluid, so the 2nd percentile is, too

    def test_gain_and_offset_go_out_of_it(self) -> None:
        values = flair(0)
        centre, unit = tissue_scale(values)
        other_centre, other_unit = tissue_scale(3.5 * values - 200)
        assert other_centre == pytest.approx(3.5 * centre - 200, rel=1e-6)
        assert other_unit == pytest.approx(3.5 * unit, rel=1e-6)

    def test_50_ml_of_bright_lesions_move_it_far_less_than_the_zscore(self) -> None:
        """What white matter, grey matter and a lesion become, with and without 50 ml of lesions in the scan."""
        light, heavy = flair(0), flair(50)
        signals = np.array([WHITE[0], GREY[0], LESION[0]])

        def moved(scale: object) -> float:
            (a, b), (c, d) = scale(light), scale(heavy)  # type: ignore[operator]
            return float(np.abs((signals - a) / b - (signals - c) / d).max())

        by_zscore = moved(lambda values: (values.mean(), values.std()))
        assert by_zscore > 0.2
        assert moved(tissue_scale) < by_zscore / 5

    def test_of_two_peaks_the_brighter_is_white_matter_on_t1_in_young_and_old(self) -> None:
        rng = np.random.default_rng(1)
        fluid, grey, white = rng.normal(30, 8, 10_000), rng.normal(110, 9, 90_000), rng.normal(190, 9, 90_000)
        for parts in ((grey, white[:60_000]), (grey[:60_000], white)):
            assert tissue_scale(np.concatenate([fluid, *parts]))[0] == pytest.approx(190, abs=1)

    def test_air_and_few_values_fall_back_to_the_zscore(self) -> None:
        rng = np.random.default_rng(2)
        air = np.concatenate([rng.normal(10, 2, 90_000), rng.normal(200, 20, 20_000)])
        two = np.repeat([1.0, 2.0], [10, 90])
        nearly_constant = np.concatenate([np.full(100_000, 5.0), [6.0]])
        for values in (air, nearly_constant, np.array([3.0, 4.0])):
            assert tissue_scale(values) == (values.mean(), values.std())
        centre, unit = tissue_scale(two)
        assert centre == pytest.approx(2.0)
        assert unit == pytest.approx(1 / 3)

    @pytest.mark.parametrize("how", ["zscore", "percentile", "tissue"])
    def test_outside_is_0_and_a_constant_is_0(self, how: str) -> None:
        image = np.zeros((12, 12, 12), np.float32)
        image[2:10, 2:10, 2:10] = np.random.default_rng(3).normal(100, 10, (8, 8, 8))
        found = normalise(image, image != 0, how)
        assert found.dtype == np.float32
        assert (found[image == 0] == 0).all()
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(normalise(np.full((3, 4, 5), 7, np.float32), np.ones((3, 4, 5), bool), how), 0)


@pytest.mark.skipif(not SHARED, reason="SEGMENT_SHARED does not name the folder with the real scans")
def test_two_real_patients_of_50_and_8_ml_agree_better_than_after_zscore() -> None:
    """Normal white matter, found on T1, on FLAIR: the gap between the patients in units of its distance to fluid."""
    dataset = find_dataset(Path(str(SHARED)) / "data" / "ms", layout="nnunet")
    gaps = {}
    for how in ("zscore", "tissue"):
        white, fluid = [], []
        for case in dataset.cases:
            scan = read_scan(case, with_label=True)
            flair_image, t1 = (normalise(c, inside_mask(c), how) for c in np.moveaxis(scan.image, -1, 0))
            inside = inside_mask(scan.image[..., 1]) & (scan.label == 0)
            low, high = np.percentile(t1[inside], (5, 75))
            white.append(np.median(flair_image[inside & (t1 > high)]))
            fluid.append(np.median(flair_image[inside & (t1 < low)]))
        gaps[how] = abs(white[0] - white[1]) / abs(np.mean(white) - np.mean(fluid))
    assert gaps["tissue"] < gaps["zscore"] / 2
