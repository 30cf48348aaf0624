"""The U-Net: shapes, values against a NumPy network, numbers formats, seeds, saving, and replicas."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import make_test_plan

from segment.data.planning import Plan
from segment.model import InstanceNorm, build_unet, run_network
from segment.model.unet import EPSILON, NEGATIVE_SLOPE

REPOSITORY = Path(__file__).parents[1]


def plan_2d(**changes: object) -> Plan:
    """Slices across the last axis, 8 x 8."""
    return replace(make_test_plan(dimensions=2, spacing_mm=(1, 1, 5), patch_size=(8, 8, 1), channels=2), **changes)


def plan_3d(**changes: object) -> Plan:
    """8 x 8 x 4 voxels, two channels, not strided along the last axis at first, then along all."""
    values = {
        "patch_size": (8, 8, 4),
        "filters": (3, 4, 5),
        "strides": ((2, 2, 1), (2, 2, 2)),
        "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    }
    return replace(make_test_plan(channels=2), **{**values, **changes})


def images(plan: Plan, batch: int = 2) -> tf.Tensor:
    patch = [size for axis, size in enumerate(plan.patch_size) if axis != plan.slice_axis]
    values = np.random.default_rng(0).normal(size=(batch, *patch, plan.channels))
    return tf.constant(values, tf.float32)


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def mixed_policy(request: pytest.FixtureRequest):
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    tf.keras.mixed_precision.set_global_policy(before)


class NumpyUnet:
    """The same network in float64 with loops over kernel offsets; weights by the layers' names."""

    def __init__(self, model: tf.keras.Model, plan: Plan) -> None:
        self._weights = {layer.name: [np.asarray(w, np.float64) for w in layer.get_weights()] for layer in model.layers}
        self._plan = plan

    def __call__(self, image: np.ndarray) -> np.ndarray:
        features, skips = image.astype(np.float64), []
        for level in range(len(self._plan.filters)):
            features = self._level(features, f"down{level}", self._plan.strides[level - 1] if level else (1, 1, 1))
            skips.append(features)
        for level in reversed(range(len(self._plan.filters) - 1)):
            expand, kernel, *shortcut = self._weights[f"up{level}_join"]
            features = self._spread(features, expand, self._plan.strides[level])
            self._weights[f"up{level}_a_conv"] = [kernel]
            if shortcut:
                self._weights[f"up{level}_shortcut_conv"] = shortcut
            features = self._level(np.concatenate([features, skips[level]], axis=-1), f"up{level}", (1, 1, 1))
        kernel, bias = self._weights["logits0"]
        return features @ kernel + bias

    def _level(self, features: np.ndarray, name: str, strides: tuple[int, ...]) -> np.ndarray:
        shortcut = features
        if f"{name}_shortcut_conv" in self._weights:
            shortcut = self._norm(self._conv(features, f"{name}_shortcut_conv", strides), f"{name}_shortcut_norm")
        inner = self._norm(self._conv(features, f"{name}_a_conv", strides), f"{name}_a_norm")
        inner = np.where(inner > 0, inner, NEGATIVE_SLOPE * inner)
        inner = self._norm(self._conv(inner, f"{name}_b_conv", (1, 1, 1)), f"{name}_b_norm")
        total = inner + shortcut if self._plan.residual else inner
        return np.where(total > 0, total, NEGATIVE_SLOPE * total)

    def _conv(self, features: np.ndarray, name: str, strides: tuple[int, ...]) -> np.ndarray:
        kernel = self._weights[name][0]
        out = [size // stride for size, stride in zip(features.shape, strides, strict=False)]
        # What "same" means for sizes that the stride divides: the smaller half of the padding comes first.
        total = [max(width - stride, 0) for width, stride in zip(kernel.shape, strides, strict=False)]
        padded = np.pad(features, [(pad // 2, pad - pad // 2) for pad in total] + [(0, 0)])
        result = np.zeros((*out, kernel.shape[-1]))
        for offset in np.ndindex(*kernel.shape[:3]):
            window = tuple(
                slice(start, start + stride * (count - 1) + 1, stride)
                for start, stride, count in zip(offset, strides, out, strict=True)
            )
            result += padded[window] @ kernel[offset]
        return result

    def _spread(self, features: np.ndarray, expand: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
        """A transposed convolution whose kernel is its stride: every coarse voxel paints its own block."""
        blocks = (features @ expand).reshape(*features.shape[:3], *strides, -1)
        fine = [size * stride for size, stride in zip(features.shape, strides, strict=False)]
        result = np.zeros((*fine, blocks.shape[-1]))
        for position in np.ndindex(*strides):
            result[tuple(slice(p, None, s) for p, s in zip(position, strides, strict=True))] = blocks[
                (slice(None),) * 3 + position
            ]
        return result

    def _norm(self, features: np.ndarray, name: str) -> np.ndarray:
        scale, offset = self._weights[name]
        mean, variance = features.mean(axis=(0, 1, 2)), features.var(axis=(0, 1, 2))
        return (features - mean) / np.sqrt(variance + EPSILON) * scale + offset


class TestForward:
    @pytest.mark.parametrize("residual", [False, True])
    def test_equals_numpy_network(self, residual: bool) -> None:
        plan = plan_3d(residual=residual)
        model = build_unet(plan, seed=3)
        rng = np.random.default_rng(1)
        model.set_weights([w + rng.normal(scale=0.1, size=w.shape) for w in model.get_weights()])
        oracle = NumpyUnet(model, plan)
        batch = images(plan)
        expected = np.stack([oracle(image) for image in batch.numpy()])
        assert np.allclose(model(batch, training=True), expected, atol=1e-4)
        assert np.allclose(tf.function(model)(batch), expected, atol=1e-4)

    @pytest.mark.parametrize("plan", [plan_2d(), plan_3d()], ids=["2d", "3d"])
    def test_gives_float32_logits_of_the_patch_for_each_class(self, plan: Plan) -> None:
        plan = replace(plan, label_values={"lesion": 1, "core": 2})
        batch = images(plan)
        logits = build_unet(plan, seed=0)(batch)
        assert logits.shape == (*batch.shape[:-1], 2)
        assert logits.dtype == tf.float32

    @pytest.mark.parametrize("batch", [1, 2, 9])  # 9 is more than is drawn sample by sample
    def test_run_network_equals_the_model_on_the_whole_batch(self, batch: int) -> None:
        plan = plan_3d(deep_supervision=True)
        model = build_unet(plan, seed=0)
        together = model(images(plan, batch))
        apart = tf.function(lambda batch: run_network(model, batch, training=True))(images(plan, batch))
        assert [level.shape for level in apart] == [level.shape for level in together]
        assert all(np.allclose(one, other, atol=1e-5) for one, other in zip(apart, together, strict=True))

    def test_run_network_takes_a_batch_of_unknown_size(self) -> None:
        plan = plan_2d()
        model = build_unet(plan, seed=0)
        batch = images(plan, 3)
        signature = [tf.TensorSpec((None, *batch.shape[1:]), tf.float32)]
        unknown = tf.function(lambda values: run_network(model, values, training=False), input_signature=signature)
        assert np.allclose(unknown(batch)[0], model(batch), atol=1e-5)

    def test_every_sample_is_on_its_own(self) -> None:
        plan = plan_3d()
        model = build_unet(plan, seed=0)
        batch = images(plan, 3)
        alone = np.concatenate([model(batch[i : i + 1]) for i in range(3)])
        assert np.allclose(model(batch), alone, atol=1e-5)


class TestPlanChoices:
    def test_deep_supervision_gives_the_levels_finest_first(self) -> None:
        plan = plan_3d(deep_supervision=True)
        outputs = build_unet(plan, seed=0)(images(plan))
        assert [output.shape.as_list() for output in outputs] == [[2, 8, 8, 4, 1], [2, 4, 4, 4, 1]]

    def test_strides_shape_the_levels(self) -> None:
        model = build_unet(plan_3d(), seed=0)
        shapes = [tuple(model.get_layer(f"down{level}_b_relu").output.shape[1:]) for level in range(3)]
        assert shapes == [(8, 8, 4, 3), (4, 4, 4, 4), (2, 2, 2, 5)]
        assert model.get_layer("down0_a_conv").kernel.shape == (3, 3, 1, 2, 3)

    def test_two_dimensional_plan_has_no_slice_axis(self) -> None:
        assert build_unet(plan_2d(), seed=0).input_shape == (None, 8, 8, 2)

    @pytest.mark.parametrize("share", [0.02, 0.0, 1.0])
    def test_first_probability_is_the_foreground_rate(self, share: float) -> None:
        plan = plan_3d(foreground_share=share)
        probability = tf.sigmoid(build_unet(plan, seed=0)(images(plan, 4)))
        expected = min(max(share, 1e-3), 0.5)  # log(r / (1 - r)) has an end at neither side
        assert np.mean(probability) == pytest.approx(expected, rel=0.2)

    def test_no_convolution_has_a_bias(self) -> None:
        names = [weight.name for weight in build_unet(plan_3d(), seed=0).trainable_variables]
        assert sum("bias" in name for name in names) == 1  # the logits

    @pytest.mark.parametrize("residual", [False, True])
    def test_without_a_norm_far_voxels_have_no_say(self, residual: bool, tmp_path: Path) -> None:
        """With one, a bright spot in a corner changes every logit; without, those within reach of it alone."""
        plan = plan_3d(patch_size=(48, 8, 4), residual=residual, norm="none")
        image = images(plan, 1).numpy()
        other = image.copy()
        other[:, 0, 0, 0] += 50
        moved = {}
        for norm in ("none", "instance"):
            model = build_unet(replace(plan, norm=norm), seed=0)
            moved[norm] = np.abs(np.subtract(model(other), model(image)))
        assert moved["none"][:, :8].max() > 0.01
        assert moved["none"][:, 40:].max() == 0.0
        assert moved["instance"][:, 40:].max() > 1e-3
        assert not any(isinstance(layer, InstanceNorm) for layer in build_unet(plan, seed=0).layers)
        model = build_unet(plan, seed=0)
        model.save(tmp_path / "model.keras")
        loaded = tf.keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
        assert np.array_equal(loaded(image), model(image))


class TestSeed:
    def test_same_seed_same_weights(self) -> None:
        one, other = (build_unet(plan_3d(), seed=2**31 - 1).get_weights() for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    def test_another_seed_and_another_layer_differ(self) -> None:
        one, other = build_unet(plan_3d(), seed=0), build_unet(plan_3d(), seed=1)
        kernel = one.get_layer("up0_b_conv").get_weights()[0]
        assert not np.array_equal(kernel, other.get_layer("up0_b_conv").get_weights()[0])
        assert not np.array_equal(kernel, one.get_layer("down0_b_conv").get_weights()[0])


class TestMixedPrecision:
    def test_stays_near_float32_with_finite_gradients(self, mixed_policy: str) -> None:
        plan = plan_3d(residual=True)
        model = build_unet(plan, seed=0)
        assert all(weight.dtype in ("float32", tf.float32) for weight in model.trainable_variables)
        with tf.GradientTape() as tape:
            logits = model(images(plan), training=True)
            loss = tf.reduce_mean(tf.square(logits))
        weights = model.trainable_variables
        gradients = tape.gradient(loss, weights)
        assert logits.dtype == tf.float32
        bad = [one.name for one, slope in zip(weights, gradients, strict=True) if not np.isfinite(slope).all()]
        assert (bool(np.isfinite(loss)), bad) == (True, [])
        tf.keras.mixed_precision.set_global_policy("float32")
        exact = build_unet(plan, seed=0)(images(plan))
        tolerance = {"mixed_float16": 0.02, "mixed_bfloat16": 0.15}[mixed_policy]
        assert np.abs(logits - exact).max() < tolerance


LOAD = """
import sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import segment.model

folder = sys.argv[1]
model = tf.keras.models.load_model(folder + "/model.keras", safe_mode=True)
batch = np.load(folder + "/batch.npy")
for output, name in zip(model(batch), ("fine", "coarse")):
    np.save(f"{folder}/{name}.npy", output)

# Two replicas with one sample each against one device with both.
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    mirrored = tf.keras.models.load_model(folder + "/model.keras", safe_mode=True)

def gradients(net, images):
    with tf.GradientTape() as tape:
        loss = sum(tf.reduce_sum(tf.square(output)) for output in net(images, training=True))
    return tape.gradient(loss, net.trainable_variables)

def one_replica():
    context = tf.distribute.get_replica_context()
    sample = tf.gather(batch, [context.replica_id_in_sync_group])
    return context.all_reduce("SUM", gradients(mirrored, tf.ensure_shape(sample, (1, *batch.shape[1:]))))

found = tf.function(lambda: strategy.run(one_replica))()
for one, other in zip(found, gradients(model, batch), strict=True):
    np.testing.assert_allclose(strategy.experimental_local_results(one)[0], other, rtol=1e-3, atol=1e-3)
"""


class TestSaving:
    def test_loads_safely_in_a_new_process_and_runs_on_two_replicas(self, tmp_path: Path) -> None:
        plan = plan_3d(residual=True, deep_supervision=True)
        model = build_unet(plan, seed=0)
        model.save(tmp_path / "model.keras")
        np.save(tmp_path / "batch.npy", images(plan).numpy())
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        for output, name in zip(model(images(plan)), ("fine", "coarse"), strict=True):
            assert np.array_equal(np.load(tmp_path / f"{name}.npy"), output)

    def test_keeps_weights_and_precision(self, tmp_path: Path, mixed_policy: str) -> None:
        plan = plan_2d()
        model = build_unet(plan, seed=0)
        model.save(tmp_path / "model.keras")
        tf.keras.mixed_precision.set_global_policy("float32")
        loaded = tf.keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
        assert np.array_equal(loaded(images(plan)), model(images(plan)))
        assert loaded.get_layer("down0_a_conv").compute_dtype == mixed_policy.removeprefix("mixed_")
