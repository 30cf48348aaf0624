"""Model files that are damaged, are not ours, or hold code: each is refused in one line."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import tensorflow as tf
from data_helpers import make_test_plan
from inference_helpers import write_run

from segment.errors import InputError
from segment.inference.predictor import Predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, make_test_plan())
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


class TestBadModelFiles:
    """Each is one line that names the file, and nothing in the file runs."""

    def refuse(self, folder: Path) -> str:
        with pytest.raises(InputError, match=r"model\.keras: expected a network saved by this package") as caught:
            Predictor.load([folder])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_empty_file(self, copy: Path) -> None:
        (copy / "model.keras").write_bytes(b"")
        self.refuse(copy)

    def test_text_file(self, copy: Path) -> None:
        (copy / "model.keras").write_text("no model at all")
        self.refuse(copy)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_truncated(self, copy: Path, share: float) -> None:
        content = (copy / "model.keras").read_bytes()
        (copy / "model.keras").write_bytes(content[: int(len(content) * share)])
        self.refuse(copy)

    def test_flipped_bytes(self, copy: Path) -> None:
        content = bytearray((copy / "model.keras").read_bytes())
        content[len(content) // 2] ^= 255
        (copy / "model.keras").write_bytes(content)
        self.refuse(copy)

    @pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
    def test_missing_or_damaged_part(self, copy: Path, member: str) -> None:
        with zipfile.ZipFile(copy / "model.keras") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        for changed in (None, parts[member][:-200], b"{}"):
            with zipfile.ZipFile(copy / "model.keras", "w") as archive:
                for name, content in parts.items():
                    content = changed if name == member else content
                    if content is not None:
                        archive.writestr(name, content)
            self.refuse(copy)

    def test_weights_under_other_names_are_not_replaced_by_random_ones(self, copy: Path) -> None:
        with zipfile.ZipFile(copy / "model.keras") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(copy / "model.keras", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content.replace(b"layers", b"strata") if name.endswith(".h5") else content)
        self.refuse(copy)

    def test_lambda_layer(self, copy: Path) -> None:
        touched = str(copy / "touched")
        inputs = tf.keras.Input((8, 8, 8, 1))
        layer = tf.keras.layers.Lambda(lambda x: (open(touched, "w").close(), x)[1], output_shape=(8, 8, 8, 1))
        model = tf.keras.Model(inputs, layer(inputs))
        model.save(copy / "model.keras")
        Path(touched).unlink(missing_ok=True)
        assert "ambda" in self.refuse(copy)
        assert not Path(touched).exists()
