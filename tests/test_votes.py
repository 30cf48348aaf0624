"""Several votes on a voxel: mirrored copies, members, their mean, and how far they agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import write_nifti
from data_helpers import make_scan, make_test_plan, store_case
from inference_helpers import bright_is_lesion, lesion_image, make_member, quick_config
from scipy.special import expit

from segment.inference.operating_point import PointSearch
from segment.inference.predictor import Prediction, Predictor
from segment.inference.tta import mirrors, voters_of
from segment.inference.uncertainty import deviation_map, entropy_map, tally
from segment.training.validation import evaluate_prepared


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def find(predictor: Predictor, image: np.ndarray, affine: np.ndarray | None = None) -> Prediction:
    scan = make_scan(image, np.eye(4) if affine is None else affine)
    return predictor.predict_prepared(predictor.prepare(scan), threshold=0.5, keep_probabilities=True)


def says(logit: float):
    return lambda windows: np.full((*windows.shape[:-1], 1), logit, np.float32)


class TestTally:
    def test_mean_and_variance_against_float64(self) -> None:
        votes = [expit(noise(2, 3, 4, 5, 1, seed=seed)) for seed in range(5)]
        mean, variance = tally([lambda _, vote=vote: vote for vote in votes], np.zeros(0), spread=True)
        exact = np.stack(votes).astype(np.float64)
        assert np.allclose(mean, exact.mean(axis=0), atol=1e-7)
        assert np.allclose(variance, exact.var(axis=0), atol=1e-7)

    def test_equal_votes_keep_their_value_and_do_not_differ(self) -> None:
        vote = expit(noise(1, 4, 4, 4, 1))
        mean, variance = tally([lambda _: vote] * 3, np.zeros(0), spread=True)
        assert np.array_equal(mean, vote)
        assert not variance.any()

    def test_a_single_vote_has_no_variance(self) -> None:
        vote = np.full((1, 2, 2, 2, 1), 0.3, np.float32)
        assert not tally([lambda _: vote], np.zeros(0), spread=True)[1].any()


class TestMaps:
    def test_entropy_by_hand(self) -> None:
        # H(1/4) = 2 - 3/4 * log2(3) = 0.811278 bits; none where it is certain.
        found = entropy_map(np.array([0.0, 0.25, 0.5, 0.75, 1.0], np.float32))
        assert np.allclose(found, [0, 0.811278, 1, 0.811278, 0], atol=1e-6)
        assert found.dtype == np.float32

    def test_deviation_by_hand(self) -> None:
        assert deviation_map(np.array([0.0, 0.04, 0.25], np.float32)).tolist() == pytest.approx([0, 0.2, 0.5])


class TestMirrors:
    def test_each_set_of_axes_once(self) -> None:
        assert mirrors(make_test_plan()) == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]

    @pytest.mark.parametrize("slice_axis", [0, 1, 2])
    def test_slices_of_a_2d_model_stay_in_order(self, slice_axis: int) -> None:
        spacing, window = [1.0, 1.0, 1.0], [4, 4, 4]
        spacing[slice_axis], window[slice_axis] = 5.0, 1
        plan = make_test_plan(dimensions=2, spacing_mm=tuple(spacing), patch_size=tuple(window))
        assert len(mirrors(plan)) == 4
        assert not any(slice_axis in axes for axes in mirrors(plan))
        windows = noise(2, *window, 1)
        for vote in voters_of(lambda windows: windows, plan, flips=True):
            assert np.allclose(vote(windows), expit(windows), atol=1e-7)  # mirrored back to its place

    def test_mean_over_mirrors_by_hand(self) -> None:
        """A network that marks the side of low x: mirrored along x it marks the other side as often."""
        plan = make_test_plan(patch_size=(4, 4, 4))

        def network(windows: np.ndarray) -> np.ndarray:
            side = np.where(np.arange(4) < 2, 20.0, -20.0).reshape(4, 1, 1, 1)
            return np.broadcast_to(side, (*windows.shape[:-1], 1)).astype(np.float32)

        votes = [vote(np.zeros((1, 4, 4, 4, 1), np.float32)) for vote in voters_of(network, plan, flips=True)]
        assert len(votes) == 8
        assert np.allclose(np.mean(votes, axis=0), 0.5, atol=1e-6)


class TestPredictions:
    def test_flips_leave_a_symmetric_network_as_it_is(self) -> None:
        image, mask = lesion_image((11, 9, 10))
        plain, flipped = (find(Predictor([make_member(flips=flips)]), image) for flips in (False, True))
        assert np.allclose(plain.probabilities, flipped.probabilities, atol=1e-6)
        assert np.array_equal(flipped.mask, mask)
        assert plain.uncertainty is None

    def test_deviation_between_members_by_hand(self) -> None:
        # Votes of 0.5 and sigmoid(2) = 0.8808: mean 0.6904, deviation half their distance, 0.1904.
        members = [make_member(forward=says(logit), uncertainty="deviation") for logit in (0.0, 2.0)]
        found = find(Predictor(members), lesion_image((9, 10, 11))[0])
        assert np.allclose(found.probabilities, 0.6904, atol=1e-4)
        assert np.allclose(found.uncertainty, 0.1904, atol=1e-4)

    def test_deviation_is_the_same_on_one_grid_and_on_several(self) -> None:
        coarse = make_test_plan(spacing_mm=(2.0, 2.0, 2.0))
        small = replace(make_test_plan(), patch_size=(6, 4, 8))
        for plan in (coarse, small):
            members = [make_member(forward=says(0.0), uncertainty="deviation")]
            members.append(make_member(plan, forward=says(2.0), uncertainty="deviation"))
            found = find(Predictor(members), lesion_image((9, 10, 11))[0])
            assert np.allclose(found.probabilities, 0.6904, atol=1e-4)
            assert np.allclose(found.uncertainty, 0.1904, atol=1e-4)

    def test_entropy_of_the_mean(self) -> None:
        members = [make_member(forward=says(logit), uncertainty="entropy") for logit in (-2.0, 2.0)]
        found = find(Predictor(members), lesion_image((9, 9, 9))[0])
        assert np.allclose(found.uncertainty, 1.0, atol=1e-6)  # certain each, but of opposite things

    def test_one_network_without_flips_has_no_deviation(self) -> None:
        found = find(Predictor([make_member(uncertainty="deviation")]), lesion_image((9, 9, 9))[0])
        assert not found.uncertainty.any()

    def test_all_lie_on_the_scans_own_grid(self) -> None:
        image = np.zeros((13, 9, 12), np.float32)
        image[2:11, 1:8, 3:10] = lesion_image((9, 7, 7))[0]
        affine = np.array([[0, -1.0, 0, 3], [0, 0, 1, 4], [-1, 0, 0, 5], [0, 0, 0, 1]])
        found = find(
            Predictor([make_member(forward=bright_is_lesion, uncertainty="entropy", flips=True)]), image, affine
        )
        assert np.array_equal(found.mask, image > 5)
        assert found.mask.dtype == np.uint8
        assert np.array_equal(found.probabilities[..., 0] > 0.5, image > 5)
        assert found.uncertainty.shape == found.probabilities.shape == (13, 9, 12, 1)

    def test_multi_class_mask_has_the_datasets_values(self) -> None:
        plan = make_test_plan(label_values={"lesion": 3, "core": 7})
        member = replace(
            make_member(plan, forward=lambda windows: np.concatenate([windows, windows - 3], axis=-1)),
            run_dir=Path("r"),
        )
        image = np.ones((8, 8, 8), np.float32)
        image[2, 3, 4] = 50
        found = find(Predictor([member]), image)
        assert found.mask[2, 3, 4] == 3  # both reach the threshold there, the first is more probable
        assert set(np.unique(found.mask)) <= {0, 3, 7}


class TestValidation:
    def test_the_point_is_chosen_on_what_a_prediction_says(self, tmp_path: Path) -> None:
        """A network whose mirrored views differ: with flips its mean decides, in the full validation alone."""
        image, label = lesion_image((8, 8, 8))
        write_nifti(tmp_path / "label.nii.gz", label, np.eye(4))
        stored = store_case(tmp_path / "case", image[..., None], label)
        prepared = [replace(stored, case=replace(stored.case, label_path=tmp_path / "label.nii.gz"))]
        plan, ramp = make_test_plan(), np.linspace(-4, 4, 8, dtype=np.float32).reshape(8, 1, 1, 1)

        def network(windows: np.ndarray) -> np.ndarray:
            return windows / 10 + ramp

        def seen(*, full: bool, flips: bool) -> np.ndarray:
            config, maps = quick_config(flips=flips), []
            search = PointSearch(config)
            search.add = lambda case_id, mask, probability, grid: maps.append(probability)
            kept = {"keep": lambda case, mask: None, "search": search}
            evaluate_prepared(network, prepared, plan, config, full=full, **kept)
            return maps[0]

        alone = expit(image / 10 + ramp[..., 0])
        mirrored = expit(image / 10 - ramp[..., 0])
        assert np.allclose(seen(full=True, flips=False), alone, atol=1e-6)
        assert np.allclose(seen(full=False, flips=True), alone, atol=1e-6)
        assert np.allclose(seen(full=True, flips=True), (alone + mirrored) / 2, atol=1e-6)
