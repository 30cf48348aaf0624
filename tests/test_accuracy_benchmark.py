"""What `accuracy.py` and `ablation.py` make of their runs, and one whole comparison and ablation in no time."""

from __future__ import annotations

import argparse
import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf  # noqa: F401 - the four logical devices are set up before any test runs
from builders import AFFINE, tiny_dataset, write_nifti
from cli_helpers import SHAPE, tiny_config

from segment.config import load_config
from segment.data.grid import Grid
from segment.errors import InputError
from segment.evaluation.froc import Sweep

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from benchmarks import ablation, ablation_table, accuracy, losses, timed_training  # noqa: E402
from benchmarks.accuracy_table import accuracy_table, draw_accuracy, rows_of  # noqa: E402
from benchmarks.scores import Scored, best_within, score_mask, score_thresholds  # noqa: E402

# A peer that marks what is bright in the first channel. It reads nothing else of what it is given.
RECIPE = """
import argparse, nibabel, numpy
from pathlib import Path
parser = argparse.ArgumentParser()
for name in ("--data", "--train", "--test", "--net", "--seed", "--minutes", "--output"):
    parser.add_argument(name)
options = parser.parse_args()
scan = nibabel.load(Path(options.data) / "imagesTr" / f"{options.test}_0000.nii.gz")
image = scan.get_fdata()
bright = ((image - image.min()) / (image.max() - image.min())).astype(numpy.float32)
nibabel.save(nibabel.Nifti1Image(bright, scan.affine), Path(options.output) / f"{options.test}.nii.gz")
"""


def scored(*, threshold: float = 0.5, small: int = 1, any_: int = 3, fp: int = 2, dice: float = 0.5) -> Scored:
    bins = {"<=10": (0, 2), "10-50": (small, 2)}
    return Scored(threshold, 0.0, (small, 4), (any_, 5), any_, fp, fp, dice, dice / 2, bins)


def run(tool: str, *points: Scored, chosen: Scored | None = None) -> dict[str, Any]:
    values = {"tool": tool, "thresholds": [point.to_json() for point in points]}
    return json.loads(json.dumps(values if chosen is None else {**values, "chosen": chosen.to_json()}))


RUNS = {
    "segment-a-to-b-seed-0": run("segment", scored(), chosen=scored(threshold=0.7, small=3, any_=4, fp=2)),
    "fast-a-to-b-seed-0": run("fast", scored(threshold=0.3, small=4, fp=9), scored(fp=3), scored(threshold=0.9)),
    "slow-a-to-b-seed-0": run("slow", scored(small=0, fp=9)),
    "fast-b-to-a-seed-0": run("fast", scored()),
}


class TestTable:
    def test_a_peer_gets_its_best_threshold_within_our_false_positives(self) -> None:
        best = {row.tool: row.scored for row in rows_of(RUNS) if row.at == "best"}
        assert best["fast"] == scored(threshold=0.9)  # more are found at 0.3, with 9 false positives
        assert best["slow"] == scored(small=0, fp=9)  # the fewest that it has
        shown = {(row.tool, row.at) for row in rows_of(RUNS)}
        assert ("segment", "chosen") in shown
        assert ("segment", "0.5") in shown

    def test_ties_go_to_more_overlap_and_then_to_dice(self) -> None:
        points = [scored(dice=0.9), scored(any_=4), scored(any_=4, dice=0.6)]
        assert best_within(points, fp=2) == points[2]
        assert (
            best_within([*points, scored(fp=3, any_=5)], fp=1) == points[2]
        )  # none has so few: of the fewest, the best

    def test_the_verdict_is_a_ratio_to_the_better_peer(self) -> None:
        text = accuracy_table(RUNS)
        assert "small-lesion recall: 3.00 times that of fast, the better peer (bar 1.25, goal 1.5)" in text
        assert "| a to b seed 0 | segment | chosen: 0.7 |" in text
        assert "| a to b seed 0 | slow | best: 0.5, its fewest false positives |" in text

    def test_the_chosen_point_is_said_in_full(self) -> None:
        full = replace(scored(threshold=0.35), least_peak=0.9, least_mm3=5.0)
        text = accuracy_table({"segment-a-to-b-seed-0": run("segment", scored(), chosen=full)})
        assert "| segment | chosen: 0.35, peak 0.9, from 5 mm³ |" in text

    def test_before_the_first_run(self) -> None:
        assert accuracy_table({}) == "no run has ended yet"

    def test_the_plot_is_a_picture(self) -> None:
        root = ElementTree.fromstring(draw_accuracy(RUNS))
        texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"segment, chosen", "fast, best", "small-lesion recall", "10-50 mm³"} <= texts


class TestScores:
    def test_by_hand(self) -> None:
        label, probability = np.zeros((12, 12, 12), np.uint8), np.zeros((12, 12, 12), np.float32)
        label[1:3, 1:3, 1:3] = label[6:10, 6:10, 6:10] = 1  # 8 and 64 mm3
        probability[1:3, 1:3, 1:3], probability[6:10, 6:10, 6:10], probability[11, 11, 11] = 0.4, 0.8, 0.6
        every = {one.threshold: one for one in score_thresholds(label, probability, Grid(label.shape, np.eye(4)))}
        assert (every[0.1].small, every[0.1].any, every[0.1].found, every[0.1].fp) == ((1, 1), (2, 2), 2, 1)
        assert (every[0.5].small, every[0.5].any, every[0.5].fp_any) == ((0, 1), (1, 2), 1)
        assert every[0.7].dice == pytest.approx(2 * 64 / (72 + 64))
        assert every[0.9].dice == 0.0
        assert every[0.1].bins["<=10"] == (1, 1)
        assert Scored.from_json(json.loads(json.dumps(every[0.1].to_json()))) == every[0.1]

    def test_a_mask_as_written(self) -> None:
        label = np.zeros((8, 8, 8), np.uint8)
        label[2:4, 2:4, 2:4] = 1
        one = score_mask(label, label, Grid(label.shape, np.eye(4)), threshold=0.3, least_mm3=2.0)
        assert (one.threshold, one.least_mm3, one.dice, one.fp) == (0.3, 2.0, 1.0, 0)


@pytest.mark.slow
def test_a_whole_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGMENT_PEERS", sys.executable)
    monkeypatch.setattr(timed_training, "PILOT_STEPS", 3)
    recipe, data, output = tmp_path / "recipe.py", tmp_path / "data", tmp_path / "out"
    recipe.write_text(RECIPE)
    tiny_dataset(data, cases=2, shape=SHAPE, affine=AFFINE)
    for path in (data / "labelsTr").iterdir():  # each half of a patient is trained on, so both hold a lesion
        label = np.asarray(nib.load(path).dataobj, np.uint8)
        write_nifti(path, label | label[::-1], AFFINE)
    arguments = [
        "--data",
        str(data),
        "--recipe",
        str(recipe),
        "--nets",
        "bright",
        "--config",
        str(tiny_config(tmp_path)),
    ]
    arguments += ["--seeds", "0", "--minutes", "0.01", "--output", str(output)]
    assert accuracy.main(arguments) == 0
    results = json.loads((output / "results.json").read_text())
    assert {run["tool"] for run in results["runs"].values()} == {"segment", "bright"}
    assert len(results["runs"]) == 4
    assert "case1 to case0 seed 0" in (output / "table.md").read_text()
    ElementTree.parse(output / "accuracy.svg")
    before = (output / "results.json").read_bytes()
    monkeypatch.setattr(accuracy.Comparison, "keep", lambda *_: pytest.fail("a finished run was repeated"))
    assert accuracy.main(arguments) == 0
    assert (output / "results.json").read_bytes() == before
    with pytest.raises(InputError, match="expected results of"):
        accuracy.main([*arguments[:-4], "--minutes", "2", "--output", str(output)])


class TestRefused:
    """Before anything is trained."""

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--minutes", "-1"], "--minutes: expected a number above 0, found -1"),
            (["--recipe", "nowhere.py"], "--recipe: expected a script, found none at nowhere.py"),
            (["--set", "model.norm=batch"], "model.norm"),
            (["--data", "nowhere"], "nowhere"),
        ],
    )
    def test_accuracy(self, tmp_path: Path, more: list[str], message: str) -> None:
        tiny_dataset(tmp_path / "data", cases=2, shape=SHAPE, affine=AFFINE)
        with pytest.raises(InputError, match=message):
            accuracy.main(["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *more])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("more", [["--minutes", "nan"], ["--data", "nowhere"], ["--shapes", "nowhere"]])
    def test_ablation(self, tmp_path: Path, more: list[str]) -> None:
        tiny_dataset(tmp_path / "data", cases=1, shape=SHAPE, affine=AFFINE)
        with pytest.raises(InputError, match=r"above 0|nowhere"):
            ablation.main(["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *more])
        assert not (tmp_path / "out").exists()


def test_a_network_with_a_hyphen_is_told_from_the_direction() -> None:
    runs = {
        "segment-a-to-b-seed-0": RUNS["segment-a-to-b-seed-0"],
        "swin-unetr-a-to-b-seed-0": run("swin-unetr", scored()),
    }
    assert [(row.tool, row.which) for row in rows_of(runs)][-1] == ("swin-unetr", "a to b seed 0")
    assert any(row.tool == "swin-unetr" and row.at.startswith("best") for row in rows_of(runs))


def test_the_figures_of_the_losses_are_of_configurations() -> None:
    options = argparse.Namespace(output=Path("out"), real=Path("data"), real_steps=5, steps=5, validate_every=5)
    for one in (losses.sample_run("BCE", 0, options), losses.real_run("BCE", "ms19", "ms26", options)):
        load_config(SCRIPTS.parent / "configs" / one.config, overrides=one.overrides)


class TestAblation:
    def test_the_best_point_within_a_budget_by_hand(self) -> None:
        """Thresholds 0.1 and 0.5, volumes 0 and 5 mm3, peaks 0 and 0.9; 4 small lesions."""
        found = np.array([[[4, 3], [2, 2]], [[2, 1], [1, 1]]])
        false = np.array([[[9, 3], [5, 1]], [[4, 0], [2, 0]]])
        counts = Sweep((0.1, 0.5), (0.0, 5.0), (0.0, 0.9), 6, 4, found, false, found)

        def within(budget: int, **parts: bool) -> int:
            return ablation_table.found_within(counts, budget, **parts)

        assert [within(budget) for budget in (0, 3, 9)] == [1, 3, 4]
        assert [within(budget, peaks=False) for budget in (0, 3, 9)] == [0, 1, 4]
        assert [within(budget, volumes=False, peaks=False) for budget in (0, 4, 9)] == [0, 2, 4]

    def test_every_variant_is_a_configuration(self) -> None:
        recipe = SCRIPTS.parent / "configs" / "ms_lesions.yaml"
        for given in ablation.VARIANTS.values():
            load_config(recipe, overrides=given)

    @pytest.mark.slow
    def test_a_whole_ablation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timed_training, "PILOT_STEPS", 3)
        monkeypatch.setattr(
            ablation, "VARIANTS", {ablation_table.RECIPE: (), "no running mean of the weights": ("train.ema_decay=0",)}
        )
        tiny_dataset(tmp_path / "data", cases=1, shape=SHAPE, affine=AFFINE)
        arguments = ["--data", str(tmp_path / "data"), "--config", str(tiny_config(tmp_path)), "--seeds", "0"]
        arguments += ["--minutes", "0.01", "--jobs", "2", "--output", str(tmp_path / "out")]
        assert ablation.main(arguments) == 0
        lines = (tmp_path / "out" / "table.md").read_text().splitlines()
        names = [line.split("|")[1].strip() for line in lines[2:7]]
        assert {*names[:2]} == {ablation_table.RECIPE, "no running mean of the weights"}  # they end in any order
        assert names[2:] == [
            ablation.FLIPPED,
            f"{ablation_table.RECIPE}, threshold and least volume",
            f"{ablation_table.RECIPE}, threshold alone",
        ]
        before = (tmp_path / "out" / "results.json").read_bytes()
        for name in ("_train", "_keep"):
            monkeypatch.setattr(ablation.Ablation, name, lambda *_: pytest.fail("a finished run was repeated"))
        assert ablation.main(arguments) == 0
        assert (tmp_path / "out" / "results.json").read_bytes() == before
