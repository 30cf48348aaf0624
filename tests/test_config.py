"""Configuration files: what is read, and what is said when something in them is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from segment.config import Config, load_config, save_config
from segment.errors import InputError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("# nothing set\n")
    return path


class TestLoading:
    def test_an_empty_file_gives_the_defaults(self, empty: Path) -> None:
        assert load_config(empty) == Config()

    @pytest.mark.parametrize(
        ("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.5e-3", 1.5e-3), ("0.01", 0.01), ("2", 2.0)]
    )
    def test_numbers_as_people_write_them(self, empty: Path, text: str, value: float) -> None:
        empty.write_text(f"train: {{optimizer: {{learning_rate: {text}}}}}")
        assert load_config(empty).train.optimizer.learning_rate == value
        assert load_config(empty, [f"train.optimizer.learning_rate={text}"]).train.optimizer.learning_rate == value

    def test_overrides_win_in_order(self, empty: Path) -> None:
        config = load_config(empty, ["train.steps=5", "data.root=some/where", "model.filters=[8, 16]", "train.steps=7"])
        assert config.train.steps == 7
        assert config.data.root == Path("some/where")
        assert config.model.filters == (8, 16)

    def test_the_default_length_gives_way_to_any_that_is_given(self, empty: Path) -> None:
        assert load_config(empty, ["train.ema_decay=0.9"]).train.steps == 1000
        assert load_config(empty, ["train.steps=null"]).train.steps == 1000
        assert load_config(empty, ["train.epochs=3"]).train.steps is None
        assert "steps" not in load_config(empty, ["train.ema_decay=0.9"]).train.model_fields_set

    def test_a_folder_may_have_a_date_for_a_name(self, empty: Path) -> None:
        for name in ("2024-02-29", "2024-02-30"):
            assert load_config(empty, [f"data.root={name}"]).data.root == Path(name)

    def test_what_is_saved_loads_to_the_same(self, empty: Path, tmp_path: Path) -> None:
        config = load_config(
            empty, ["loss.terms=[{name: dice, smooth: 1e-3}]", "model.patch_size=[32, 32, 16]", "seed=3"]
        )
        save_config(config, tmp_path / "saved.yaml")
        assert load_config(tmp_path / "saved.yaml") == config

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
    def test_every_shipped_file_loads_and_says_how_to_run_it(self, path: Path) -> None:
        load_config(path)
        header = path.read_text(encoding="utf-8").split("\n\n")[0]
        assert all(line.startswith("#") for line in header.splitlines())
        assert f"configs/{path.name}" in header


class TestBadInput:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            pytest.param("trian.steps=5", "unknown key 'trian'; did you mean 'train'?", id="section"),
            pytest.param("train.stepz=5", "unknown key 'train.stepz'; did you mean 'steps'?", id="key"),
            pytest.param("train.optimizer.learning_rat=1", "did you mean 'learning_rate'?", id="nested-key"),
            pytest.param("loss.terms=[{name: dice, smoth: 1}]", "did you mean 'smooth'?", id="key-of-a-term"),
            pytest.param("loss.terms=[{name: dicee}]", "dice", id="unknown-term"),
            pytest.param(
                "train.steps=0", "train.steps: input should be greater than or equal to 1, found 0", id="range"
            ),
            pytest.param("train.steps=many", "train.steps: .*valid integer.*found 'many'", id="type"),
            pytest.param("data.lesion_patch_share=1.5", "less than or equal to 1, found 1.5", id="share"),
            pytest.param("train.optimizer.learning_rate=.nan", "finite number", id="not-a-number"),
            pytest.param("model.patch_size=[3,3]", "patch_size: expected 3 values, found 2", id="length"),
            pytest.param("model.filters=[8]", "filters: expected at least 2 levels, found 1", id="levels"),
            pytest.param("evaluation.bin_edges_mm3=[50,10]", "expected rising values", id="edges"),
            pytest.param("evaluation.small_mm3=20", "expected one of bin_edges_mm3", id="small"),
            pytest.param("loss.terms=[{name: dice},{name: dice}]", "expected each term once", id="twice"),
            pytest.param("train.steps", "expected key.sub=value", id="no-value"),
            pytest.param("seed.x=1", "unknown key|valid integer", id="below-a-value"),
            pytest.param("data.root=[", "not valid YAML", id="yaml"),
            pytest.param("train.gpus=[0, 0]", r"train\.gpus: expected different GPUs, found \[0, 0\]", id="gpus"),
        ],
    )
    def test_one_line_that_names_the_key(self, empty: Path, override: str, message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            load_config(empty, [override])
        assert "\n" not in str(caught.value)

    def test_a_repeated_key_is_not_silently_the_last_one(self, empty: Path) -> None:
        empty.write_text("seed: 1\nseed: 2\n")
        with pytest.raises(InputError, match="'seed' stands twice"):
            load_config(empty)

    def test_a_file_that_is_not_a_mapping(self, empty: Path) -> None:
        empty.write_text("- 1\n")
        with pytest.raises(InputError, match="expected a mapping of sections, found list"):
            load_config(empty)

    def test_objects_in_yaml_are_refused(self, empty: Path) -> None:
        empty.write_text("seed: !!python/object/apply:os.getcwd []\n")
        with pytest.raises(InputError, match="not valid YAML"):
            load_config(empty)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot read configuration .*none\.yaml: No such file"):
            load_config(tmp_path / "none.yaml")

    def test_bytes_that_are_no_text(self, empty: Path) -> None:
        empty.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match="cannot read configuration"):
            load_config(empty)
