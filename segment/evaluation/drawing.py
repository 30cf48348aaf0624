"""A grey picture as PNG bytes and the outline of a mask as an SVG path: what the report draws with."""

from __future__ import annotations

import struct
import zlib

import numpy as np

# One step along an outline: the x and y it adds, and the SVG commands that say so. Clockwise, so that a step's right
# turn is the next entry.
_STEPS = ((1, 0, "h", 1), (0, 1, "v", 1), (-1, 0, "h", -1), (0, -1, "v", -1))


def encode_png(picture: np.ndarray) -> bytes:
    """An 8-bit PNG without any metadata, so that the same picture is the same bytes.

    Args:
        picture: uint8 [rows, columns] of greys, or [rows, columns, 3] of red, green and blue; at least 1 each.

    Source: PNG specification, third edition, W3C 2025 (IHDR, IDAT, IEND; filter type 0 on every row).
    """
    rows, columns = picture.shape[:2]
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0 if picture.ndim == 2 else 2, 0, 0, 0)
    # Filter 0 packs smallest here: the grey levels are few and repeat, their differences do not.
    lines = np.zeros((rows, picture[0].size + 1), np.uint8)
    lines[:, 1:] = picture.reshape(rows, -1)
    body = zlib.compress(lines.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def outline(values: np.ndarray) -> str:
    """The outline of every label value of a slice, along voxel edges, as SVG path data in voxel units.

    Voxel edges, and no smoothed curve: the outline of a lesion of five voxels shall say that it is five voxels.

    Args:
        values: integer or bool [rows, columns]; 0 is background. Values that touch are outlined each on its own.

    Returns:
        Closed subpaths such as `M2 1h3v1h-3z` (`z` draws the last side), with x along columns and y along rows; `""`
        where nothing is labelled.
    """
    return "".join(_outline_of(values == value) for value in np.unique(values) if value)


def _outline_of(mask: np.ndarray) -> str:
    leaving = _edges(mask)
    paths = []
    while leaving:
        corner = next(iter(leaving))
        parts = [f"M{corner[0]} {corner[1]}"]
        direction, run = leaving[corner][0], 0
        # As many edges arrive at a corner as leave it, so the walk can only end where it began.
        while corner in leaving:
            taken = _take(leaving, corner, direction)
            if taken != direction:
                parts.append(_run(direction, run))
                direction, run = taken, 0
            run += 1
            corner = (corner[0] + _STEPS[taken][0], corner[1] + _STEPS[taken][1])
        paths.append("".join(parts) + "z")
    return "".join(paths)


def _edges(mask: np.ndarray) -> dict[tuple[int, int], list[int]]:
    """Corner (x, y) -> directions of the boundary edges that leave it, with the mask on their right-hand side."""
    padded = np.pad(mask, 1)
    sides = (  # the neighbour across the side, and the corner of the voxel where walking that side begins
        (padded[:-2, 1:-1], (0, 0)),
        (padded[1:-1, 2:], (1, 0)),
        (padded[2:, 1:-1], (1, 1)),
        (padded[1:-1, :-2], (0, 1)),
    )
    leaving: dict[tuple[int, int], list[int]] = {}
    for direction, (neighbour, (right, down)) in enumerate(sides):
        rows, columns = np.nonzero(mask & ~neighbour)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            leaving.setdefault((column + right, row + down), []).append(direction)
    return leaving


def _take(leaving: dict[tuple[int, int], list[int]], corner: tuple[int, int], heading: int) -> int:
    """Removes one edge that leaves the corner: where two voxels touch only there, the one that stays on its voxel."""
    choices = leaving[corner]
    taken = (heading + 1) % 4 if (heading + 1) % 4 in choices else choices[0]
    choices.remove(taken)
    if not choices:
        del leaving[corner]
    return taken


def _run(direction: int, length: int) -> str:
    _, _, command, sign = _STEPS[direction]
    return f"{command}{sign * length}"
