"""An independent float64 NumPy oracle of the loss terms, and the examples that the loss tests share.

The oracle computes probabilities first and takes logarithms of them, lesion by lesion in Python loops: slow, plain,
and nothing like the library's vectorised logit arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import ndimage

from segment import losses

SIGMOID_TERMS = ("binary_crossentropy", "dice", "tversky", "focal", "focal_tversky", "component_dice", "boundary")
SOFTMAX_TERMS = ("categorical_crossentropy", "categorical_focal", "categorical_dice")
TERMS = (*SIGMOID_TERMS, *SOFTMAX_TERMS)
# Options other than the defaults, so that each one matters.
OPTIONS: dict[str, dict[str, Any]] = {
    "binary_crossentropy": {"positive_weight": 3.0, "label_smoothing": 0.1, "temperature": 1.5},
    "dice": {"smooth": 0.5},
    "tversky": {"fp_weight": 0.2, "fn_weight": 0.9, "smooth": 0.25},
    "focal": {"gamma": 1.5, "positive_weight": 0.6},
    "focal_tversky": {"fp_weight": 0.4, "fn_weight": 0.8, "gamma": 1.3, "smooth": 2.0},
    "component_dice": {"smooth": 0.1},
    "boundary": {},
    "categorical_crossentropy": {"temperature": 2.0},
    "categorical_focal": {"gamma": 1.5},
    "categorical_dice": {"smooth": 0.5, "background": True},
}


@dataclass(frozen=True, eq=False)
class Example:
    """A batch with everything that any term needs; all arrays [batch, *spatial, channels]."""

    labels: np.ndarray  # uint8, one channel per foreground class
    logits: np.ndarray  # float32
    cells: np.ndarray  # int32
    distance: np.ndarray  # float32
    classes: np.ndarray  # int32 [batch, *spatial, 1], background 0
    class_logits: np.ndarray  # float32, one channel more

    def maps(self, term: str) -> dict[str, np.ndarray]:
        names = {"component_dice": ("cells",), "boundary": ("distance",)}.get(term, ())
        return {name: getattr(self, name) for name in names}


def make_example(shape: tuple[int, ...], *, batch: int, channels: int, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    labels = (rng.random((batch, *shape, channels)) < 0.12).astype(np.uint8)
    labels[(slice(None), *(0,) * len(shape))] = 1
    cells, distance = np.zeros(labels.shape, np.int32), np.zeros(labels.shape, np.float32)
    for index in range(batch):
        for channel in range(channels):
            cells[index, ..., channel] = nearest_lesion(labels[index, ..., channel])
            inside = labels[index, ..., channel] > 0
            distance[index, ..., channel] = ndimage.distance_transform_edt(~inside)
            distance[index, ..., channel] -= ndimage.distance_transform_edt(inside)
    return Example(
        labels=labels,
        logits=rng.normal(0.0, 2.0, labels.shape).astype(np.float32),
        cells=cells,
        distance=distance,
        classes=rng.integers(0, channels + 1, (batch, *shape, 1)).astype(np.int32),
        class_logits=rng.normal(0.0, 2.0, (batch, *shape, channels + 1)).astype(np.float32),
    )


def nearest_lesion(mask: np.ndarray) -> np.ndarray:
    """The number of the nearest lesion for each voxel, by brute force over all lesion voxels."""
    numbers, count = ndimage.label(mask, np.ones([3] * mask.ndim))
    if count == 0:
        return np.zeros(mask.shape, np.int32)
    points = np.argwhere(mask)
    voxels = np.argwhere(np.ones(mask.shape, bool))
    square = ((voxels[:, None] - points[None]) ** 2).sum(-1)
    return numbers[tuple(points[square.argmin(1)].T)].reshape(mask.shape).astype(np.int32)


def loss_of(term: str, example: Example, *, logits: Any = None, labels: Any = None, **options: Any) -> tf.Tensor:
    """The library's term on an example, with its logits or labels replaced where given."""
    softmax = term in SOFTMAX_TERMS
    if logits is None:
        logits = example.class_logits if softmax else example.logits
    if labels is None:
        labels = example.classes if softmax else example.labels
    return getattr(losses, term)(labels, logits, **example.maps(term), **options)


def expected(term: str, example: Example, *, weight: np.ndarray | None = None, **options: Any) -> np.ndarray:
    """What the term should be, float64 [batch]. `weight` is [batch, *spatial, 1]."""
    softmax = term in SOFTMAX_TERMS
    logits = (example.class_logits if softmax else example.logits).astype(np.float64) / options.pop("temperature", 1.0)
    if softmax:
        exponentials = np.exp(logits)
        p = exponentials / exponentials.sum(-1, keepdims=True)
        y = np.eye(logits.shape[-1])[example.classes[..., 0]]
    else:
        p, y = 1.0 / (1.0 + np.exp(-logits)), example.labels.astype(np.float64)
    w = np.broadcast_to(np.ones(1) if weight is None else weight, p.shape).astype(np.float64)
    formula = _FORMULAS[term]
    return np.array([formula(y[i], p[i], w[i], example, i, **options) for i in range(len(p))])


def _mean(values: np.ndarray, w: np.ndarray) -> float:
    return float((values * w).sum() / w.sum())


def _binary_crossentropy(y, p, w, *_, positive_weight=1.0, label_smoothing=0.0):
    y = y * (1 - label_smoothing) + label_smoothing / 2
    return _mean(-positive_weight * y * np.log(p) - (1 - y) * np.log(1 - p), w)


def _focal(y, p, w, *_, gamma=2.0, positive_weight=0.75):
    p_t = np.where(y == 1, p, 1 - p)
    alpha = np.where(y == 1, positive_weight, 1 - positive_weight)
    return _mean(-alpha * (1 - p_t) ** gamma * np.log(p_t), w)


def _counts(y, p, w):
    axes = tuple(range(y.ndim - 1))
    return (w * y * p).sum(axes), (w * (1 - y) * p).sum(axes), (w * y * (1 - p)).sum(axes)


def _dice(y, p, w, *_, smooth=1.0):
    tp, fp, fn = _counts(y, p, w)
    return float(np.mean(1 - (2 * tp + smooth) / (2 * tp + fp + fn + smooth)))


def _focal_tversky(y, p, w, *_, fp_weight=0.3, fn_weight=0.7, gamma=1.0, smooth=1.0):
    tp, fp, fn = _counts(y, p, w)
    return float(np.mean((1 - (tp + smooth) / (tp + fp_weight * fp + fn_weight * fn + smooth)) ** gamma))


def _component_dice(y, p, w, example, index, *, smooth=1e-5):
    by_channel = []
    for channel in range(y.shape[-1]):
        cells = example.cells[index, ..., channel]
        by_lesion = []
        for number in np.unique(cells):
            here = np.where(cells == number, w[..., channel], 0.0)[..., None]
            one = (slice(None),) * cells.ndim + (slice(channel, channel + 1),)
            if here.sum() == 0:
                continue
            overlap = _dice(y[one], p[one], here, smooth=smooth) if (y[one] * here).any() else 0.0
            by_lesion.append(overlap + _binary_crossentropy(y[one], p[one], here))
        by_channel.append(np.mean(by_lesion) if by_lesion else 0.0)
    return float(np.mean(by_channel))


def _boundary(y, p, w, example, index):
    return _mean(p * example.distance[index], w)


def _categorical_crossentropy(y, p, w, *_, class_weights=None):
    weights = np.ones(p.shape[-1]) if class_weights is None else np.array(class_weights)
    return _mean(-(y * weights * np.log(p)).sum(-1), w[..., 0])


def _categorical_focal(y, p, w, *_, gamma=2.0, class_weights=None):
    weights = np.ones(p.shape[-1]) if class_weights is None else np.array(class_weights)
    return _mean(-(y * weights * (1 - p) ** gamma * np.log(p)).sum(-1), w[..., 0])


def _categorical_dice(y, p, w, *_, smooth=1.0, background=False):
    first = 0 if background else 1
    return _dice(y[..., first:], p[..., first:], w[..., first:], smooth=smooth)


_FORMULAS = {
    "binary_crossentropy": _binary_crossentropy,
    "dice": _dice,
    "tversky": _focal_tversky,
    "focal": _focal,
    "focal_tversky": _focal_tversky,
    "component_dice": _component_dice,
    "boundary": _boundary,
    "categorical_crossentropy": _categorical_crossentropy,
    "categorical_focal": _categorical_focal,
    "categorical_dice": _categorical_dice,
}
