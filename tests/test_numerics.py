"""train.debug_numerics: bad numbers are put somewhere and must be found there."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from step_helpers import batches, make_model

from segment.config_loss import LossConfig
from segment.data.planning import Plan
from segment.losses import build_hybrid
from segment.model import build_unet
from segment.training.numerics import BadNumber, find_bad_number
from segment.training.precision import precision_policy

CASES = ("ms01", "ms02", "ms03", "ms04")


def batch_of_four() -> dict[str, np.ndarray]:
    return {name: array[0].copy() for name, array in batches(1).items()} | {"case": np.arange(4, dtype=np.int32)}


def find(
    model: tf.keras.Model, batch: dict[str, np.ndarray], *, loss: LossConfig | None = None, scale: float = 1.0
) -> BadNumber:
    tensors = {name: tf.constant(array) for name, array in batch.items()}
    return find_bad_number(model, build_hybrid(loss or LossConfig()), tensors, CASES, scale=scale)


def assign(model: tf.keras.Model, layer: str, weight: int, value: float) -> None:
    """Fills a weight of a layer."""
    values = model.get_layer(layer).get_weights()
    values[weight] = np.full_like(values[weight], value)
    model.get_layer(layer).set_weights(values)


class TestForward:
    @pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "Inf")])
    def test_image(self, value: float, kind: str) -> None:
        batch = batch_of_four()
        batch["image"][2, 3, 3, 0] = value
        assert find(make_model(), batch) == BadNumber("image", kind, "ms03")

    def test_weight(self) -> None:
        model = make_model()
        assign(model, "logits", 1, np.nan)
        found = find(model, batch_of_four())
        assert found == BadNumber("weight 'bias' of layer logits before the step", "NaN", "")

    @pytest.mark.parametrize("layer", ["hidden", "logits"])
    def test_layer_that_overflows(self, layer: str) -> None:
        model = make_model()
        assign(model, layer, 0, 1e38)
        batch = batch_of_four()
        batch["image"][:] = 0.0  # the other patches stay at 0
        batch["image"][1] = 100.0
        assert find(model, batch) == BadNumber(f"output of layer {layer}", "Inf", "ms02")

    def test_loss_term(self) -> None:
        # 3e38 is finite; a weight of positive voxels of 1e3 takes the term beyond float32.
        model = make_model()
        assign(model, "logits", 0, 0.0)
        assign(model, "logits", 1, -3e38)
        terms = [{"name": "dice"}, {"name": "binary_crossentropy", "positive_weight": 1e3}]
        batch = batch_of_four()
        batch["label"][:] = 0
        batch["label"][3, 2, 2, 0] = 1
        found = find(model, batch, loss=LossConfig.model_validate({"terms": terms}))
        assert found == BadNumber("loss term binary_crossentropy", "Inf", "ms04")


class TestBackward:
    def test_gradient_too_large_for_its_norm(self) -> None:
        model = make_model()
        batch = batch_of_four()
        batch["image"][0] = 1e30
        assign(model, "hidden", 0, 1e-30)
        found = find(model, batch)
        assert found.case_id == "ms01"
        assert found.place == "gradient of the weights of layer hidden"
        assert found.kind == "a finite number whose square is not"

    def test_float16_gradient_that_only_the_loss_scale_breaks(self) -> None:
        with precision_policy("mixed_float16"):
            image = tf.keras.Input((8, 8, 1))
            hidden = tf.keras.layers.Conv2D(4, 3, padding="same", name="hidden", kernel_initializer="ones")(image)
            model = tf.keras.Model(image, tf.keras.layers.Conv2D(1, 1, name="logits", dtype="float32")(hidden))
        assign(model, "logits", 0, 1.0)
        found = find(model, batch_of_four(), scale=2.0**24)
        assert found.place == "gradient at the output of layer hidden"
        assert found.kind == "Inf"
        assert found.overflow_of_scale
        assert "from the loss scale only" in str(found)

    def test_nothing_to_be_found_alone_is_said(self) -> None:
        found = find(make_model(), batch_of_four())
        assert found.place.startswith("sum of the gradients of the 4 patches (ms01, ms02, ms03, ms04)")


class TestNetwork:
    @pytest.mark.parametrize("deep_supervision", [False, True])
    def test_layer_of_the_real_network(self, deep_supervision: bool) -> None:
        plan = Plan(
            channel_names=("a",),
            label_values={"lesion": 1},
            spacing_mm=(1.0, 1.0, 1.0),
            normalization="zscore",
            patch_size=(8, 8, 8),
            filters=(2, 4, 4),
            strides=((2, 2, 2),) * 2,
            kernels=((3, 3, 3),) * 3,
            residual=False,
            deep_supervision=deep_supervision,
            foreground_share=0.01,
        )
        model = build_unet(plan, seed=0)
        assign(model, "down1_b_norm", 0, 3e38)
        assign(model, "up0_a_norm", 0, 3e38)  # hidden by the one before
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.normal(size=(4, 8, 8, 8, 1)).astype(np.float32),
            "label": np.zeros((4, 8, 8, 8, 1), np.uint8),
            "case": np.arange(4, dtype=np.int32),
        }
        assert find(model, batch) == BadNumber("output of layer down1_b_norm", "Inf", "ms01")
