"""The weightings of the section `loss` of the configuration."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from segment.config_base import FractionBelowOne, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share


class FixedWeighting(Section):
    """Each term keeps its own weight."""

    name: Literal["fixed"]


class SchedulePoint(Section):
    share: Share = Field(description="share of the training done")
    weights: dict[str, NonNegativeFloat] = Field(description="weights at that time by term, instead of the terms' own")


class ScheduleWeighting(Section):
    """Piecewise linear between the points, constant before the first and after the last."""

    name: Literal["schedule"]
    points: Annotated[tuple[SchedulePoint, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _points_agree(self) -> ScheduleWeighting:
        shares = [point.share for point in self.points]
        if any(low >= high for low, high in pairwise(shares)):
            raise ValueError(f"points: expected rising shares, found {shares}")
        names = sorted(self.points[0].weights)
        for point in self.points:
            if sorted(point.weights) != names:
                raise ValueError(f"points: expected the same terms {names} in each, found {sorted(point.weights)}")
        return self


class UncertaintyWeighting(Section):
    """Learnt log-variances."""

    name: Literal["uncertainty"]
    max_log_variance: PositiveFloat = Field(default=5.0, description="bound of each, either way")


class GradientNormWeighting(Section):
    """Terms weighted to equal gradient norms at the logits; the terms' own weights only say which are off (0)."""

    name: Literal["gradient_norm"]
    momentum: FractionBelowOne = Field(default=0.9, description="of the running mean of the squared norms")


class DynamicAverageWeighting(Section):
    """More weight for the terms that fall slowly."""

    name: Literal["dynamic_average"]
    period_steps: PositiveInt = Field(default=100, description="steps averaged before two means are compared")
    temperature: PositiveFloat = Field(default=2.0, description="higher is closer to equal weights")


class RecallFeedbackWeighting(Section):
    """Moves weight to the recall-heavy terms while validation misses small lesions and false positives allow it."""

    name: Literal["recall_feedback"]
    target_recall: Share = Field(default=0.8, description="small-lesion recall to reach")
    max_fp_per_scan: NonNegativeFloat = Field(default=2.0, description="false positives a scan that are within budget")
    step: Annotated[float, Field(gt=1.0)] = Field(default=1.25, description="factor of one move")
    max_factor: Annotated[float, Field(gt=1.0)] = Field(default=8.0, description="bound of all moves together")
    recall_terms: tuple[str, ...] | None = Field(
        default=None, description="the recall-heavy terms; null takes those whose options make a miss the dearer error"
    )


LossWeighting = Annotated[
    FixedWeighting
    | ScheduleWeighting
    | UncertaintyWeighting
    | GradientNormWeighting
    | DynamicAverageWeighting
    | RecallFeedbackWeighting,
    Field(discriminator="name"),
]
