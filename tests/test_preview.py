"""The picture of training patches: as it is beside augmented, with every lesion outlined."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from augmentation_helpers import OFF, plan_of, stored

from segment.config import config_from
from segment.data.preview import GAP, HEADER, ROWS, write_preview
from segment.errors import InputError

RED = np.array((60, 80, 255), np.uint8)  # as OpenCV reads it


@pytest.mark.parametrize(("size", "slices"), [((16, 12, 8), 1), ((16, 12, 1), 3)])
def test_rows_of_samples_and_columns_of_channels(tmp_path: Path, size: tuple[int, int, int], slices: int) -> None:
    image = np.random.default_rng(0).normal(0, 1, (30, 30, 30, 2))
    label = np.zeros((30, 30, 30), np.uint8)
    label[12:16, 10:13, 14:17] = 1
    case = stored(tmp_path / "a", image, label)
    config = config_from(
        {"data": {"lesion_patch_share": 1.0}, "augmentation": {**OFF, "noise_share": 1}}, source="test"
    )
    path = tmp_path / "preview.png"
    write_preview([case], plan_of(size, channels=2, slices=slices), config, path)
    picture = cv2.imread(str(path))
    height, width = 12 * 12 + GAP, 16 * 12 + GAP  # 192 pixels on the longer side: 12 for each voxel
    assert picture.shape == (HEADER + ROWS * height, 4 * width, 3)
    tiles = [
        [picture[HEADER + row * height :, column * width :][: height - GAP, : width - GAP] for column in range(4)]
        for row in range(ROWS)
    ]
    for row in tiles:
        outlined = [(tile == RED).all(axis=-1) for tile in row]
        assert outlined[0].any()
        assert all(np.array_equal(outlined[0], other) for other in outlined[1:])  # noise moves nothing
        assert not np.array_equal(row[0], row[1])
        assert not np.array_equal(row[0], row[2])


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    case = stored(tmp_path / "a", np.ones((8, 8, 8)), np.zeros((8, 8, 8)))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_preview([case], plan_of((8, 8, 8)), config_from({}, source="test"), tmp_path / "file" / "preview.png")
