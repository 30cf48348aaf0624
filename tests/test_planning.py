"""The fingerprint of a dataset and the plan made from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_dataset, write_case, write_dataset_json
from data_helpers import make_scan

from segment.config import Config, config_from
from segment.data.axes import coarsest_axis, plan_kernels, plan_patch, plan_strides
from segment.data.cases import Dataset, find_dataset
from segment.data.fingerprint import Fingerprint, Intensities, fingerprint
from segment.data.planning import Plan, make_plan
from segment.data.preprocessing import to_network
from segment.errors import InputError

DATASET = Dataset(root=Path("d"), cases=(), channel_names=("FLAIR", "T1"), label_values={"lesion": 1, "edema": 4})
FINGERPRINT = Fingerprint(
    cases=3,
    channels=2,
    spacing_mm=(1.0, 1.0, 1.0),
    spacing_range_mm=((1.0, 1.0),) * 3,
    shape=(150, 180, 130),
    voxels=3 * 150 * 180 * 130,
    foreground_share=0.01,
    lesion_mm3=(3.0, 40.0, 500.0),
    intensities=(Intensities((80.0, 120.0, 160.0), (5.0, 90.0, 150.0)),) * 2,
)


def config(**sections: object) -> Config:
    return config_from(dict(sections), source="test")


class TestFingerprint:
    def test_counts_by_hand(self, tmp_path: Path) -> None:
        tiny_dataset(tmp_path, cases=2)
        found = fingerprint(find_dataset(tmp_path, layout="nnunet"), workers=2)
        assert found.cases == 2
        assert found.channels == 1
        assert found.spacing_mm == (1.0, 1.0, 2.0)
        assert found.shape == (8, 7, 6)
        assert found.foreground_share == 8 / (8 * 7 * 6)  # one lesion of 2x2x2 voxels in each

    def test_box_axes_and_medians(self, tmp_path: Path) -> None:
        # The file's axes are (z, x, y) of the world; the subject fills 4 x 5 x 6 of 9 x 9 x 9 voxels.
        write_dataset_json(tmp_path)
        for name, spacing in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
            image = np.zeros((9, 9, 9), np.float32)
            image[2:6, 1:6, 3:9] = 7
            affine = np.zeros((4, 4))
            affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 3 * spacing, spacing, spacing, 1
            write_case(tmp_path, name, image, (image > 0).astype(np.uint8), affine)
        found = fingerprint(find_dataset(tmp_path, layout="nnunet"), workers=1)
        assert found.spacing_mm == (1.0, 1.0, 3.0)
        assert found.shape == (5, 6, 4)
        assert found.foreground_share == 1.0

    def test_figures_by_hand(self, tmp_path: Path) -> None:
        write_dataset_json(tmp_path, channels=("a", "b"))
        for name, spacing in (("one", 1.0), ("two", 2.0)):
            image = np.full((4, 4, 4, 2), 10.0, np.float32)
            image[..., 1] = 7
            image[0, 0, 0, 1] = 0  # not part of the second channel's figures
            label = np.zeros((4, 4, 4), np.uint8)
            label[0, 0, :2] = label[3, 3, 3] = 1
            image[0, 0, 1, 0], image[3, 3, 3, 0] = 20, 30
            write_case(tmp_path, name, image, label, np.diag([spacing, 1, 1, 1]))
        found = fingerprint(find_dataset(tmp_path, layout="nnunet"), workers=2)
        assert found.spacing_range_mm == ((1.0, 2.0), (1.0, 1.0), (1.0, 1.0))
        assert found.lesion_mm3 == (1.0, 2.0, 2.0, 4.0)
        # Median spacing 1.5: 64 mm3 and 128 mm3 are 128 voxels of 1.5 mm3.
        assert (found.spacing_mm[0], found.voxels) == (1.5, 128)
        first, second = found.intensities
        # 10, 20, 30 in each case; percentiles of 10 10 20 20 30 30 by hand: 99.5 lies between the last two.
        assert first.lesions == (10.0, 20.0, 30.0)
        assert first.elsewhere == (10.0, 10.0, 10.0)
        assert first.window == pytest.approx((10.0, 30.0, 20.0, (200 / 3) ** 0.5))
        assert (second.lesions, second.elsewhere) == ((0.0, 7.0, 7.0), (7.0, 7.0, 7.0))

    def test_without_lesions_and_without_contrast(self, tmp_path: Path) -> None:
        write_dataset_json(tmp_path)
        image = np.full((4, 4, 4), 10.0, np.float32)
        write_case(tmp_path, "none", image, np.zeros((4, 4, 4), np.uint8))
        (channel,) = fingerprint(find_dataset(tmp_path, layout="nnunet"), workers=1).intensities
        assert channel == Intensities(None, (10.0, 10.0, 10.0), None)
        write_case(tmp_path, "flat", image, np.ones((4, 4, 4), np.uint8))
        (channel,) = fingerprint(find_dataset(tmp_path, layout="nnunet"), workers=1).intensities
        assert (channel.lesions, channel.window) == ((10.0, 10.0, 10.0), None)


class TestPatch:
    def test_isotropic_is_a_cube_of_64(self) -> None:
        assert plan_patch((1.0, 1.0, 1.0), (150, 180, 130), voxels=64**3) == [64, 64, 64]

    def test_equal_edges_in_mm(self) -> None:
        # Edge e mm: e * e * e/3 = 64^3, so e = 64 * 3^(1/3) = 92.3.
        assert plan_patch((1.0, 1.0, 3.0), (200, 200, 80), voxels=64**3) == [92, 92, 31]

    def test_short_axis_gives_its_share_to_the_others(self) -> None:
        # 16 slices are all there are: e * e * 16 = 64^3, so e = 128.
        assert plan_patch((1.0, 1.0, 1.0), (200, 200, 16), voxels=64**3) == [128, 128, 16]

    def test_small_volume_is_taken_whole(self) -> None:
        assert plan_patch((1.0, 1.0, 1.0), (20.4, 30.0, 10.0), voxels=64**3) == [21, 30, 10]

    def test_2d(self) -> None:
        assert plan_patch((1.0, 1.0), (512, 512), voxels=256**2) == [256, 256]


class TestStridesAndKernels:
    def test_isotropic(self) -> None:
        strides = plan_strides((1.0, 1.0, 1.0), (64, 64, 64), 4)
        assert strides == ((2, 2, 2),) * 3
        assert plan_kernels((1.0, 1.0, 1.0), strides) == ((3, 3, 3),) * 4

    def test_coarse_axis_waits_for_the_others(self) -> None:
        # 1x1x3: the third axis is 3 times coarser at level 0, 1.5 times at level 1, and 0.75 of it after that.
        strides = plan_strides((1.0, 1.0, 3.0), (96, 96, 32), 4)
        assert strides == ((2, 2, 1), (2, 2, 2), (2, 2, 2))
        assert plan_kernels((1.0, 1.0, 3.0), strides) == ((3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3))

    def test_what_is_strided_is_seen(self) -> None:
        """A kernel of 1 with stride 2 would never look at every other slice."""
        assert plan_kernels((1.0, 1.0, 3.0), [(2, 2, 2)] * 2) == ((3, 3, 1), (3, 3, 3), (3, 3, 3))
        assert plan_kernels((1.0, 1.0, 3.0), [(1, 1, 2), (2, 2, 1)]) == ((3, 3, 1), (3, 3, 3), (3, 3, 1))

    def test_the_coarsest_axis_of_float32_headers(self) -> None:
        assert coarsest_axis((1.00000005, 1.0, 0.99999998)) == 2
        assert coarsest_axis((3.0, 1.0, 1.0)) == 0
        assert coarsest_axis((0.9, 1.0, 0.9)) == 1

    def test_exactly_twice_as_coarse_becomes_isotropic(self) -> None:
        assert plan_strides((1.0, 1.0, 1.99999), (64, 64, 32), 3) == ((2, 2, 1), (2, 2, 2))

    def test_map_stays_at_4_voxels_and_holds_nobody_back(self) -> None:
        # 16 -> 8 -> 4, then the third axis stops while the others go on.
        assert plan_strides((1.0, 1.0, 1.0), (64, 64, 16), 5) == ((2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1))


class TestMakePlan:
    def test_defaults(self) -> None:
        plan = make_plan(DATASET, FINGERPRINT, config())
        assert plan.patch_size == (64, 64, 64)
        assert plan.spacing_mm == (1.0, 1.0, 1.0)
        assert (plan.dimensions, plan.channels, plan.classes, plan.slice_axis) == (3, 2, 2, None)
        assert plan.label_values == {"lesion": 1, "edema": 4}
        assert plan.foreground_share == 0.01

    def test_shape_is_rescaled_to_the_target_spacing(self) -> None:
        plan = make_plan(DATASET, FINGERPRINT, config(data={"spacing_mm": [4, 4, 4]}))
        # 150, 180, 130 mm are 37.5, 45, 32.5 voxels of 4 mm: all of it, to the nearest multiple of 8.
        assert plan.patch_size == (40, 48, 32)

    def test_2d_leaves_the_coarsest_axis_out(self) -> None:
        coarse = dataclasses.replace(FINGERPRINT, spacing_mm=(1.0, 4.0, 1.0), shape=(160, 30, 160))
        plan = make_plan(DATASET, coarse, config(model={"dimensions": 2, "filters": [8, 16, 32]}))
        assert (plan.dimensions, plan.slice_axis) == (2, 1)
        assert plan.patch_size == (160, 1, 160)
        assert plan.strides == ((2, 2), (2, 2))
        assert plan.kernels == ((3, 3),) * 3

    def test_2d_of_isotropic_data_takes_axial_slices(self) -> None:
        plan = make_plan(DATASET, FINGERPRINT, config(model={"dimensions": 2, "patch_size": [96, 64]}))
        assert plan.patch_size == (96, 64, 1)

    def test_given_patch_is_rounded_up_and_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        plan = make_plan(DATASET, FINGERPRINT, config(model={"patch_size": [60, 64, 33]}))
        assert plan.patch_size == (64, 64, 40)
        said = " ".join(capsys.readouterr().err.split())
        assert "model.patch_size [60, 64, 33] is rounded up to [64, 64, 40]" in said

    def test_given_strides_are_kept(self) -> None:
        model = {"filters": [8, 16], "strides": [[1, 2, 2]], "patch_size": [5, 8, 8]}
        plan = make_plan(DATASET, FINGERPRINT, config(model=model))
        assert plan.strides == ((1, 2, 2),)
        assert plan.patch_size == (5, 8, 8)


class TestCtWindows:
    window = (10.0, 60.0, 35.0, 12.0)
    ct = Intensities((10.0, 35.0, 60.0), (-1000.0, 30.0, 900.0), window)
    mr = Intensities((10.0, 35.0, 60.0), (0.0, 30.0, 900.0), window)

    def plan(self, *channels: Intensities, normalization: str = "percentile") -> Plan:
        found = dataclasses.replace(FINGERPRINT, intensities=channels)
        return make_plan(DATASET, found, config(data={"normalization": normalization}))

    def test_of_ct_channels_only(self) -> None:
        plan = self.plan(self.ct, self.mr)
        assert plan.ct_windows == (self.window, None)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        assert self.plan(self.mr, self.mr).ct_windows == ()
        assert self.plan(self.ct, self.mr, normalization="zscore").ct_windows == ()

    def test_are_the_scale_of_every_scan(self) -> None:
        image = np.full((4, 4, 4, 2), 35.0)
        image[0, ..., 0], image[1, ..., 0] = -1000, 300
        image[2, ..., 1] = 50
        network, _, _ = to_network(make_scan(image, np.eye(4)), self.plan(self.ct, self.mr))
        # (10 - 35) / 12, (60 - 35) / 12 and 0, whatever else is in the scan.
        np.testing.assert_allclose(network[:, 0, 0, 0], [-25 / 12, 25 / 12, 0, 0], rtol=1e-6)
        assert abs(network[..., 1].mean()) < 1e-6  # its own scale

    def test_one_for_each_channel(self) -> None:
        values = {**self.plan(self.ct, self.mr).to_json(), "ct_windows": [None]}
        with pytest.raises(InputError, match="expected 2 ct_windows or none, found 1"):
            Plan.from_json(values)


class TestJson:
    plan = make_plan(DATASET, FINGERPRINT, Config())

    @pytest.mark.parametrize("model", [{"dimensions": 2}, {"dimensions": 3}, {"norm": "none"}])
    def test_round_trip(self, model: dict[str, object]) -> None:
        plan = make_plan(DATASET, FINGERPRINT, config(model=model))
        assert plan.norm == model.get("norm", "instance")
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"patch_size": None}, "malformed"),
            ({"patch_size": [64, 64]}, "malformed"),
            (
                {"patch_size": [64, 64, 60]},
                r"patch_size \(64, 64, 60\) is not a multiple of the total stride \(8, 8, 8\)",
            ),
            ({"filters": [8, 16]}, "2 filters need 2 kernels and 1 strides, found 4 and 3"),
            ({"kernels": [[3, 3]] * 4}, "2 or 3 values in every stride and kernel"),
            ({"spacing_mm": [1, 1, 0]}, "spacing_mm above 0"),
            ({"colour": "red"}, "'colour' is unknown"),
            ({"norm": "batch"}, "expected the norm instance or none, found 'batch'"),
        ],
    )
    def test_broken_values_are_named(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Plan.from_json({**self.plan.to_json(), **change})

    def test_missing_key_and_no_mapping(self) -> None:
        values = self.plan.to_json()
        del values["kernels"]
        with pytest.raises(InputError, match="'kernels' is missing"):
            Plan.from_json(values)
        with pytest.raises(InputError, match="expected a mapping, found list"):
            Plan.from_json([])
