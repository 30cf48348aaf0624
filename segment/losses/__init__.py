"""Loss terms that see small lesions, and the hybrid that weighs them. Importing it imports TensorFlow.

Functions give one value per example from logits; the Keras classes of the same names reduce them. `build_hybrid`
makes the loss that a configuration asks for.
"""

from segment.losses.categorical import categorical_crossentropy, categorical_dice, categorical_focal
from segment.losses.classes import (
    BinaryCrossentropy,
    Boundary,
    CategoricalCrossentropy,
    CategoricalDice,
    CategoricalFocal,
    ComponentDice,
    Dice,
    DistanceRegression,
    Focal,
    FocalTversky,
    Tversky,
)
from segment.losses.crossentropy import binary_crossentropy, focal
from segment.losses.distance import boundary, distance_regression
from segment.losses.hybrid import Hybrid, HybridOutput, build_hybrid, split_outputs, supervised_loss
from segment.losses.lesionwise import component_dice
from segment.losses.overlap import dice, focal_tversky, tversky

__all__ = [
    "BinaryCrossentropy",
    "Boundary",
    "CategoricalCrossentropy",
    "CategoricalDice",
    "CategoricalFocal",
    "ComponentDice",
    "Dice",
    "DistanceRegression",
    "Focal",
    "FocalTversky",
    "Hybrid",
    "HybridOutput",
    "Tversky",
    "binary_crossentropy",
    "boundary",
    "build_hybrid",
    "categorical_crossentropy",
    "categorical_dice",
    "categorical_focal",
    "component_dice",
    "dice",
    "distance_regression",
    "focal",
    "focal_tversky",
    "split_outputs",
    "supervised_loss",
    "tversky",
]
