"""A picture of training patches as they are and as augmentation makes them, to look at before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from segment.config import AugmentationConfig, Config
from segment.data.components import label_components
from segment.data.patches import PatchSource
from segment.data.planning import Plan
from segment.data.preprocessing import PreparedCase
from segment.errors import InputError
from segment.files import atomic_path

ROWS = 8  # samples
PIXELS = 192  # about, on the longer side of a patch
GAP, HEADER = 4, 16  # pixels
WINDOW_PERCENTILES = (1.0, 99.5)
COLOURS = ((255, 80, 60), (70, 200, 255), (255, 210, 60), (120, 230, 110))  # RGB, class by class


def write_preview(prepared: Sequence[PreparedCase], plan: Plan, config: Config, path: Path) -> None:
    """Writes the first training samples as a PNG: one a row, each channel as it is and augmented, lesions outlined.

    Both show the same place and the same grey window, through the slice (across the last axis) of each that meets most
    lesions. Of several slices seen as channels, the middle one is shown. The outline follows the edges of voxels.

    Args:
        prepared: At least one case.
        plan: Patch and classes.
        config: As for training; the samples are those that training begins with.
        path: The PNG file.

    Raises:
        InputError: The file cannot be written, or the lesion shapes to be pasted cannot be read.
    """
    off = {name: 0 for name in AugmentationConfig.model_fields if name.endswith("_share")}
    plain = config.model_copy(update={"augmentation": AugmentationConfig.model_validate({"flip": False, **off})})
    sources = PatchSource(prepared, plan, plain), PatchSource(prepared, plan, config)
    rows = []
    for index in range(ROWS):
        samples = [_middle_slice(*source.sample(index)[:2], plan) for source in sources]
        windows = [_window(samples[0][0][..., channel]) for channel in range(plan.channels)]
        rows.append([_tile(image, label, c, windows[c]) for c in range(plan.channels) for image, label in samples])
    names = [f"{name}{text}" for name in plan.channel_names for text in ("", " augmented")]
    done, data = cv2.imencode(".png", np.ascontiguousarray(_grid(rows, names)[..., ::-1]))
    if not done:
        raise InputError(f"{path}: the preview could not be encoded as PNG")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _middle_slice(image: np.ndarray, label: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """[rows, columns, channels] and [rows, columns, classes] of a sample, the first axis across and the second up."""
    if plan.slice_axis is not None:
        first = plan.slices // 2 * plan.channels
        return image[..., first : first + plan.channels], label
    lesions: np.ndarray = np.asarray(label).max(axis=-1) > 0
    parts = [label_components(lesions[:, :, index], connectivity=8)[1] for index in range(label.shape[2])]
    index = int(np.argmax(parts)) if lesions.any() else label.shape[2] // 2
    return image[:, :, index], label[:, :, index]


def _window(values: np.ndarray) -> tuple[float, float]:
    inside = values[values != 0]
    low, high = (float(v) for v in np.percentile(inside, WINDOW_PERCENTILES)) if inside.size else (0.0, 1.0)
    return low, max(high, low + 1e-3)


def _tile(image: np.ndarray, label: np.ndarray, channel: int, window: tuple[float, float]) -> np.ndarray:
    """uint8 RGB [rows, columns, 3]: one channel, enlarged by a whole factor, the outlines one pixel wide."""
    low, high = window
    grey = np.clip((image[..., channel] - low) / (high - low), 0, 1)
    factor = max(1, PIXELS // max(grey.shape))

    def upright(plane: np.ndarray) -> np.ndarray:  # x to the right, y up
        return plane.T[::-1].repeat(factor, axis=0).repeat(factor, axis=1)

    tile = np.repeat((upright(grey) * 255).astype(np.uint8)[..., None], 3, axis=-1)
    for number in range(label.shape[-1]):
        mask = upright(label[..., number])
        inner = cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        tile[(mask > 0) & (inner == 0)] = COLOURS[number % len(COLOURS)]
    return tile


def _grid(rows: Sequence[Sequence[np.ndarray]], names: Sequence[str]) -> np.ndarray:
    """The tiles, all of one size, on black with a line of names above."""
    height, width = rows[0][0].shape[:2]
    canvas = np.zeros((HEADER + len(rows) * (height + GAP), len(names) * (width + GAP), 3), np.uint8)
    for column, name in enumerate(names):
        left = column * (width + GAP)
        cv2.putText(
            canvas, name, (left + 2, HEADER - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (230, 230, 230), 1, cv2.LINE_AA
        )
        for row, tiles in enumerate(rows):
            top = HEADER + row * (height + GAP)
            canvas[top : top + height, left : left + width] = tiles[column]
    return canvas
