"""The terms as `tf.keras.losses.Loss` classes, for models that are compiled, saved and loaded by Keras.

Importing this module registers them: a model saved with any of them loads without custom_objects. Options, defaults
and errors are those of the function of the same name. `reduction` is Keras': "sum_over_batch_size" (the mean over
examples), "sum" or "none". Keras computes them in its own float type, float32 by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from segment.errors import InputError
from segment.losses import categorical, crossentropy, distance, lesionwise, overlap
from segment.losses.options import checked, default

_register = tf.keras.utils.register_keras_serializable(package="segment")
_MEAN = "sum_over_batch_size"


class TermLoss(tf.keras.losses.Loss):
    """What the classes share: they check and keep the options, and hand them to the term's function."""

    term: ClassVar[str]
    function: ClassVar[Callable[..., tf.Tensor]]

    def __init__(self, reduction: str, name: str | None, **options: Any) -> None:
        super().__init__(reduction=reduction, name=name or self.term)
        self.options = checked(self.term, **options)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The loss of each example, [batch], from y_pred as logits [batch, *spatial, channels]."""
        return type(self).function(y_true, y_pred, **self.options)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` needs to build an equal loss."""
        return {"name": self.name, "reduction": self.reduction, **self.options}


@_register
class BinaryCrossentropy(TermLoss):
    """As `binary_crossentropy`."""

    term = "binary_crossentropy"
    function = staticmethod(crossentropy.binary_crossentropy)

    def __init__(
        self,
        *,
        positive_weight: float = default("binary_crossentropy", "positive_weight"),
        label_smoothing: float = default("binary_crossentropy", "label_smoothing"),
        temperature: float = default("binary_crossentropy", "temperature"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(
            reduction, name, positive_weight=positive_weight, label_smoothing=label_smoothing, temperature=temperature
        )


@_register
class Focal(TermLoss):
    """As `focal`."""

    term = "focal"
    function = staticmethod(crossentropy.focal)

    def __init__(
        self,
        *,
        gamma: float = default("focal", "gamma"),
        positive_weight: float = default("focal", "positive_weight"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name, gamma=gamma, positive_weight=positive_weight)


@_register
class Dice(TermLoss):
    """As `dice`."""

    term = "dice"
    function = staticmethod(overlap.dice)

    def __init__(
        self,
        *,
        smooth: float = default("dice", "smooth"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name, smooth=smooth)


@_register
class Tversky(TermLoss):
    """As `tversky`."""

    term = "tversky"
    function = staticmethod(overlap.tversky)

    def __init__(
        self,
        *,
        fp_weight: float = default("tversky", "fp_weight"),
        fn_weight: float = default("tversky", "fn_weight"),
        smooth: float = default("tversky", "smooth"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name, fp_weight=fp_weight, fn_weight=fn_weight, smooth=smooth)


@_register
class FocalTversky(TermLoss):
    """As `focal_tversky`."""

    term = "focal_tversky"
    function = staticmethod(overlap.focal_tversky)

    def __init__(
        self,
        *,
        fp_weight: float = default("focal_tversky", "fp_weight"),
        fn_weight: float = default("focal_tversky", "fn_weight"),
        gamma: float = default("focal_tversky", "gamma"),
        smooth: float = default("focal_tversky", "smooth"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name, fp_weight=fp_weight, fn_weight=fn_weight, gamma=gamma, smooth=smooth)


@_register
class CategoricalCrossentropy(TermLoss):
    """As `categorical_crossentropy`."""

    term = "categorical_crossentropy"
    function = staticmethod(categorical.categorical_crossentropy)

    def __init__(
        self,
        *,
        temperature: float = default("categorical_crossentropy", "temperature"),
        class_weights: Sequence[float] | None = default("categorical_crossentropy", "class_weights"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name, temperature=temperature, class_weights=class_weights)


@_register
class CategoricalFocal(TermLoss):
    """As `categorical_focal`."""

    term = "categorical_focal"
    function = staticmethod(categorical.categorical_focal)

    def __init__(
        self,
        *,
        gamma: float = default("categorical_focal", "gamma"),
        class_weights: Sequence[float] | None = default("categorical_focal", "class_weights"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name, gamma=gamma, class_weights=class_weights)


@_register
class CategoricalDice(TermLoss):
    """As `categorical_dice`."""

    term = "categorical_dice"
    function = staticmethod(categorical.categorical_dice)

    def __init__(
        self,
        *,
        smooth: float = default("categorical_dice", "smooth"),
        background: bool = default("categorical_dice", "background"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name, smooth=smooth, background=background)


@_register
class ComponentDice(TermLoss):
    """As `component_dice`; y_true [batch, *spatial, 2 K] holds the K label channels, then the K cell maps."""

    term = "component_dice"
    function = staticmethod(lesionwise.component_dice)

    def __init__(
        self,
        *,
        smooth: float = default("component_dice", "smooth"),
        max_components: int = default("component_dice", "max_components"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name, smooth=smooth, max_components=max_components)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The loss of each example, [batch]. Raises InputError when y_true has not twice the channels of y_pred."""
        y_true = tf.convert_to_tensor(y_true)
        if y_true.shape[-1] != 2 * y_pred.shape[-1]:
            raise InputError(
                f"y_true: expected labels and cells, twice the channels of {y_pred.shape}, found {y_true.shape}"
            )
        labels, cells = tf.split(y_true, 2, axis=-1)
        return lesionwise.component_dice(labels, y_pred, cells=cells, **self.options)


@_register
class Boundary(TermLoss):
    """As `boundary`; y_true is the signed distance map [batch, *spatial, K], which says where the lesions are."""

    term = "boundary"
    function = staticmethod(distance.boundary)

    def __init__(
        self,
        *,
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """The loss of each example, [batch]."""
        return distance.boundary(tf.cast(y_true < 0, tf.float32), y_pred, distance=y_true)


@_register
class DistanceRegression(TermLoss):
    """As `distance_regression`: y_true is the distance map, y_pred the head's output."""

    term = "distance_regression"
    function = staticmethod(distance.distance_regression)

    def __init__(
        self,
        *,
        error: str = default("distance_regression", "error"),
        delta_mm: float = default("distance_regression", "delta_mm"),
        reduction: str = _MEAN,
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name, error=error, delta_mm=delta_mm)
