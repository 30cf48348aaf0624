"""The commands as a person types them: exit codes, one-line errors, and nothing lost when some input is bad."""

from __future__ import annotations

import csv
import gzip
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf  # noqa: F401 - the four logical devices are set up before any test runs
from builders import AFFINE, write_case, write_dataset_json, write_nifti
from cli_helpers import SHAPE, one_line, tiny_config, truncate, two_channels

from segment.cli import main
from segment.data.scan import read_mask
from segment.files import read_json

ROOT = Path(__file__).parents[1]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return two_channels(tmp_path / "data", cases=3)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def run_dir(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, made by the command itself."""
    folder = tmp_path_factory.mktemp("trained")
    root = two_channels(folder / "data", cases=2)
    assert main(["train", str(config), f"data.root={root}", "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


def test_options_may_stand_between_the_overrides(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run-dir", str(tmp_path / "run"), f"data.root={tmp_path / 'absent'}"]
    assert main(["train", str(config), "train.steps=1", *words]) == 2
    assert "absent" in one_line(capsys)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config), *words, "--fast=yes"])
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


class TestNextCommand:
    """Each command ends with the one to type next."""

    def test_after_training_and_predicting(
        self, dataset: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run, out = tmp_path / "run", tmp_path / "out"
        assert main(["train", str(config), f"data.root={dataset}", "--run-dir", str(run)]) == 0
        assert f"segment infer --run {run} --input" in capsys.readouterr().out
        assert main(["infer", "--run", str(run), "--input", str(dataset), "--output", str(out)]) == 0
        assert (
            f"segment evaluate --predictions {out / 'masks'} --labels LABELS --output REPORT\n"
            in capsys.readouterr().out
        )
        own = run / "config.yaml"
        own.write_text(
            own.read_text().replace("match_iou: 0.1", "match_iou: 0.2").replace("flips: false", "flips: true")
        )
        again = ["infer", "--run", str(run), "--input", str(dataset), "--output", str(tmp_path / "again"), "--no-flips"]
        assert main(again) == 0
        assert f"--output REPORT --config {own}\n" in capsys.readouterr().out
        assert read_json(tmp_path / "again" / "manifest.json")["runs"][0]["inference"]["flips"] is False


class TestInfer:
    def test_bad_scans_are_rows_and_the_others_are_written(self, run_dir: Path, tmp_path: Path) -> None:
        scans = two_channels(tmp_path / "scans", cases=4) / "imagesTr"
        truncate(scans / "case1_0000.nii.gz")
        nan = np.full(SHAPE, np.nan, np.float32)
        write_nifti(scans / "case2_0001.nii.gz", nan)
        arguments = ["infer", "--run", str(run_dir), "--input", str(scans), "--output", str(tmp_path / "out")]
        assert main(arguments) == 1
        with (tmp_path / "out" / "failures.csv").open(newline="") as handle:
            rows = {row["case"]: row for row in csv.DictReader(handle)}
        assert set(rows) == {"case1", "case2"}
        assert rows["case1"]["kind"] == "truncated"
        assert "NaN" in rows["case2"]["message"]
        assert {path.name for path in (tmp_path / "out" / "masks").iterdir()} == {"case0.nii.gz", "case3.nii.gz"}
        mask, grid = read_mask(tmp_path / "out" / "masks" / "case0.nii.gz")
        assert mask.shape == SHAPE
        np.testing.assert_array_equal(grid.affine, AFFINE)

    def test_report_when_labels_are_given(
        self, run_dir: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["infer", "--run", str(run_dir), "--input", str(dataset / "imagesTr")]
        arguments += ["--labels", str(dataset / "labelsTr"), "--output", str(tmp_path / "out")]
        assert main(arguments) == 0
        names = {path.name for path in (tmp_path / "out" / "report").iterdir()}
        assert {"report.html", "summary.json", "cases.json", "lesions.csv"} <= names
        assert "report.html" in capsys.readouterr().out

    def test_existing_output(
        self, run_dir: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").touch()
        arguments = ["infer", "--run", str(run_dir), "--input", str(dataset), "--output", str(tmp_path / "out")]
        assert main(arguments) == 2
        assert "already holds files; pass --resume to go on or --force" in one_line(capsys)
        assert main([*arguments, "--force"]) == 2
        assert "made by segment" in one_line(capsys)
        assert (tmp_path / "out" / "notes.txt").exists()

    def test_a_threshold_out_of_range(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["infer", "--run", str(run_dir), "--input", "x", "--output", "y", "--threshold", "1.5"]
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "expected a number above 0 and below 1, found '1.5'" in capsys.readouterr().err


class TestOtherCommands:
    def test_check_says_how_many_errors(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["check", str(dataset)]) == 0
        assert "3 cases; errors: 0, warnings: 0" in capsys.readouterr().out
        truncate(dataset / "imagesTr" / "case1_0000.nii.gz")
        assert main(["check", str(dataset)]) == 2
        assert "3 cases; errors: 1, warnings: 0" in capsys.readouterr().out

    def test_evaluate_a_folder_against_itself(self, dataset: Path, tmp_path: Path) -> None:
        labels = str(dataset / "labelsTr")
        assert main(["evaluate", "--predictions", labels, "--labels", labels, "--output", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / "report.html").exists()

    def test_evaluate_as_a_run_does(self, dataset: Path, tmp_path: Path) -> None:
        (tmp_path / "own.yaml").write_text("evaluation: {bin_edges_mm3: [7, 30], small_mm3: 30}\n")
        labels = str(dataset / "labelsTr")
        arguments = ["evaluate", "--predictions", labels, "--labels", labels, "--output", str(tmp_path / "out")]
        assert main([*arguments, "--config", str(tmp_path / "own.yaml")]) == 0
        summary = read_json(tmp_path / "out" / "summary.json")
        assert summary["config"]["small_mm3"] == 30

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--predictions", "{labels}", "--images", "nowhere"], "--images nowhere: expected a folder of scans"),
            (["--compare", "{labels}", "{labels}", "--probabilities", "p"], "--probabilities: expected with --predict"),
        ],
    )
    def test_evaluate_refuses_what_it_would_ignore(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
    ) -> None:
        labels = str(dataset / "labelsTr")
        given = [word.format(labels=labels) for word in more]
        assert main(["evaluate", *given, "--labels", labels, "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_report_draws_the_page_of_a_run(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", str(run_dir)]) == 0
        assert str(run_dir / "run.html") in capsys.readouterr().out

    def test_compare_two_folders(self, dataset: Path, tmp_path: Path) -> None:
        labels = str(dataset / "labelsTr")
        arguments = ["evaluate", "--compare", labels, labels, "--labels", labels, "--output", str(tmp_path / "out")]
        assert main(arguments) == 0
        assert (tmp_path / "out" / "comparison.json").exists()

    def test_a_csv_manifest_trains(self, config: Path, tmp_path: Path) -> None:
        rng = np.random.default_rng(3)
        rows = ["case,patient,FLAIR,label"]
        for index in range(2):
            label = np.zeros(SHAPE, np.uint8)
            label[4:7, 4:7, 4:7] = 1
            write_case(tmp_path, f"c{index}", rng.normal(100, 9, SHAPE).astype(np.float32) + 60 * label, label)
            rows.append(f"c{index},p{index},imagesTr/c{index}_0000.nii.gz,labelsTr/c{index}.nii.gz")
        (tmp_path / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
        root = tmp_path / "manifest.csv"
        assert main(["train", str(config), f"data.root={root}", "--run-dir", str(tmp_path / "run")]) == 0

    def test_labels_of_two_classes_train_and_are_written_with_their_values(self, config: Path, tmp_path: Path) -> None:
        write_dataset_json(tmp_path / "data", labels={"background": 0, "core": 2, "edge": 5})
        rng = np.random.default_rng(4)
        for index in range(2):
            label = np.zeros(SHAPE, np.uint8)
            label[3:6, 3:6, 3:6], label[10:13, 10:13, 8:11] = 2, 5
            write_case(tmp_path / "data", f"c{index}", rng.normal(100, 9, SHAPE).astype(np.float32), label)
        run = tmp_path / "run"
        assert main(["train", str(config), f"data.root={tmp_path / 'data'}", "--run-dir", str(run)]) == 0
        arguments = ["infer", "--run", str(run), "--input", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
        assert main([*arguments, "--threshold", "0.0001"]) == 0
        mask, _ = read_mask(tmp_path / "out" / "masks" / "c0.nii.gz")
        assert set(np.unique(mask)) <= {0, 2, 5}
        assert mask.any()

    def test_a_loss_that_needs_maps_of_the_lesions(self, config: Path, dataset: Path, tmp_path: Path) -> None:
        terms = "loss.terms=[{name: component_dice}, {name: boundary, weight: 0.01}]"
        run, fixed = tmp_path / "run", "loss.weighting={name: fixed}"
        assert main(["train", str(config), terms, fixed, f"data.root={dataset}", "--run-dir", str(run)]) == 0
        with (run / "metrics.csv").open(newline="") as handle:
            row = list(csv.DictReader(handle))[-1]
        assert np.isfinite(float(row["loss/component_dice"]))
        assert np.isfinite(float(row["loss/boundary"]))

    def test_a_two_dimensional_model(self, config: Path, dataset: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        options = ["model.dimensions=2", "model.patch_size=[16, 16]", f"data.root={dataset}", "--run-dir", str(run)]
        assert main(["train", str(config), *options]) == 0
        arguments = ["infer", "--run", str(run), "--input", str(dataset), "--output", str(tmp_path / "out")]
        assert main(arguments) == 0
        assert read_mask(tmp_path / "out" / "masks" / "case0.nii.gz")[0].shape == SHAPE


class TestHelp:
    @pytest.mark.parametrize(
        "command", ["train", "infer", "evaluate", "check", "plan", "export", "report", "merge-reports"]
    )
    def test_shows_an_example(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        said = capsys.readouterr().out
        assert re.search(rf"example:\n  (python scripts/|segment {command} )", said)

    def test_scripts_run_and_help_needs_no_tensorflow(self) -> None:
        for script in ("train", "infer", "evaluate", "check_data", "make_sample_data"):
            command = [sys.executable, "-X", "importtime", str(ROOT / "scripts" / f"{script}.py"), "--help"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
            assert done.returncode == 0, done.stderr
            assert "| segment.errors" in re.sub(r"\| +", "| ", done.stderr)  # imports are listed, indented
            assert not re.search(r"\| +tensorflow", done.stderr)

    def test_no_command_is_a_usage_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main([])
        assert "COMMAND" in capsys.readouterr().err


def test_a_terminal_run_prints_nothing_but_the_result(run_dir: Path, dataset: Path, tmp_path: Path) -> None:
    """A new process, as a person starts it: no notes of TensorFlow, no bar without a terminal."""
    command = [sys.executable, str(ROOT / "scripts" / "infer.py"), "--run", str(run_dir)]
    command += ["--input", str(dataset / "imagesTr"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "3 of 3 scans predicted" in done.stdout


def test_a_gzip_that_lies_about_its_size_is_no_crash(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for channel in range(2):
        (scans / f"a_{channel:04d}.nii.gz").write_bytes(gzip.compress(b"not a scan"))
    arguments = ["infer", "--run", str(run_dir), "--input", str(scans), "--output", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "0 of 1 scans predicted" in capsys.readouterr().out
