"""Exported networks: the same logits as the run's own normalisation and network give, and what stands in them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import make_scan, make_test_plan
from inference_helpers import quick_config, write_run

from segment.cli import main
from segment.data.normalization import PERCENTILES, inside_mask
from segment.data.planning import Plan
from segment.data.preprocessing import to_network
from segment.errors import InputError
from segment.files import sha256_of
from segment.inference.export import METADATA, export_run
from segment.inference.operating_point import FILE

PLANS = {
    "3d": make_test_plan(channels=2),
    "residual, deep": replace(
        make_test_plan(channels=2, normalization="percentile"),
        filters=(4, 6, 8),
        strides=((2, 2, 1), (2, 2, 2)),
        kernels=((3, 3, 1),) * 3,
        residual=True,
        deep_supervision=True,
    ),
    "2d, two classes": make_test_plan(
        dimensions=2,
        channels=2,
        spacing_mm=(1.0, 1.0, 3.0),
        patch_size=(8, 8, 1),
        label_values={"core": 2, "edge": 5},
    ),
}


def raw_window(plan: Plan) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A scan as large as the window: what the run feeds its network, and what an exported one is given for it."""
    rng = np.random.default_rng(4)
    image = rng.normal((100, 900), (20, 200), (*plan.patch_size, 2)).astype(np.float32)
    image[0] = 0.0  # outside the subject
    spacing = plan.spacing_mm
    network, _, placement = to_network(make_scan(image, np.diag([*spacing, 1.0])), plan)
    image = image[placement.crop_slices]
    inside = np.stack([inside_mask(image[..., channel]) for channel in range(2)], axis=-1)
    scale = []
    for channel in range(2):
        values = image[..., channel][inside[..., channel]].astype(np.float64)
        low, high = np.percentile(values, PERCENTILES) if plan.normalization == "percentile" else (-1e30, 1e30)
        values = np.clip(values, low, high)
        scale.append([low, high, values.mean(), values.std()])
    missing = [(0, whole - part) for whole, part in zip(plan.patch_size, network.shape[:3], strict=True)] + [(0, 0)]
    windows = [np.pad(array, missing)[None] for array in (network, image, inside.astype(np.float32))]
    if plan.slice_axis is not None:
        windows = [window.squeeze(1 + plan.slice_axis) for window in windows]
    given = {"image": windows[1], "inside": windows[2], "scale": np.array(scale, np.float32)}
    return windows[0], given


def wanted_logits(model: tf.keras.Model, window: np.ndarray) -> np.ndarray:
    found = model(window, training=False)
    return (found[0] if isinstance(found, list) else found).numpy()


class TestSavedModel:
    def test_logits_and_metadata(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plan = PLANS["residual, deep"]
        model = write_run(tmp_path / "run", plan, config=quick_config(threshold=0.4))
        window, given = raw_window(plan)
        assert main(["export", "--run", str(tmp_path / "run"), "--format", "savedmodel"]) == 0
        path = tmp_path / "run" / "saved_model"
        assert f"written: {path}" in capsys.readouterr().out
        function = tf.saved_model.load(str(path)).signatures["serving_default"]
        found = function(**{name: tf.constant(value) for name, value in given.items()})["logits"].numpy()
        assert np.abs(found - wanted_logits(model, window)).max() < 1e-4
        twice = {name: np.concatenate([value] * 2) if name != "scale" else value for name, value in given.items()}
        assert function(**twice)["logits"].shape[0] == 2
        metadata = json.loads((path / "assets.extra" / METADATA).read_text())
        assert Plan.from_json(metadata["plan"]) == plan
        assert metadata["operating_point"]["threshold"] == 0.4
        assert metadata["model_sha256"] == sha256_of(tmp_path / "run" / "model.keras")

    def test_existing_output(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", PLANS["3d"])
        (tmp_path / "mine").mkdir()
        for force in (False, True):
            with pytest.raises(InputError, match="is there already; choose another path"):
                export_run(tmp_path / "run", tmp_path / "mine", form="savedmodel", force=force)
        (tmp_path / "mine" / "assets.extra").mkdir()
        (tmp_path / "mine" / "assets.extra" / METADATA).touch()
        with pytest.raises(InputError, match="is there already; pass --force"):
            export_run(tmp_path / "run", tmp_path / "mine", form="savedmodel", force=False)


class TestOnnx:
    @pytest.fixture(autouse=True)
    def packages(self) -> Any:
        pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: pip install -e '.[test]'")
        return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[test]'")

    @pytest.mark.parametrize("name", ["residual, deep", "2d, two classes"])
    def test_logits_are_the_networks(self, tmp_path: Path, packages: Any, name: str) -> None:
        plan = PLANS[name]
        model = write_run(tmp_path / "run", plan)
        window, given = raw_window(plan)
        path = export_run(tmp_path / "run", tmp_path / "there" / "net.onnx", form="onnx", force=False)
        session = packages.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert [item.name for item in session.get_inputs()] == ["image", "inside", "scale"]
        (found,) = session.run(["logits"], given)
        assert np.abs(found - wanted_logits(model, window)).max() < 1e-3
        metadata = json.loads(session.get_modelmeta().custom_metadata_map["segment"])
        assert Plan.from_json(metadata["plan"]) == plan
        assert set(metadata["inputs"]) == {"image", "inside", "scale"}

    def test_a_sixteen_bit_run_is_exported_in_float32(self, tmp_path: Path, packages: Any) -> None:
        plan = PLANS["3d"]
        half = write_run(tmp_path / "run", plan, policy="mixed_bfloat16")
        window, given = raw_window(plan)
        path = export_run(tmp_path / "run", None, form="onnx", force=False)
        (found,) = packages.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["logits"], given)
        write_run(tmp_path / "float32", plan)
        whole = tf.keras.models.load_model(tmp_path / "float32" / "model.keras", compile=False)
        whole.set_weights(half.get_weights())
        assert np.abs(found - wanted_logits(whole, window)).max() < 1e-3


class TestCommand:
    def test_without_the_packages_onnx_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_run(tmp_path / "run", PLANS["3d"])
        monkeypatch.setitem(sys.modules, "tf2onnx", None)
        assert main(["export", "--run", str(tmp_path / "run"), "--format", "onnx"]) == 2
        assert "install it with: pip install -e '.[export]'" in capsys.readouterr().err

    def test_existing_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_run(tmp_path / "run", PLANS["3d"])
        (tmp_path / "net.onnx").touch()
        for output, words in ((tmp_path / "net.onnx", "pass --force"), (tmp_path, "is a folder")):
            given = ["export", "--run", str(tmp_path / "run"), "--format", "onnx", "--output", str(output)]
            assert main(given) == 2
            assert words in capsys.readouterr().err

    def test_a_broken_operating_point_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_run(tmp_path / "run", PLANS["3d"])
        (tmp_path / "run" / FILE).write_text("{}")
        assert main(["export", "--run", str(tmp_path / "run"), "--format", "savedmodel"]) == 2
        assert "operating_point.json: expected an operating point" in capsys.readouterr().err
