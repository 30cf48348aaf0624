"""Training batches: shapes, the share of lesion patches, and the same sample whenever it is built."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from augmentation_helpers import OFF as QUIET
from data_helpers import make_test_plan, store_case

from segment.config import Config, config_from
from segment.data.patches import PatchSource
from segment.data.pipeline import patch_dataset
from segment.data.preprocessing import PreparedCase


def config(*, batch: int = 4, share: float = 0.5, seed: int = 0, augmentation: object = None) -> Config:
    values = {
        "seed": seed,
        "data": {"lesion_patch_share": share, "workers": 2},
        "train": {"batch_size": batch},
        "augmentation": augmentation or {},
    }
    return config_from(values, source="test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedCase]:
    """Two cases of 2 channels: 24 x 20 x 16 with two classes in far corners, and 6 x 30 x 30 without lesions."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    label = np.zeros((24, 20, 16), np.uint8)
    label[1:3, 1:3, 1:3] = 2
    label[20:23, 17:19, 12:14] = 5
    first = store_case(folder / "a", rng.normal(size=(24, 20, 16, 2)), label, values=(2, 5))
    empty = np.zeros((6, 30, 30), np.uint8)
    return [first, store_case(folder / "b", rng.normal(size=(6, 30, 30, 2)), empty, values=(2, 5))]


PLAN = make_test_plan(channels=2, label_values={"lesion": 2, "edema": 5})
PLAN_2D = make_test_plan(
    channels=2, dimensions=2, spacing_mm=(1.0, 3.0, 1.0), patch_size=(8, 1, 8), label_values={"lesion": 2, "edema": 5}
)


class TestBatches:
    @pytest.mark.parametrize(("plan", "space"), [(PLAN, (8, 8, 8)), (PLAN_2D, (8, 8))])
    def test_static_shapes_and_types(self, prepared: list[PreparedCase], plan: object, space: tuple) -> None:
        data = patch_dataset(prepared, plan, config(), first_step=0, steps=2)  # type: ignore[arg-type]
        spec = data.element_spec
        assert spec["image"] == tf.TensorSpec((4, *space, 2), tf.float32)
        assert spec["label"] == tf.TensorSpec((4, *space, 2), tf.uint8)
        assert spec["case"] == tf.TensorSpec((4,), tf.int32)
        batches = list(data.as_numpy_iterator())
        assert len(batches) == 2
        assert set(np.unique(batches[0]["label"])) == {0, 1}

    def test_without_augmentation_patches_are_cut_from_the_case(self, prepared: list[PreparedCase]) -> None:
        batch = next(
            patch_dataset(prepared, PLAN, config(augmentation=QUIET), first_step=0, steps=1).as_numpy_iterator()
        )
        for image, label, case in zip(batch["image"], batch["label"], batch["case"], strict=True):
            padded = np.pad(prepared[case].image(), [(8, 8)] * 3 + [(0, 0)])
            windows = np.lib.stride_tricks.sliding_window_view(padded[..., 0], (8, 8, 8))
            starts = np.argwhere((windows == image[..., 0]).all(axis=(3, 4, 5)))
            assert len(starts) == 1
            x, y, z = starts[0]
            box = np.s_[x : x + 8, y : y + 8, z : z + 8]
            np.testing.assert_array_equal(image, padded[box])
            values = np.pad(prepared[case].label(), 8)[box]
            np.testing.assert_array_equal(label, np.stack([values == 2, values == 5], axis=-1))

    def test_zero_outside_the_volume(self, prepared: list[PreparedCase]) -> None:
        source = PatchSource(prepared[1:], PLAN, config(share=0.0, augmentation=QUIET))
        for index in range(5):
            image, label, _ = source.sample(index)
            assert ((image != 0).any(axis=(1, 2, 3))).sum() == 6  # the volume is 6 voxels wide, the patch 8
            assert label.sum() == 0

    def test_no_lesion_anywhere_gives_random_patches(self, prepared: list[PreparedCase]) -> None:
        data = patch_dataset(prepared[1:], PLAN, config(share=1.0), first_step=0, steps=1)
        assert next(data.as_numpy_iterator())["label"].sum() == 0


class TestMaps:
    def test_none_where_no_term_asks(self, prepared: list[PreparedCase]) -> None:
        assert set(patch_dataset(prepared, PLAN, config(), first_step=0, steps=1).element_spec) == {
            "image",
            "label",
            "case",
        }

    def test_cells_and_distances_belong_to_the_labels_of_the_batch(self, prepared: list[PreparedCase]) -> None:
        terms = [{"name": "dice"}, {"name": "component_dice"}, {"name": "boundary"}]
        loss = config().loss.model_validate({"terms": terms, "distance_clip_mm": 3.0})
        options = config().model_copy(update={"loss": loss})
        batch = next(patch_dataset(prepared, PLAN, options, first_step=0, steps=1).as_numpy_iterator())
        assert batch["cells"].dtype == np.int32
        assert batch["cells"].shape == batch["distance"].shape == batch["label"].shape
        has_lesion = batch["label"].any(axis=(1, 2, 3))  # [batch, classes]
        assert has_lesion.any()
        np.testing.assert_array_equal(batch["cells"].min(axis=(1, 2, 3)) > 0, has_lesion)
        np.testing.assert_array_equal(batch["distance"] < 0, batch["label"] == 1)
        assert np.abs(batch["distance"]).max() == 3.0


class TestLesionShare:
    def test_first_samples_of_each_batch_hold_lesions(self, prepared: list[PreparedCase]) -> None:
        batches = patch_dataset(prepared, PLAN, config(share=0.5), first_step=0, steps=20).as_numpy_iterator()
        held = np.array([batch["label"].any(axis=(1, 2, 3, 4)) for batch in batches])
        assert held[:, :2].all()
        assert not held[:, 2:].all()

    @pytest.mark.parametrize(
        ("batch", "share", "allowed"), [(4, 0.5, {2}), (3, 1.0, {3}), (8, 0.0, {0}), (2, 0.33, {0, 1})]
    )
    def test_count_per_batch(self, prepared: list[PreparedCase], batch: int, share: float, allowed: set) -> None:
        source = PatchSource(prepared, PLAN, config(batch=batch, share=share))
        counts = [source.lesion_patches(step) for step in range(400)]
        assert set(counts) == allowed
        # The mean of a count that is rounded at random: at most 0.5 / sqrt(400) of standard error.
        assert np.mean(counts) == pytest.approx(batch * share, abs=0.1)
        assert counts == [
            PatchSource(prepared, PLAN, config(batch=batch, share=share)).lesion_patches(s) for s in range(400)
        ]

    def test_batch_of_one_alternates_at_random(self, prepared: list[PreparedCase]) -> None:
        counts = [PatchSource(prepared, PLAN, config(batch=1)).lesion_patches(step) for step in range(200)]
        assert 70 <= sum(counts) <= 130
        assert counts != [step % 2 for step in range(200)]


class TestRebuilding:
    def test_resumed_run_sees_what_it_would_have_seen(self, prepared: list[PreparedCase]) -> None:
        whole = list(patch_dataset(prepared, PLAN, config(batch=3), first_step=0, steps=7).as_numpy_iterator())
        rest = list(patch_dataset(prepared, PLAN, config(batch=3), first_step=4, steps=3).as_numpy_iterator())
        assert len(rest) == 3
        for expected, found in zip(whole[4:], rest, strict=True):
            for key in ("image", "label", "case"):
                np.testing.assert_array_equal(found[key], expected[key])

    def test_any_sample_is_rebuilt_from_its_number(self, prepared: list[PreparedCase]) -> None:
        batch = list(patch_dataset(prepared, PLAN, config(batch=3), first_step=0, steps=3).as_numpy_iterator())[2]
        image, label, case = PatchSource(prepared, PLAN, config(batch=3)).sample(2 * 3 + 1)
        np.testing.assert_array_equal(batch["image"][1], image)
        np.testing.assert_array_equal(batch["label"][1], label)
        assert batch["case"][1] == case

    def test_seeds_and_indices_differ(self, prepared: list[PreparedCase]) -> None:
        samples = [
            PatchSource(prepared, PLAN, config(seed=seed)).sample(index)[0].tobytes()
            for seed in (0, 1)
            for index in range(10)
        ]
        assert len(set(samples)) == 20

    def test_workers_do_not_change_the_data(self, prepared: list[PreparedCase]) -> None:
        one = config().model_copy(update={"data": config().data.model_copy(update={"workers": 1})})
        many = config().model_copy(update={"data": config().data.model_copy(update={"workers": 4})})
        for first, second in zip(
            patch_dataset(prepared, PLAN, one, first_step=0, steps=4).as_numpy_iterator(),
            patch_dataset(prepared, PLAN, many, first_step=0, steps=4).as_numpy_iterator(),
            strict=True,
        ):
            np.testing.assert_array_equal(first["image"], second["image"])


class TestMemory:
    def test_files_are_mapped_not_held(self, prepared: list[PreparedCase], tmp_path: Path) -> None:
        """A sample reads its patch and no more: a volume of 1 GiB, mostly holes in the file, costs no memory."""
        path = tmp_path / "image.npy"
        np.lib.format.open_memmap(path, "w+", np.float32, (512, 512, 512, 2)).flush()
        label = tmp_path / "label.npy"
        np.lib.format.open_memmap(label, "w+", np.uint8, (512, 512, 512)).flush()
        template = prepared[1]
        large = PreparedCase(template.case, path, label, template.lesions, template.placement, (512, 512, 512))
        source = PatchSource([large], PLAN, config(share=0.0))
        source.sample(0)
        tracemalloc.start()
        source.sample(1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


class TestEndOfTheProcess:
    CODE = """
import sys
from pathlib import Path
import numpy as np
from data_helpers import make_test_plan, store_case
from segment.config import Config
from segment.data.pipeline import patch_dataset

def train(folder):
    case = store_case(folder / "a", np.ones((70, 70, 70, 1)), np.ones((70, 70, 70)))
    batches = iter(patch_dataset([case], make_test_plan(patch_size=(64, 64, 64)), Config(), first_step=0, steps=10**6))
    for _ in range(3):
        next(batches)
    raise RuntimeError("an error in the training loop")

train(Path(sys.argv[1]))
"""

    def test_error_while_data_flows_ends_the_process(self, tmp_path: Path) -> None:
        """The traceback keeps the iterator alive until the interpreter shuts down, where it would wait forever."""
        root = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
        done = subprocess.run(
            [sys.executable, "-c", self.CODE, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 1
        assert done.stderr.rstrip().endswith("RuntimeError: an error in the training loop")
