"""The section `loss` of the configuration: its terms; their weightings stand in `segment.config_weighting`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segment.config_base import FractionBelowOne, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share
from segment.config_weighting import (
    LossWeighting,
    RecallFeedbackWeighting,
    SchedulePoint,
    ScheduleWeighting,
    UncertaintyWeighting,
)


class BinaryCrossentropyTerm(Section):
    name: Literal["binary_crossentropy"]
    weight: NonNegativeFloat = 1.0
    positive_weight: PositiveFloat = 1.0
    label_smoothing: FractionBelowOne = 0.0
    temperature: PositiveFloat = 1.0


class DiceTerm(Section):
    name: Literal["dice"]
    weight: NonNegativeFloat = 1.0
    smooth: NonNegativeFloat = 1.0


class TverskyTerm(Section):
    name: Literal["tversky"]
    weight: NonNegativeFloat = 1.0
    fp_weight: NonNegativeFloat = 0.3
    fn_weight: NonNegativeFloat = 0.7
    smooth: NonNegativeFloat = 1.0


class FocalTerm(Section):
    name: Literal["focal"]
    weight: NonNegativeFloat = 1.0
    gamma: NonNegativeFloat = 2.0
    positive_weight: Share = 0.75


class FocalTverskyTerm(Section):
    name: Literal["focal_tversky"]
    weight: NonNegativeFloat = 1.0
    fp_weight: NonNegativeFloat = 0.3
    fn_weight: NonNegativeFloat = 0.7
    gamma: PositiveFloat = 0.75
    smooth: NonNegativeFloat = 1.0


class ComponentDiceTerm(Section):
    """Dice and cross-entropy of each lesion within its Voronoi cell."""

    name: Literal["component_dice"]
    weight: NonNegativeFloat = 1.0
    smooth: NonNegativeFloat = Field(default=1e-5, description="small, so that lesions of any size count the same")
    max_components: PositiveInt = Field(default=256, description="lesions told apart in one patch; more share cells")


class BoundaryTerm(Section):
    name: Literal["boundary"]
    weight: NonNegativeFloat = 1.0


class DistanceRegressionTerm(Section):
    """Error of a second head that predicts the signed distance to the lesion surface."""

    name: Literal["distance_regression"]
    weight: NonNegativeFloat = 1.0
    error: Literal["mean_squared_error", "mean_absolute_error", "huber"] = "huber"
    delta_mm: PositiveFloat = Field(default=1.0, description="where huber turns from square to linear")


class CategoricalCrossentropyTerm(Section):
    name: Literal["categorical_crossentropy"]
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 1.0
    class_weights: tuple[NonNegativeFloat, ...] | None = Field(
        default=None, description="one per class, the background first"
    )


class CategoricalFocalTerm(Section):
    name: Literal["categorical_focal"]
    weight: NonNegativeFloat = 1.0
    gamma: NonNegativeFloat = 2.0
    class_weights: tuple[NonNegativeFloat, ...] | None = Field(
        default=None, description="one per class, the background first"
    )


class CategoricalDiceTerm(Section):
    name: Literal["categorical_dice"]
    weight: NonNegativeFloat = 1.0
    smooth: NonNegativeFloat = 1.0
    background: bool = Field(default=False, description="whether class 0 takes part in the mean over classes")


LossTerm = Annotated[
    BinaryCrossentropyTerm
    | DiceTerm
    | TverskyTerm
    | FocalTerm
    | FocalTverskyTerm
    | ComponentDiceTerm
    | BoundaryTerm
    | DistanceRegressionTerm
    | CategoricalCrossentropyTerm
    | CategoricalFocalTerm
    | CategoricalDiceTerm,
    Field(discriminator="name"),
]


_SOFTMAX = "categorical_"  # how the names of the terms for classes that exclude each other begin
_ALONE = {"binary_crossentropy": 1.0, "dice": 0.0, "focal": 0.0}
# The best of `benchmark.py losses`: cross-entropy finds the lesions first, then overlap and hard voxels count as much.
_DEFAULT_WEIGHTING = ScheduleWeighting(
    name="schedule",
    points=(SchedulePoint(share=0.2, weights=_ALONE), SchedulePoint(share=0.6, weights=dict.fromkeys(_ALONE, 1.0))),
)


class LossConfig(Section):
    """The terms of the hybrid loss, each with its weight, and the weighting that may move the weights.

    The default weighting is for the default terms; others have fixed weights where none is given.
    """

    terms: Annotated[tuple[LossTerm, ...], Field(min_length=1)] = (
        BinaryCrossentropyTerm(name="binary_crossentropy"),
        DiceTerm(name="dice"),
        FocalTerm(name="focal"),
    )
    weighting: LossWeighting = _DEFAULT_WEIGHTING
    distance_clip_mm: PositiveFloat = Field(
        default=10.0, description="distance maps end here; used by boundary and distance_regression"
    )

    @model_validator(mode="before")
    @classmethod
    def _other_terms_are_fixed(cls, values: Any) -> Any:
        if isinstance(values, dict) and "terms" in values and "weighting" not in values:
            return {**values, "weighting": {"name": "fixed"}}
        return values

    @model_validator(mode="after")
    def _terms_agree(self) -> LossConfig:
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"terms: expected each term once, found {names}")
        softmax = [name for name in names if name.startswith(_SOFTMAX)]
        sigmoid = [name for name in names if name not in softmax and name != "distance_regression"]
        if softmax and sigmoid:
            raise ValueError(f"terms: expected sigmoid or softmax terms, found both: {sigmoid[0]} and {softmax[0]}")
        if not softmax and not sigmoid:
            raise ValueError("terms: expected a term for the segmentation itself, found distance_regression alone")
        if not any(term.weight > 0 for term in self.terms):
            raise ValueError("terms: expected at least one weight above 0, found none")
        return self

    @model_validator(mode="after")
    def _weighting_fits(self) -> LossConfig:
        names = [term.name for term in self.terms]
        if isinstance(self.weighting, ScheduleWeighting):
            for point in self.weighting.points:
                _require_terms("weighting.points", point.weights, names)
                if not any(point.weights.get(term.name, term.weight) > 0 for term in self.terms):
                    raise ValueError(f"weighting.points: expected a weight above 0 at share {point.share}, found none")
        on = [term.name for term in self.terms if term.weight > 0]
        if isinstance(self.weighting, UncertaintyWeighting) and "boundary" in on:
            raise ValueError(
                "weighting: uncertainty expects losses that are not negative: below 0 the boundary term's weight grows "
                "to its bound; take another weighting"
            )
        if isinstance(self.weighting, RecallFeedbackWeighting):
            _require_terms("weighting.recall_terms", self.weighting.recall_terms or (), names)
            recall = self.recall_terms
            if all(name in recall for name in on) or not any(name in recall for name in on):
                raise ValueError(
                    f"weighting: recall_feedback moves weight between recall-heavy terms and others, expected both, "
                    f"found {[name for name in on if name in recall]} recall-heavy of {on}; set recall_terms"
                )
        return self

    @property
    def softmax(self) -> bool:
        """Whether the classes exclude each other, and the background is an output of its own."""
        return any(term.name.startswith(_SOFTMAX) for term in self.terms)

    @property
    def recall_terms(self) -> tuple[str, ...]:
        """The recall-heavy terms: those that recall_feedback names, else those to which a miss is the dearer error."""
        if isinstance(self.weighting, RecallFeedbackWeighting) and self.weighting.recall_terms is not None:
            return self.weighting.recall_terms
        return tuple(term.name for term in self.terms if _is_recall_heavy(term))

    @property
    def maps(self) -> frozenset[str]:
        """The tensors that the terms need besides labels and logits: "cells", "distance", "predicted_distance"."""
        return frozenset(name for term in self.terms for name in MAPS.get(term.name, ()))


def _is_recall_heavy(term: Section) -> bool:
    if isinstance(term, TverskyTerm | FocalTverskyTerm):
        return term.fn_weight > term.fp_weight
    if isinstance(term, FocalTerm):
        return term.positive_weight > 0.5
    if isinstance(term, BinaryCrossentropyTerm):
        return term.positive_weight > 1.0
    return isinstance(term, ComponentDiceTerm)


def _require_terms(key: str, found: Iterable[str], names: Sequence[str]) -> None:
    for name in found:
        if name not in names:
            raise ValueError(f"{key}: expected terms of this loss {names}, found {name!r}")


TERMS: dict[str, type[Section]] = {
    "binary_crossentropy": BinaryCrossentropyTerm,
    "dice": DiceTerm,
    "tversky": TverskyTerm,
    "focal": FocalTerm,
    "focal_tversky": FocalTverskyTerm,
    "component_dice": ComponentDiceTerm,
    "boundary": BoundaryTerm,
    "distance_regression": DistanceRegressionTerm,
    "categorical_crossentropy": CategoricalCrossentropyTerm,
    "categorical_focal": CategoricalFocalTerm,
    "categorical_dice": CategoricalDiceTerm,
}

# What a term needs besides labels and logits: component cells and the distance to the lesion surface come from the data
# pipeline, the predicted distance from a second head of the network.
MAPS: dict[str, tuple[str, ...]] = {
    "component_dice": ("cells",),
    "boundary": ("distance",),
    "distance_regression": ("distance", "predicted_distance"),
}
