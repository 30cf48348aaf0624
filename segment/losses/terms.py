"""From the configuration of a loss to its terms and its weighting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import tensorflow as tf

from segment import config_loss, config_weighting
from segment.config_base import Section
from segment.errors import InputError
from segment.losses.adaptive import DynamicAverage, GradientNorm, Uncertainty
from segment.losses.categorical import (
    ClassVoxels,
    categorical_crossentropy_of,
    categorical_dice_of,
    categorical_focal_of,
)
from segment.losses.crossentropy import binary_crossentropy_of, focal_of
from segment.losses.distance import boundary_of, distance_regression_of
from segment.losses.inputs import Voxels, to_float
from segment.losses.lesionwise import component_dice_of
from segment.losses.overlap import dice_of, focal_tversky_of, tversky_of
from segment.losses.weighting import RecallFeedback, Schedule, Weighting

Maps = dict[str, tf.Tensor | None]


def _distance_regression(
    voxels: Voxels | ClassVoxels, *, distance: tf.Tensor, predicted_distance: tf.Tensor, error: str, delta_mm: float
) -> tf.Tensor:
    prediction = to_float(predicted_distance)
    return distance_regression_of(distance, prediction, voxels.weight, error=error, delta_mm=delta_mm)


_LOSSES: dict[str, Callable[..., tf.Tensor]] = {
    "binary_crossentropy": binary_crossentropy_of,
    "dice": dice_of,
    "tversky": tversky_of,
    "focal": focal_of,
    "focal_tversky": focal_tversky_of,
    "component_dice": component_dice_of,
    "boundary": boundary_of,
    "distance_regression": _distance_regression,
    "categorical_crossentropy": categorical_crossentropy_of,
    "categorical_focal": categorical_focal_of,
    "categorical_dice": categorical_dice_of,
}


@dataclass(frozen=True, eq=False)
class Term:
    """One term of a hybrid loss.

    Attributes:
        name: as in the configuration.
        weight: its fixed weight, at least 0.
        loss: prepared inputs and the term's maps -> [batch].
        maps: the keyword tensors that it needs besides labels and logits.
    """

    name: str
    weight: float
    loss: Callable[..., tf.Tensor]
    maps: tuple[str, ...]

    def __call__(self, voxels: Voxels | ClassVoxels, maps: Maps) -> tf.Tensor:
        """The unweighted loss of each example, [batch]. Raises InputError when a map is missing."""
        for name in self.maps:
            if maps[name] is None:
                raise InputError(f"loss term {self.name}: expected the tensor {name!r}, found None; pass {name}=...")
        return self.loss(voxels, **{name: maps[name] for name in self.maps})


def build_term(section: Section) -> Term:
    """The term of one section under `loss.terms`."""
    options: dict[str, Any] = section.model_dump()
    name, weight = options.pop("name"), options.pop("weight")
    return Term(name=name, weight=weight, loss=partial(_LOSSES[name], **options), maps=config_loss.MAPS.get(name, ()))


def build_weighting(config: config_loss.LossConfig) -> Weighting:
    """The weighting of a loss configuration. Build it within the strategy's scope: it makes variables."""
    names, weights = [term.name for term in config.terms], [term.weight for term in config.terms]
    section = config.weighting
    if isinstance(section, config_weighting.ScheduleWeighting):
        return Schedule(names, weights, section)
    if isinstance(section, config_weighting.UncertaintyWeighting):
        return Uncertainty(names, weights, section)
    if isinstance(section, config_weighting.GradientNormWeighting):
        return GradientNorm(names, weights, section)
    if isinstance(section, config_weighting.DynamicAverageWeighting):
        return DynamicAverage(names, weights, section)
    if isinstance(section, config_weighting.RecallFeedbackWeighting):
        return RecallFeedback(names, weights, section, config.recall_terms)
    return Weighting(names, weights)
