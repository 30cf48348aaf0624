"""The section `loss` of the configuration: what is accepted, and one-line messages for what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segment.config import Config, config_from, load_config, save_config
from segment.config_loss import TERMS, LossConfig
from segment.config_weighting import ScheduleWeighting
from segment.errors import InputError

POINT = {"share": 0.0, "weights": {"dice": 1.0}}


def load(**loss: Any) -> LossConfig:
    return config_from({"loss": loss}, source="c.yaml").loss


def schedule(*points: dict[str, Any]) -> dict[str, Any]:
    return {"name": "schedule", "points": list(points)}


class TestAccepted:
    def test_the_default_is_cross_entropy_and_then_three_terms_of_weight_1(self) -> None:
        loss = Config().loss
        assert [(term.name, term.weight) for term in loss.terms] == [
            ("binary_crossentropy", 1),
            ("dice", 1),
            ("focal", 1),
        ]
        assert isinstance(loss.weighting, ScheduleWeighting)
        assert [(point.share, list(point.weights.values())) for point in loss.weighting.points] == [
            (0.2, [1, 0, 0]),
            (0.6, [1, 1, 1]),
        ]
        assert loss.maps == frozenset()

    def test_other_terms_have_fixed_weights_by_default(self) -> None:
        assert load(terms=[{"name": "dice"}, {"name": "focal"}]).weighting.name == "fixed"
        assert [term.name for term in load(weighting={"name": "fixed"}).terms] == [
            "binary_crossentropy",
            "dice",
            "focal",
        ]

    @pytest.mark.parametrize("name", TERMS)
    def test_every_term_needs_no_more_than_its_name(self, name: str) -> None:
        others = [{"name": "dice"}] if name == "distance_regression" else []
        assert load(terms=[*others, {"name": name}]).terms[-1].name == name

    @pytest.mark.parametrize("name", ["fixed", "uncertainty", "gradient_norm", "dynamic_average", "recall_feedback"])
    def test_every_weighting_but_the_schedule_needs_no_more_than_its_name(self, name: str) -> None:
        assert load(weighting={"name": name}).weighting.name == name

    def test_uncertainty_is_not_for_losses_below_zero(self) -> None:
        terms = [{"name": "dice"}, {"name": "boundary", "weight": 0.1}]
        with pytest.raises(InputError, match="weighting: uncertainty expects losses that are not negative"):
            config_from({"loss": {"terms": terms, "weighting": {"name": "uncertainty"}}}, source="c.yaml")

    def test_comes_back_from_a_file(self, tmp_path: Path) -> None:
        values = {"terms": [{"name": "dice"}, {"name": "boundary", "weight": 0.1}], "weighting": schedule(POINT)}
        config = config_from({"loss": values}, source="c.yaml")
        save_config(config, tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml") == config

    def test_maps_are_what_the_terms_need(self) -> None:
        terms = [{"name": "component_dice"}, {"name": "distance_regression"}]
        assert load(terms=terms).maps == {"cells", "distance", "predicted_distance"}

    def test_recall_terms_are_those_that_a_miss_costs_more(self) -> None:
        terms: list[dict[str, Any]] = [
            {"name": "binary_crossentropy", "positive_weight": 2.0},
            {"name": "dice"},
            {"name": "tversky", "fp_weight": 0.7, "fn_weight": 0.3},
            {"name": "focal_tversky"},
            {"name": "focal", "positive_weight": 0.5},
            {"name": "component_dice"},
        ]
        heavy = ("binary_crossentropy", "focal_tversky", "component_dice")
        assert load(terms=terms, weighting={"name": "recall_feedback"}).recall_terms == heavy
        named = {"name": "recall_feedback", "recall_terms": ["dice"]}
        assert load(terms=terms, weighting=named).recall_terms == ("dice",)


class TestRefused:
    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            ({"terms": [{"name": "dise"}]}, "loss.terms.0.name: unknown 'dise'; did you mean 'dice'? (one of "),
            ({"terms": [{"name": "dice", "smoth": 1}]}, "unknown key 'loss.terms.0.smoth'; did you mean 'smooth'?"),
            (
                {"terms": [{"name": "dice", "weight": -1}]},
                "loss.terms.0.weight: input should be greater than or equal to 0",
            ),
            (
                {"terms": [{"name": "focal", "gamma": -2}]},
                "loss.terms.0.gamma: input should be greater than or equal to 0",
            ),
            ({"terms": []}, "loss.terms: tuple should have at least 1 item"),
            ({"terms": [{"weight": 1}]}, "loss.terms.0: expected a mapping with the key 'name'"),
            ({"terms": [{"name": "dice"}] * 2}, "loss.terms: expected each term once"),
            (
                {"terms": [{"name": "dice", "weight": 0}]},
                "loss.terms: expected at least one weight above 0, found none",
            ),
            ({"terms": [{"name": "distance_regression"}]}, "loss.terms: expected a term for the segmentation itself"),
            (
                {"terms": [{"name": "dice"}, {"name": "categorical_dice"}]},
                "loss.terms: expected sigmoid or softmax terms, found both: dice and categorical_dice",
            ),
            (
                {"weighting": {"name": "uncertanty"}},
                "loss.weighting.name: unknown 'uncertanty'; did you mean 'uncertainty'?",
            ),
            ({"weighting": {"name": "schedule"}}, "loss.weighting.points: is required"),
            (
                {"weighting": {"name": "fixed", "points": []}},
                "unknown key 'loss.weighting.points'; did you mean 'name'?",
            ),
            (
                {"weighting": {"name": "gradient_norm", "momentum": 1}},
                "loss.weighting.momentum: input should be less than 1",
            ),
            ({"weighting": schedule(POINT, POINT)}, "loss.weighting.points: expected rising shares, found [0.0, 0.0]"),
            ({"weighting": schedule(POINT | {"share": 2})}, "loss.weighting.points.0.share: input should be less than"),
            ({"weighting": schedule(POINT | {"weights": {"dice": -1}})}, "loss.weighting.points.0.weights.dice: input"),
            (
                {"weighting": schedule(POINT | {"weights": {"dce": 1}})},
                "loss.weighting.points: expected terms of this loss",
            ),
            (
                {"weighting": schedule(POINT, {"share": 1.0, "weights": {"focal": 1.0}})},
                "loss.weighting.points: expected the same terms ['dice'] in each, found ['focal']",
            ),
            (
                {"terms": [{"name": "dice"}], "weighting": schedule(POINT | {"weights": {"dice": 0}})},
                "loss.weighting.points: expected a weight above 0 at share 0.0, found none",
            ),
            (
                {"terms": [{"name": "dice"}], "weighting": {"name": "recall_feedback"}},
                "loss.weighting: recall_feedback moves weight between recall-heavy terms and others",
            ),
            (
                {"weighting": {"name": "recall_feedback", "recall_terms": ["tversky"]}},
                "loss.weighting.recall_terms: expected terms of this loss",
            ),
        ],
    )
    def test_with_one_message_that_names_the_key(self, loss: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError) as caught:
            load(**loss)
        text = str(caught.value)
        assert text.startswith(f"c.yaml: {message}"), text
        assert ";" not in text.replace("; did you mean", "").replace("; set", "")
        assert "\n" not in text
