"""What `scripts/benchmarks/losses.py` makes of the validations of its runs, and that a finished run is not repeated."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from segment.config_loss import LossConfig
from segment.errors import InputError

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from benchmarks import kept_results, losses, losses_table  # noqa: E402
from benchmarks.losses_plot import draw_losses  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def run(*ious: float | None, f1: float = 0.5, recall: float = 0.8, fp: float = 1.0) -> dict[str, Any]:
    """A run with a validation each 40 steps."""
    other = {"dice": 0.7, "lesion_f1": f1, "lesion_recall": 0.9, "small_lesion_recall": recall, "fp_per_scan": fp}
    return {"curve": [{"step": 40.0 * (i + 1), "iou": iou, **other} for i, iou in enumerate(ious)], "seconds": 1.0}


# BCE's best IoU is 0.5 with seed 0, on the way, and 0.8 with seed 1, at the end.
RESULTS = {
    "BCE": {"seed 0": run(0.2, 0.5, 0.4, f1=0.6), "seed 1": run(0.3, 0.6, 0.8, f1=0.8)},
    "hybrid, fixed": {"seed 0": run(0.5, 0.6, 0.5, f1=0.9), "seed 1": run(0.1, 0.8, 0.85, f1=0.7)},
    "Dice": {"seed 0": run(None, 0.1, 0.2, f1=0.1, fp=3.0), "seed 1": run(0.1, 0.85, 0.4, f1=0.1, fp=0.0)},
}


ROWS = {row.loss: row for row in losses_table.rows_of(RESULTS, base="BCE")}


class TestRows:
    def test_figures_are_those_of_the_last_validation(self) -> None:
        assert ROWS["BCE"].values["iou"] == [0.4, 0.8]
        assert ROWS["Dice"].values["fp_per_scan"] == [3.0, 0.0]

    def test_steps_to_the_base_loss_best_iou_with_the_same_seed(self) -> None:
        assert ROWS["BCE"].steps == [80.0, 120.0]
        assert ROWS["hybrid, fixed"].steps == [40.0, 80.0]
        assert ROWS["Dice"].steps == [None, 80.0]

    def test_seeds_that_the_base_loss_lacks_are_left_out(self) -> None:
        more = RESULTS | {"Dice": RESULTS["Dice"] | {"seed 2": run(0.9)}}
        assert losses_table.rows_of(more, base="BCE")[2].values["iou"] == [0.2, 0.4]


class TestTable:
    text = losses_table.sample_table(RESULTS, base="BCE", hybrid="hybrid, fixed")

    def test_mean_and_standard_deviation(self) -> None:
        # 0.4 and 0.8: mean 0.6, deviation 0.4 / sqrt(2) = 0.283; steps 80 and 120: 100 and 28.
        row = "| BCE | 0.700 ± 0.141 | 0.600 ± 0.283 | 0.800 ± 0.000 | 1.00 ± 0.00 | 100 ± 28 |"
        assert row in self.text.splitlines()

    def test_the_best_lesion_f1_is_bold_and_some_seeds_may_never_arrive(self) -> None:
        lines = self.text.splitlines()
        assert any(line.startswith("| **hybrid, fixed** | 0.800 ± 0.141 |") for line in lines)
        assert any(line.startswith("| Dice |") and line.endswith("| 80 (1 of 2) |") for line in lines)

    def test_the_gain_of_the_hybrid(self) -> None:
        # Mean IoU 0.675 over 0.6, mean steps 60 over 100.
        assert "hybrid, fixed over BCE: IoU +12.5%, steps to BCE's best IoU -40% (in 2 of 2" in self.text

    def test_steps_are_compared_seed_by_seed(self) -> None:
        """Of seed 1 alone, where the other has no seed 0: 80 steps instead of 120."""
        fewer = RESULTS | {"hybrid, fixed": {"seed 1": RESULTS["hybrid, fixed"]["seed 1"]}}
        text = losses_table.sample_table(fewer, base="BCE", hybrid="hybrid, fixed")
        assert "steps to BCE's best IoU -33% (in 1 of 1 seeds)" in text

    def test_a_hybrid_that_never_arrives(self) -> None:
        never = RESULTS | {"hybrid, fixed": {"seed 0": run(0.1), "seed 1": run(0.1)}}
        text = losses_table.sample_table(never, base="BCE", hybrid="hybrid, fixed")
        assert "BCE's best IoU reached with none of 2 seeds" in text
        assert "| never |" in text

    def test_patients(self) -> None:
        text = losses_table.real_table({"BCE": {"a to b": run(0.25, f1=0.1, recall=0.125, fp=12.0)}})
        row = "| BCE | a to b | 0.700 | 0.250 | 0.125 | 12 | 0.900 | 0.100 |"
        assert text.splitlines()[2] == row


def test_best_is_by_lesion_f1_then_iou() -> None:
    assert losses_table.best_of(RESULTS) == "hybrid, fixed"
    assert losses_table.best_of(RESULTS, leave_out=["hybrid, fixed"]) == "BCE"
    equal = {"low": {"seed 0": run(0.4)}, "high": {"seed 0": run(0.5)}}
    assert losses_table.best_of(equal) == "high"


def test_the_plot_has_a_dot_for_each_seed_that_has_the_figure() -> None:
    picture = ElementTree.fromstring(draw_losses(losses_table.rows_of(RESULTS, base="BCE"), base="BCE"))
    assert len(picture.findall(f"{SVG}circle")) == 3 * 3 * 2 + 5
    names = [text.text for text in picture.findall(f"{SVG}text")]
    assert {"BCE", "hybrid, fixed", "IoU", "small-lesion recall", "steps to BCE's best IoU"} <= set(names)


def test_every_loss_is_a_valid_configuration_and_all_that_the_experiment_asks_for_are_there() -> None:
    configs = {name: LossConfig.model_validate(values) for name, values in losses.LOSSES.items()}
    weightings = {config.weighting.name for name, config in configs.items() if name.startswith("hybrid, ")}
    assert len(weightings) == 6
    assert [term.name for term in configs["hybrid + component_dice"].terms][3] == "component_dice"
    assert configs["hybrid, schedule"] == LossConfig()


class TestResuming:
    def main(self, folder: Path, *more: str) -> int:
        return losses.main(["--output", str(folder), "--seeds", "0", "1", "--jobs", "1", "--steps", "400", *more])

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """All runs are done but one."""
        done = {name: RESULTS.get(name, RESULTS["Dice"]) for name in losses.LOSSES}
        done["focal"] = {"seed 1": RESULTS["Dice"]["seed 1"]}
        settings = {"steps": 400, "validate_every": 40, "real_steps": 1000}
        results = kept_results.open_results(tmp_path / "results.json", settings, parts=("sample", "real"))
        (tmp_path / "results.json").write_text(json.dumps(results | {"sample": done}))
        return tmp_path

    def test_runs_of_another_machine_are_not_added(self, folder: Path) -> None:
        results = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps(results | {"machine": "x"}))
        with pytest.raises(InputError, match=r"results\.json: expected results of .*, found x; give another --output"):
            self.main(folder)

    def test_only_what_is_missing_is_trained(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def train(self: losses.Experiment, wanted: losses.Run) -> dict[str, Any]:
            asked.append(wanted)
            return run(0.3, 0.6)

        monkeypatch.setattr(losses.Experiment, "_train", train)
        assert self.main(folder) == 0
        (wanted,) = asked
        assert (wanted.loss, wanted.which, wanted.folder) == ("focal", "seed 0", "sample-focal-seed-0")
        assert {"train.steps=400", "train.validate_every=40", "seed=0"} <= set(wanted.overrides)
        assert json.loads((folder / "results.json").read_text())["sample"]["focal"]["seed 0"] == run(0.3, 0.6)
        lines = (folder / "table.md").read_text().splitlines()
        assert [line.split(" | ")[0].strip("|* ") for line in lines[2:13]] == list(losses.LOSSES)
        assert (folder / "losses.svg").read_text().startswith("<svg")
        assert self.main(folder) == 0
        assert len(asked) == 1

    def test_other_settings_are_refused(self, folder: Path) -> None:
        with pytest.raises(InputError, match=r"expected results of .*'validate_every': 20.*another --output"):
            self.main(folder, "--validate-every", "20")
