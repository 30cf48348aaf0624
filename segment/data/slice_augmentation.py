"""Random changes of the patches of 2D models, all drawn and applied by albumentations.

albumentations' pixel transforms take floats in [0, 1] and clip to it. Patches are z-scores, so each channel is brought
into the middle of that range, with room on both sides for what the transforms add, and back.
"""

from __future__ import annotations

import math
import os
import random
import threading
from collections.abc import Sequence
from typing import Any

# albumentations asks a server for its newest version while it is imported, unless this is set before.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A  # noqa: N812
import cv2
import numpy as np

from segment.config import AugmentationConfig
from segment.data.components import label_components

SAME_SPACING = 0.05  # relative difference up to which voxels count as square
ELASTIC_SIGMA = 8.0  # pixels over which a deformation changes
ELASTIC_ALPHA = 150.0  # strength: displacements of 2 pixels in the mean, up to about 10
HOLES = (1, 3)
HOLE_SHARE = (0.05, 0.15)  # side of a blanked square in parts of the patch's
RANGE = (0.15, 0.7)  # where a channel's darkest and brightest pixel lie while pixel transforms work on it
BRIGHTNESS = 0.02  # of that whole range; patches span about 8 standard deviations
CONTRAST = 0.2
GAMMA_PERCENT = (65.0, 150.0)
NOISE = (0.002, 0.015)
BLUR_PIXELS = (0.4, 0.9)
DOWNSCALE = (0.5, 0.9)
WHOLE_MARK = 4  # pixels of a mark of 3 x 3, shrunk; with fewer its middle lies outside the patch or in a blanked square


class Downscale(A.Downscale):
    """albumentations' own, channel by channel: OpenCV averages pictures of up to four channels only."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """float32 [rows, columns, channels] -> the same shape and dtype."""
        layers = [np.ascontiguousarray(img[..., index]) for index in range(img.shape[-1])]
        return np.stack([super(Downscale, self).apply(layer, **params) for layer in layers], axis=-1)


class SliceAugmenter:
    """Moves and changes slices; safe to call from several threads at once.

    Args:
        config: Which changes, and to what share of the patches.
        spacing_mm: Of the two axes that the network sees.
        size: Pixels of the patch along them.
    """

    def __init__(self, config: AugmentationConfig, spacing_mm: Sequence[float], size: Sequence[int]) -> None:
        self._config = config
        self._size = (int(size[0]), int(size[1]))
        self._square = math.isclose(spacing_mm[0], spacing_mm[1], rel_tol=SAME_SPACING)
        self._local = threading.local()  # transforms carry their random state, so each thread has its own

    @property
    def source_size(self) -> tuple[int, int]:
        """Pixels to be given for a patch: more than its own where it may be turned, shrunk or bent, by even numbers."""
        reach = 1.0
        if self._config.affine_share:
            turn = math.radians(min(self._config.rotation_degrees, 45.0)) if self._square else 0.0
            reach = (math.cos(turn) + math.sin(turn)) * self._config.scale
        extra = 2 * math.ceil(ELASTIC_SIGMA) if self._config.elastic_share else 0
        rows, columns = (size + 2 * math.ceil(size * (reach - 1) / 2) + extra for size in self._size)
        return rows, columns

    def move(
        self, image: np.ndarray, label: np.ndarray, seed: np.random.SeedSequence, *, keep: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rotation, scaling, deformation, flips, turns and blanked squares.

        Args:
            image: float32 [*source_size, channels].
            label: uint8 [*source_size, slices]. Of each lesion of a slice whose middle stays in the patch and is not
                blanked, at least one pixel stays, unless it is as close as three pixels to others.
            seed: Source of all randomness.
            keep: Whether a patch whose middle slice would lose its last lesion is left as it is.

        Returns:
            Image and label of the patch's size, new arrays, its own middle bit for bit where nothing is drawn. Squares
            are blanked in both, for the network is not asked for what it cannot see.
        """
        pipeline = self._pipelines()[0]
        _set_state(pipeline, seed)
        numbers, marks, values = _mark_lesions(label)
        changed = pipeline(image=image, masks=[label, numbers, marks])
        moved, numbers, marks = (mask.reshape(*self._size, -1) for mask in changed["masks"])
        moved = moved.astype(np.uint8)  # a copy; masks that travel together come back in one type
        for layer in range(label.shape[-1]):
            lost = np.setdiff1d(marks[..., layer], numbers[..., layer])
            for number in lost[lost > 0]:
                pixels = np.argwhere(marks[..., layer] == number)
                row, column = np.rint(pixels.mean(axis=0)).astype(int)
                if len(pixels) >= WHOLE_MARK and moved[row, column, layer] == 0:
                    moved[row, column, layer] = values[layer][number]
        middle = label.shape[-1] // 2
        if keep and not moved[..., middle].any():
            own = tuple(
                slice((source - size) // 2, (source + size) // 2)
                for source, size in zip(self.source_size, self._size, strict=True)
            )
            if label[own][..., middle].any():
                return image[own].copy(), label[own].copy()
        return np.array(changed["image"], order="C").reshape(*self._size, -1), moved

    def change(self, image: np.ndarray, seed: np.random.SeedSequence) -> np.ndarray:
        """Gamma, brightness and contrast, blur, lower resolution and noise, the same for all layers.

        Args:
            image: float32 [rows, columns, layers]: the slices of one channel; pixels that are 0 stay 0.
            seed: Source of all randomness.

        Returns:
            The same shape and dtype; the very image where nothing is drawn.
        """
        pipeline = self._pipelines()[1]
        _set_state(pipeline, seed)
        low, high = image.min(), image.max()
        scale = (high - low if high > low else np.float32(1)) / np.float32(RANGE[1] - RANGE[0])
        within = (image - low) / scale + np.float32(RANGE[0])
        changed = pipeline(image=within)["image"].reshape(image.shape)
        if np.array_equal(changed, within):
            return image
        return np.where(image != 0, (changed - np.float32(RANGE[0])) * scale + low, np.float32(0)).astype(np.float32)

    def _pipelines(self) -> tuple[A.Compose, A.Compose]:
        if not hasattr(self._local, "pipelines"):
            self._local.pipelines = _compose(self._moves()), _compose(self._changes())
        return self._local.pipelines

    def _moves(self) -> list[A.BasicTransform]:
        config = self._config
        degrees = config.rotation_degrees if self._square else 0.0  # albumentations turns pixels as if they were square
        return [
            A.Affine(
                rotate=(-degrees, degrees),
                scale=(1 / config.scale, config.scale),
                keep_ratio=True,
                border_mode=cv2.BORDER_CONSTANT,
                p=config.affine_share,
            ),
            A.ElasticTransform(
                alpha=ELASTIC_ALPHA, sigma=ELASTIC_SIGMA, border_mode=cv2.BORDER_CONSTANT, p=config.elastic_share
            ),
            A.CenterCrop(*self._size),
            A.HorizontalFlip(p=0.5 * config.flip),
            A.VerticalFlip(p=0.5 * config.flip),
            A.RandomRotate90(p=float(config.turn and self._square and self._size[0] == self._size[1])),
            A.CoarseDropout(
                num_holes_range=HOLES,
                hole_height_range=HOLE_SHARE,
                hole_width_range=HOLE_SHARE,
                fill=0,
                fill_mask=0,
                p=config.dropout_share,
            ),
        ]

    def _changes(self) -> list[A.BasicTransform]:
        config = self._config
        linear = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
        return [
            A.RandomGamma(gamma_limit=GAMMA_PERCENT, p=config.gamma_share),
            A.RandomBrightnessContrast(
                brightness_limit=BRIGHTNESS, contrast_limit=CONTRAST, p=config.brightness_contrast_share
            ),
            A.GaussianBlur(blur_limit=0, sigma_limit=BLUR_PIXELS, p=config.blur_share),
            Downscale(scale_range=DOWNSCALE, interpolation_pair=linear, p=config.low_resolution_share),
            A.GaussNoise(std_range=NOISE, per_channel=True, p=config.noise_share),
        ]


def _compose(transforms: list[A.BasicTransform]) -> A.Compose:
    return A.Compose([transform for transform in transforms if transform.p > 0])


def _set_state(pipeline: A.Compose, seed: np.random.SeedSequence) -> None:
    """Makes each transform's draws a function of the seed, and its own: Compose would give all the same numbers."""
    for index, transform in enumerate(pipeline.transforms):
        # Not seed.spawn, which counts its calls: the same seed would give something else the second time.
        child = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, index))
        state = child.generate_state(4).tobytes()
        transform.set_random_state(np.random.default_rng(child), random.Random(state))


def _mark_lesions(label: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Numbers the lesions of each slice, and marks the middle of each with a square that no transform skips.

    Returns:
        Numbers and marks, int16 as the label [rows, columns, slices], and for each slice the label value of each
        number.
    """
    numbers, marks = np.zeros(label.shape, np.int16), np.zeros(label.shape, np.int16)
    values = []
    for layer in range(label.shape[-1]):
        found = [0]
        for value in np.unique(label[..., layer])[1 if (label[..., layer] == 0).any() else 0 :]:
            parts, count = label_components(label[..., layer] == value, connectivity=8)
            numbers[..., layer] += np.where(parts > 0, parts + len(found) - 1, 0).astype(np.int16)
            for number in range(1, count + 1):
                pixels = np.argwhere(parts == number)
                row, column = pixels[((pixels - pixels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
                marks[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2, layer] = len(found) + number - 1
            found.extend([int(value)] * count)
        values.append(np.array(found))
    return numbers, marks, values
