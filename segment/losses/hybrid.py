"""The hybrid loss: several terms, and the weighting that adds them up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from segment.config_loss import LossConfig
from segment.losses.adaptive import REFERENCE
from segment.losses.categorical import ClassVoxels, categorical_crossentropy_of, prepare_classes
from segment.losses.crossentropy import binary_crossentropy_of
from segment.losses.inputs import Voxels, prepare, to_float
from segment.losses.levels import coarse_labels, level_shares, max_pool_to
from segment.losses.terms import Maps, Term, build_term, build_weighting
from segment.losses.weighting import Weighting


class HybridOutput(NamedTuple):
    """What a hybrid loss gives for a batch.

    Attributes:
        total: the weighted sum, float32 [batch] (float64 for float64 logits).
        statistics: float32 scalars without gradient. "loss/<term>": batch mean of the unweighted term.
            "weight/<term>": the weight it had. With uncertainty "sigma/<term>"; with gradient_norm
            "gradient_square/<term>", the mean over examples of the squared gradient norm of the unweighted term at
            the outputs.
    """

    total: tf.Tensor
    statistics: dict[str, tf.Tensor]


class Hybrid(tf.Module):
    """Terms and a weighting.

    Call it in replica context; average the statistics over the replicas; hand them to `update` in cross-replica
    context. All state is in variables: `tf.train.Checkpoint(hybrid=hybrid)` keeps it.

    Attributes:
        terms: in the order of the configuration.
        weighting: its `trainable_variables`, also those of the hybrid, are optimised without weight decay.
        softmax: whether the classes exclude each other; else every channel is a sigmoid of its own.
        maps: names of the keyword tensors that some term needs.
    """

    def __init__(self, terms: Sequence[Term], weighting: Weighting) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.weighting = weighting
        self.softmax = any(term.name.startswith("categorical_") for term in terms)
        self.maps = frozenset(name for term in terms for name in term.maps)

    def __call__(
        self,
        y_true: tf.Tensor,
        logits: tf.Tensor,
        *,
        weight: tf.Tensor | None = None,
        cells: tf.Tensor | None = None,
        distance: tf.Tensor | None = None,
        predicted_distance: tf.Tensor | None = None,
    ) -> HybridOutput:
        """The loss of one output; arguments as for `supervised_loss`."""
        maps = {"cells": cells, "distance": distance, "predicted_distance": predicted_distance}
        losses, statistics = self.measure(y_true, logits, weight=weight, maps=maps)
        return self.combine(losses, statistics)

    def measure(
        self, y_true: tf.Tensor, logits: tf.Tensor, *, weight: tf.Tensor | None, maps: Maps
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """The unweighted terms, each [batch], and the gradient statistics where the weighting needs them."""
        voxels = self.prepare(y_true, logits, weight)
        if not self.weighting.needs_gradients:
            return [term(voxels, maps) for term in self.terms], {}
        outputs = [voxels.logits]
        if maps["predicted_distance"] is not None:
            maps = maps | {"predicted_distance": to_float(maps["predicted_distance"])}
            outputs.append(maps["predicted_distance"])
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(outputs)
            losses = [term(voxels, maps) for term in self.terms]
            reference = self._plain_crossentropy(voxels)
        names = [*(term.name for term in self.terms), REFERENCE]
        squares = [_mean_square(tape.gradient(loss, outputs)) for loss in [*losses, reference]]
        return losses, {f"gradient_square/{name}": square for name, square in zip(names, squares, strict=True)}

    def gradient_statistics(
        self,
        y_true: tf.Tensor,
        logits: tf.Tensor,
        *,
        weight: tf.Tensor | None = None,
        cells: tf.Tensor | None = None,
        distance: tf.Tensor | None = None,
        predicted_distance: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Only the "gradient_square/<name>" of a batch; their mean over batches is `measured` of `supervised_loss`."""
        maps = {"cells": cells, "distance": distance, "predicted_distance": predicted_distance}
        return self.measure(y_true, logits, weight=weight, maps=maps)[1]

    def combine(
        self,
        losses: Sequence[tf.Tensor],
        statistics: dict[str, tf.Tensor],
        measured: dict[str, tf.Tensor] | None = None,
    ) -> HybridOutput:
        """The total of the measured terms, with all statistics; `measured` as for `supervised_loss`."""
        total, weights = self.weighting.combine(losses, measured or self.weighting.agreed(statistics))
        statistics = {
            f"loss/{term.name}": tf.reduce_mean(loss) for term, loss in zip(self.terms, losses, strict=True)
        } | (statistics | self.weighting.scalars(weights))
        return HybridOutput(total, {name: tf.stop_gradient(tf.cast(v, tf.float32)) for name, v in statistics.items()})

    def prepare(self, y_true: tf.Tensor, logits: tf.Tensor, weight: tf.Tensor | None) -> Voxels | ClassVoxels:
        """Checked inputs as these terms take them."""
        return prepare_classes(y_true, logits, weight) if self.softmax else prepare(y_true, logits, weight)

    def weights(self) -> dict[str, tf.Tensor]:
        """The current weights for the log, scalars by the names "weight/<term>" (and "sigma/<term>")."""
        return self.weighting.scalars(self.weighting.weights())

    def update(self, statistics: dict[str, tf.Tensor], share_done: tf.Tensor | float) -> None:
        """Moves the weights after a step, in cross-replica context; works in a tf.function.

        Args:
            statistics: HybridOutput.statistics, averaged over the replicas. Those that are not finite are passed over.
            share_done: share of the training done, in 0..1.
        """
        self.weighting.update(statistics, tf.cast(share_done, tf.float32))

    def on_validation(self, summary: dict[str, Any]) -> str | None:
        """Lets the weighting look at a validation summary.

        Returns:
            The decision and its reason in one line, to be kept in the run folder; None for a weighting that does not
            look.
        """
        return self.weighting.on_validation(summary)

    def _plain_crossentropy(self, voxels: Voxels | ClassVoxels) -> tf.Tensor:
        if isinstance(voxels, ClassVoxels):
            return categorical_crossentropy_of(voxels, temperature=1.0, class_weights=None)
        return binary_crossentropy_of(voxels, positive_weight=1.0, label_smoothing=0.0, temperature=1.0)


def build_hybrid(config: LossConfig) -> Hybrid:
    """The hybrid loss of a configuration. Build it within the strategy's scope: it makes variables."""
    return Hybrid([build_term(section) for section in config.terms], build_weighting(config))


def split_outputs(hybrid: Hybrid, outputs: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
    """The logits among a network's outputs, finest first, and the maps that the network itself predicts.

    Where a term asks for "predicted_distance", the network has a head for it, and it is the last output.
    """
    if "predicted_distance" not in hybrid.maps:
        return list(outputs), {}
    *logits, predicted = outputs
    return logits, {"predicted_distance": predicted}


def supervised_loss(
    hybrid: Hybrid,
    y_true: tf.Tensor,
    outputs: tf.Tensor | Sequence[tf.Tensor],
    *,
    weight: tf.Tensor | None = None,
    cells: tf.Tensor | None = None,
    distance: tf.Tensor | None = None,
    predicted_distance: tf.Tensor | None = None,
    measured: dict[str, tf.Tensor] | None = None,
) -> HybridOutput:
    """The hybrid loss of a network with one output or with deep supervision.

    Args:
        hybrid: from `build_hybrid`.
        y_true: labels as the terms take them: uint8 [batch, *spatial, K], one channel per foreground class.
        outputs: logits [batch, *spatial, K], or a list of them, finest first. Levels weigh 1, 1/2, 1/4 ..., scaled to
            sum 1. Coarser labels come by max-pooling: a lesion of one voxel must not vanish. Terms that need a map,
            and the gradient statistics, look at the finest output only.
        weight: voxel weight [batch, *spatial] or with a channel axis; 0 ignores a voxel.
        cells: for component_dice, see there.
        distance: for boundary and distance_regression, see there.
        predicted_distance: output of a second head [batch, *spatial, K], for distance_regression.
        measured: gradient statistics to choose the weights by instead of this batch's own, for a batch that is a part
            of a step: their means over all batches and replicas.

    Raises:
        InputError: Shapes do not fit together, or a term misses its map.
    """
    levels = [tf.convert_to_tensor(output) for output in (outputs if isinstance(outputs, list | tuple) else [outputs])]
    maps = {"cells": cells, "distance": distance, "predicted_distance": predicted_distance}
    shares = level_shares(len(levels))
    finest, statistics = hybrid.measure(y_true, levels[0], weight=weight, maps=maps)
    losses = [loss if term.maps else shares[0] * loss for term, loss in zip(hybrid.terms, finest, strict=True)]
    for share, logits in zip(shares[1:], levels[1:], strict=True):
        labels = coarse_labels(y_true, logits, weight, softmax=hybrid.softmax)
        voxels = hybrid.prepare(labels, logits, None if weight is None else max_pool_to(weight, logits))
        for index, term in enumerate(hybrid.terms):
            if not term.maps:
                losses[index] += share * term(voxels, maps)
    return hybrid.combine(losses, statistics, measured)


def _mean_square(gradients: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """Mean over examples of the squared norm of gradients [batch, ...]; None is a gradient of 0."""
    known = [tf.cast(gradient, tf.float32) for gradient in gradients if gradient is not None]
    squares = [tf.reduce_sum(tf.square(gradient), axis=list(range(1, gradient.shape.rank))) for gradient in known]
    return tf.reduce_mean(tf.add_n(squares)) if squares else tf.constant(0.0)
