"""Where the first number that is not finite came from: a skipped step computed again, patch by patch, layer by layer.

Only a step that has failed is looked at, so a training whose numbers are finite pays nothing for it but that the loop
waits for each step. The weights must still be those of the failed step, which skipping it makes sure of.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from segment.losses import Hybrid, split_outputs, supervised_loss
from segment.training.distribution import plain_variable

_MAPS = ("cells", "distance")


@dataclass(frozen=True)
class BadNumber:
    """What was found.

    Attributes:
        place: For example "layer down1_a_conv", "loss term focal", "gradient of loss term focal at the logits".
        kind: "NaN", "Inf", or "a finite number whose square is not".
        case_id: Of the patch; empty where it is not about one patch.
        overflow_of_scale: The same step is finite without loss scaling, which skips it and goes on: nothing is wrong.
    """

    place: str
    kind: str
    case_id: str
    overflow_of_scale: bool = False

    def __str__(self) -> str:
        where = f" on case {self.case_id}" if self.case_id else ""
        scaled = ", from the loss scale only" if self.overflow_of_scale else ""
        return f"the first number that is not finite is in the {self.place}{where}: {self.kind}{scaled}"


def find_bad_number(
    model: tf.keras.Model, hybrid: Hybrid, batch: dict[str, tf.Tensor], case_ids: Sequence[str], *, scale: float
) -> BadNumber:
    """Computes a step again, eagerly, and names the first bad number on the way: image, layers, terms, gradients.

    Args:
        model: A functional model with the weights that the step began with.
        hybrid: The loss in the state that the step began with.
        batch: Of `patch_dataset`, all patches of the step.
        case_ids: Of each patch.
        scale: The loss scale of the step.

    Returns:
        The first bad number in the order of computation; where the gradients of the single patches are finite, their
        sum is named.
    """
    found = _in_weights(model)
    if found is not None:
        return found
    layers = [layer for layer in model.layers if not isinstance(layer, tf.keras.layers.InputLayer)]
    probe = tf.keras.Model(model.inputs, [[layer.output for layer in layers], list(model.outputs)])
    share = 1.0 / len(case_ids)  # of a patch in the mean that is differentiated
    for index, case_id in enumerate(case_ids):
        patch = {name: part[index : index + 1] for name, part in batch.items() if name != "case"}
        run = _Run(probe, hybrid, patch, layers)
        for place, kind in run.findings(scale * share):
            alone = scale > 1.0 and place.startswith("gradient") and not any(run.gradient_findings(share))
            return BadNumber(place, kind, case_id, overflow_of_scale=alone)
    return BadNumber(
        f"sum of the gradients of the {len(case_ids)} patches ({', '.join(sorted(set(case_ids)))}), "
        "each of which is finite when it is computed again alone",
        "Inf or NaN",
        "",
        overflow_of_scale=scale > 1.0,
    )


def _in_weights(model: tf.keras.Model) -> BadNumber | None:
    for layer in model.layers:
        for weight in layer.weights:
            kind = _kind(plain_variable(weight))
            if kind:
                name = weight.name.split("/")[-1].split(":")[0]
                return BadNumber(f"weight {name!r} of layer {layer.name} before the step", kind, "")
    return None


class _Run:
    """One patch through network, loss and backward pass, with everything on the way kept."""

    def __init__(self, probe: tf.keras.Model, hybrid: Hybrid, patch: dict[str, tf.Tensor], layers: list[Any]) -> None:
        self._image = patch["image"]
        self._layers = layers
        self._terms = [term.name for term in hybrid.terms]
        maps = {name: patch[name] for name in _MAPS if name in patch}
        every_map = dict.fromkeys([*_MAPS, "predicted_distance"]) | maps
        with tf.GradientTape(persistent=True) as self._tape, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the losses look at values when they run eagerly, and may guess wrong
            self._features, outputs = probe(self._image, training=True)
            self._logits, predicted = split_outputs(hybrid, outputs)
            maps |= predicted
            every_map |= predicted
            self._losses, _ = hybrid.measure(patch["label"], self._logits[0], weight=None, maps=every_map)
            output = supervised_loss(hybrid, patch["label"], self._logits, **maps)
            self._total = tf.reduce_sum(output.total)
        self._statistics = output.statistics

    def findings(self, scale: float) -> Iterator[tuple[str, str]]:
        """(place, kind) of bad numbers in the order of computation."""
        named = [("image", self._image)]
        named += [(f"output of layer {layer.name}", x) for layer, x in zip(self._layers, self._features, strict=True)]
        named += [(f"loss term {name}", self._statistics[f"loss/{name}"]) for name in self._terms]
        named += [("weighted sum of the loss terms", self._total)]
        for place, values in named:
            kind = _kind(values)
            if kind:
                yield place, kind
        yield from self.gradient_findings(scale)

    def gradient_findings(self, scale: float) -> Iterator[tuple[str, str]]:
        """The same for the backward pass of the scaled loss."""
        for name, loss in zip(self._terms, self._losses, strict=True):
            kind = _kind(self._tape.gradient(loss, self._logits[0]))
            if kind:
                yield f"gradient of loss term {name} at the logits", kind
        seed = tf.fill(tf.shape(self._total), tf.cast(scale, self._total.dtype))
        weights = [[plain_variable(weight) for weight in layer.trainable_weights] for layer in self._layers]
        at_outputs, at_weights = self._tape.gradient(self._total, [self._features, weights], output_gradients=seed)
        backwards = list(zip(self._layers, at_outputs, at_weights, strict=True))[::-1]
        for layer, at_output, of_weights in backwards:
            kind = _kind(at_output)
            if kind:
                yield f"gradient at the output of layer {layer.name}", kind
            for gradient in of_weights:
                kind = _kind(gradient) or _kind_of_squares(gradient)
                if kind:
                    yield f"gradient of the weights of layer {layer.name}", kind


def _kind(values: Any) -> str:
    """NaN or Inf; nothing for finite values and for None."""
    if values is None:
        return ""
    array = np.asarray(tf.cast(tf.convert_to_tensor(values), tf.float32))
    if np.isnan(array).any():
        return "NaN"
    return "Inf" if np.isinf(array).any() else ""


def _kind_of_squares(gradient: Any) -> str:
    if gradient is None:
        return ""
    squares = tf.reduce_sum(tf.square(tf.cast(gradient, tf.float32)))
    return "" if bool(tf.math.is_finite(squares)) else "a finite number whose square is not"
