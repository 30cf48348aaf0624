"""`segment plan` as a person types it: the file that it writes, and that it trains as it is."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf  # noqa: F401 - the four logical devices are set up before any test runs
from builders import tiny_dataset, write_case, write_dataset_json

from segment.cli import main
from segment.config import load_config
from segment.data.audit_file import planned_spacing
from segment.data.cases import find_dataset
from segment.data.checks import audit_dataset

SHAPE = (20, 18, 16)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_dataset(tmp_path / "data", cases=3, channels=("FLAIR", "T1"), shape=SHAPE, affine=np.diag([1, 1, 1, 1.0]))
    return tmp_path


def plan(*arguments: str) -> int:
    return main(["plan", "data", "-o", "plan.yaml", "--device", "cpu", *arguments])


def comments(path: str = "plan.yaml") -> str:
    """All comments in one line."""
    lines = [line.strip().lstrip("# ") for line in Path(path).read_text().splitlines() if "#" in line]
    return " ".join(lines)


class TestFile:
    def test_says_what_led_to_it(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert plan() == 0
        shown = capsys.readouterr().out.strip().splitlines()
        assert shown[-1] == "next:    segment train plan.yaml"
        why = comments()
        assert "3 cases of 3 patients; channels FLAIR, T1" in why
        assert "shape of the non-zero box: median 20 x 18 x 16 voxels" in why
        assert "lesions: 3, of 8 to 8 mm3, median 8; by mm3 <=10: 3, 10-50: 0, 50-200: 0, >200: 0" in why
        assert "On this grid recall is at most 1.000: of 3 lesions 0 vanish and 0 merge" in why
        assert "the largest lesion as a ball is 2.48 mm across" in why  # (6 * 8 / pi)^(1/3)
        assert "no channel of FLAIR, T1 is CT" in why
        assert "of 2 given" in why
        config = load_config(Path("plan.yaml"))
        assert config.data.root == Path("data")
        assert config.data.normalization == "zscore"
        assert config.train.batch_size == 2
        assert config.run_dir == Path("runs/plan")
        assert max(map(len, Path("plan.yaml").read_text().splitlines())) <= 120

    def test_its_spacing_is_that_of_check(self, here: Path) -> None:
        assert plan() == 0
        dataset = find_dataset(Path("data"), layout="auto")
        config = load_config(Path("plan.yaml"))
        assert config.data.spacing_mm == planned_spacing(
            audit_dataset(dataset, workers=1), dataset, load_config(_empty(here))
        )

    def test_is_the_same_again(self, here: Path) -> None:
        assert plan() == 0
        first = Path("plan.yaml").read_bytes()
        assert plan("--force", "--workers", "1") == 0
        assert Path("plan.yaml").read_bytes() == first

    @staticmethod
    def thick(index: int) -> np.ndarray:
        image = np.random.default_rng(index).normal(30, 10, (64, 64, 8)).astype(np.float32)
        image[:20] = -1000
        return image

    def lesion_values(self, index: int) -> list[float]:
        return [float(value) for value in self.thick(index)[30:34, 30:34, 3:5].ravel()]

    def test_ct_of_thick_slices(self, here: Path) -> None:
        write_dataset_json(here / "data", channels=("image",))
        for index in range(2):
            image = self.thick(index)
            label = np.zeros((64, 64, 8), np.uint8)
            label[30:34, 30:34, 3:5] = 1
            write_case(here / "data", f"thick{index}", image, label, np.diag([1, 1, 5, 1.0]))
        for path in [*here.glob("data/*/case*")]:
            path.unlink()
        assert plan() == 0
        why, config = comments(), load_config(Path("plan.yaml"))
        assert config.data.normalization == "percentile"
        assert "channel image holds values down to -1000, like air on CT" in why
        values = [value for index in range(2) for value in self.lesion_values(index)]
        low, high = np.percentile(values, (0.5, 99.5))
        assert f"inside all lesions, in training those of the training cases: image at {low:.4g} and {high:.4g}." in why
        assert config.data.spacing_mm == (1.0, 1.0, 5.0)
        assert "The axis bottom to top is 5 times as coarse as the finest and stays so" in why
        assert config.model.strides is not None
        assert config.model.strides[:2] == ((2, 2, 1), (2, 2, 1))
        assert "Kernels follow the same rule: 3x3x1 3x3x1" in why

    def test_takes_over_a_configuration(self, here: Path) -> None:
        Path("base.yaml").write_text("data: {normalization: tissue, folds: 3}\nloss: {terms: [{name: dice}]}\n")
        assert plan("--config", "base.yaml") == 0
        config = load_config(Path("plan.yaml"))
        assert (config.data.normalization, config.data.folds) == ("tissue", 3)
        assert [term.name for term in config.loss.terms] == ["dice"]
        assert "The main tissue peak at 0: given" in comments()

    def test_takes_over_what_it_does_not_plan(self, here: Path) -> None:
        model = "{norm: none, deep_supervision: true, filters: [2, 4], slices: 1}"
        Path("base.yaml").write_text(f"seed: 7\nmodel: {model}\ntrain: {{ema_decay: 0.99}}\n")
        assert plan("--config", "base.yaml") == 0
        config = load_config(Path("plan.yaml"))
        assert (config.seed, config.model.norm, config.model.deep_supervision) == (7, "none", True)
        assert config.model.filters != (2, 4)
        assert (config.train.ema_decay, config.train.steps, config.train.validate_every) == (0.99, 2000, 500)
        Path("base.yaml").write_text("train: {steps: 120}\n")
        assert plan("--config", "base.yaml", "--force") == 0
        config = load_config(Path("plan.yaml"))
        assert (config.train.steps, config.train.validate_every) == (120, 30)


class TestTrains:
    def test_as_it_is(self, here: Path) -> None:
        assert plan("--memory-gb", "1.1", "--preview", "pictures") == 0
        assert cv2.imread("pictures/preview.png") is not None
        config = load_config(Path("plan.yaml"))
        Path("fast.yaml").write_text(
            Path("plan.yaml").read_text().replace("steps: 2000", "steps: 2").replace("every: 500", "every: 2")
        )
        assert main(["train", "fast.yaml", "train.precision=float32"]) == 0
        plan_json = json.loads(Path("runs/plan/plan.json").read_text())
        assert tuple(plan_json["patch_size"]) == config.model.patch_size
        assert tuple(map(tuple, plan_json["strides"])) == config.model.strides
        assert tuple(plan_json["spacing_mm"]) == config.data.spacing_mm == (1.0, 1.0, 1.0)

    def test_2d(self, here: Path) -> None:
        assert plan("--dimensions", "2", "--preview", "own.png") == 0
        assert Path("own.png").is_file()
        config = load_config(Path("plan.yaml"))
        assert config.model.dimensions == 2
        assert "Slices across bottom to top, the coarsest axis" in comments()


class TestRefusals:
    def test_does_not_overwrite(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("plan.yaml").write_text("seed: 1\n")
        assert plan() == 2
        assert capsys.readouterr().err.strip() == "error: --output plan.yaml exists; pass --force to replace it"
        assert Path("plan.yaml").read_text() == "seed: 1\n"
        assert plan("--force") == 0
        assert "spacing_mm" in Path("plan.yaml").read_text()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--memory-gb", "0.4"], "error: --memory-gb 0.4: expected at least "),
            (["--config", "none.yaml"], "error: cannot read configuration none.yaml"),
        ],
    )
    def test_one_line(self, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
        assert plan(*arguments) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(message)
        assert not Path("plan.yaml").exists()

    def test_a_gpu_that_is_not_here(
        self, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(here))
        assert plan("--device", "gpu") == 2
        assert "--memory-gb: expected it, as nvidia-smi does not say" in capsys.readouterr().err
        assert plan("--device", "gpu", "--memory-gb", "24") == 0
        assert "GiB of the GPU" in comments()
        assert "The model of a GPU's memory has not been measured" in comments()

    def test_gpus_share_a_batch(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        several = ("--device", "gpu", "--memory-gb", "24", "--gpus", "4")
        assert plan(*several) == 0
        assert load_config(here / "plan.yaml").train.batch_size % 4 == 0
        assert "GiB of each of 4 GPUs" in comments()
        assert "Divided among 4 GPUs" in comments()
        Path("base.yaml").write_text("train: {gpus: [0, 1]}\n")
        for refused in ((*several, "--config", "base.yaml"), ("--device", "cpu", "--gpus", "4")):
            capsys.readouterr()
            assert plan(*refused, "--force") == 2
            assert "--gpus 4: expected" in capsys.readouterr().err

    def test_what_cannot_be_trained(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tiny_dataset(here / "one", cases=1)
        assert main(["plan", "one", "-o", "plan.yaml"]) == 2
        assert "patient" in capsys.readouterr().err
        (here / "data/labelsTr/case1.nii.gz").write_bytes(b"")
        assert plan() == 2
        assert "case case1" in capsys.readouterr().err
        Path("base.yaml").write_text("data: {skip_invalid: true}\n")
        assert plan("--config", "base.yaml") == 0
        assert "2 cases of 2 patients" in comments()


def _empty(folder: Path) -> Path:
    path = folder / "empty.yaml"
    path.write_text("{}\n")
    return path
