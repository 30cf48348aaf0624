"""Batches for several workers, for 2.5D models and with pasted lesions; memory that no number of cases changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from augmentation_helpers import OFF
from data_helpers import make_test_plan, store_case

from segment.config import Config, config_from
from segment.data.lesion_maps import cell_map, distance_map
from segment.data.patches import PatchSource
from segment.data.pipeline import patch_dataset
from segment.data.preprocessing import PreparedCase
from segment.errors import InputError

PLAN = make_test_plan(patch_size=(16, 16, 16), channels=2)


def config(*, batch: int = 4, augmentation: object = None, terms: object = None) -> Config:
    values: dict[str, object] = {"train": {"batch_size": batch}, "augmentation": augmentation or {}}
    if terms:
        values["loss"] = {"terms": terms, "distance_clip_mm": 3.0}
    return config_from(values, source="test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    """A case of 24 x 20 x 22 with even tissue and two small lesions, 3 standard deviations brighter."""
    image = np.random.default_rng(0).normal(1.0, 0.05, (24, 20, 22, 2))
    label = np.zeros((24, 20, 22), np.uint8)
    label[3:5, 3:5, 3:5] = label[20, 17, 18] = 1
    image[label > 0] += 3
    return [store_case(tmp_path_factory.mktemp("shards") / "a", image, label)]


class TestShards:
    @pytest.mark.parametrize("workers", [1, 2, 4])
    def test_workers_together_have_the_batches_of_one(self, prepared: list[PreparedCase], workers: int) -> None:
        whole = list(patch_dataset(prepared, PLAN, config(), first_step=3, steps=3).as_numpy_iterator())
        parts = [
            patch_dataset(prepared, PLAN, config(), first_step=3, steps=3, shard=(worker, workers))
            for worker in range(workers)
        ]
        assert parts[0].element_spec["image"] == tf.TensorSpec((4 // workers, 16, 16, 16, 2), tf.float32)
        for step, shares in enumerate(zip(*(part.as_numpy_iterator() for part in parts), strict=True)):
            for key in ("image", "label", "case"):
                np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), whole[step][key])

    def test_uneven_shares_are_refused(self, prepared: list[PreparedCase]) -> None:
        with pytest.raises(
            InputError, match=r"train.batch_size: expected a multiple of the 3 workers, found 4 patches"
        ):
            patch_dataset(prepared, PLAN, config(), first_step=0, steps=1, shard=(0, 3))
        with pytest.raises(ValueError, match="expected a shard from 0 to 1, found 2"):
            patch_dataset(prepared, PLAN, config(), first_step=0, steps=1, shard=(2, 2))


class TestSlices:
    def test_batches_of_a_25d_model(self, prepared: list[PreparedCase]) -> None:
        plan = make_test_plan(patch_size=(16, 16, 1), channels=2, dimensions=2, slices=3)
        options = config(augmentation=OFF)
        data = patch_dataset(prepared, plan, options, first_step=0, steps=2)
        assert data.element_spec["image"] == tf.TensorSpec((4, 16, 16, 6), tf.float32)
        assert data.element_spec["label"] == tf.TensorSpec((4, 16, 16, 1), tf.uint8)
        batch = next(data.as_numpy_iterator())
        alone = next(
            patch_dataset(
                prepared,
                make_test_plan(patch_size=(16, 16, 1), channels=2, dimensions=2),
                options,
                first_step=0,
                steps=1,
            ).as_numpy_iterator()
        )
        np.testing.assert_array_equal(batch["image"][..., 2:4], alone["image"])  # the middle slice is the 2D model's
        np.testing.assert_array_equal(batch["label"], alone["label"])


class TestPastedLesions:
    def test_labels_and_maps_follow_them(self, prepared: list[PreparedCase]) -> None:
        terms = [{"name": "component_dice"}, {"name": "boundary"}]
        pasting = config(augmentation={**OFF, "copy_paste_share": 1}, terms=terms)
        source = PatchSource(prepared, PLAN, config(augmentation=OFF))
        batches = patch_dataset(prepared, PLAN, pasting, first_step=0, steps=4).as_numpy_iterator()
        pasted = 0
        for number, batch in enumerate(batches):
            for place in range(4):
                image, label, _ = source.sample(4 * number + place)
                found = batch["label"][place]
                new = (found > label)[..., 0]
                pasted += new.any()
                assert (found >= label).all()
                assert (batch["image"][place][new] > image[new] + 1).all()
                spacing = (1.0, 1.0, 1.0)
                np.testing.assert_array_equal(
                    batch["cells"][place][..., 0], cell_map(found[..., 0], spacing_mm=spacing)
                )
                np.testing.assert_array_equal(
                    batch["distance"][place][..., 0], distance_map(found[..., 0], spacing_mm=spacing, clip_mm=3.0)
                )
        assert pasted > 8


class TestMemory:
    CODE = """
import dataclasses, os, sys
from pathlib import Path
from augmentation_helpers import stored
from data_helpers import make_test_plan
import numpy as np
from segment.config import config_from
from segment.data.pipeline import patch_dataset
from segment.memory_use import peak_bytes

folder, count = Path(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
label = np.zeros((64, 64, 64), np.uint8)
label[20:24, 20:24, 20:24] = 1
first = stored(folder / "first", rng.normal(size=(64, 64, 64, 2)), label)
cases = []
for number in range(count):
    names = {name: folder / f"{number}-{name}.npy" for name in ("image", "label", "voxels")}
    for name, path in names.items():
        os.link(folder / "first" / f"{name}.npy", path)
    lesions = dataclasses.replace(first.lesions, voxels_path=names["voxels"])
    cases.append(dataclasses.replace(first, image_path=names["image"], label_path=names["label"], lesions=lesions))
config = config_from({"train": {"batch_size": 8}}, source="test")
seen = set()
for batch in patch_dataset(cases, make_test_plan(patch_size=(32, 32, 32), channels=2), config, first_step=0, steps=75):
    seen |= set(batch["case"].numpy().tolist())
print(len(seen), peak_bytes())
"""

    def test_400_cases_take_what_10_take(self, tmp_path: Path) -> None:
        """400 cases of 2 MB, by hard links: held or left mapped, those seen would take 700 MB more."""
        root = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
        peaks = []
        for count, least in ((10, 10), (400, 300)):
            folder = tmp_path / str(count)
            folder.mkdir()
            done = subprocess.run(
                [sys.executable, "-c", self.CODE, str(folder), str(count)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            seen, peak = (int(word) for word in done.stdout.split())
            assert seen >= least
            peaks.append(peak)
        assert peaks[1] < 1.05 * peaks[0]
