"""The augmentation of `data.py` by MONAI, on the same patches. Prints JSON; runs in the peers' environment."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import monai
import numpy as np
import torch
from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandFlipd, RandGaussianNoised

KEYS = ("image", "label")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--patches", type=Path, required=True, help=".npz of image [n, c, x, y, z], label [n, 1, x, y, z]"
    )
    parser.add_argument("--degrees", type=float, required=True)
    parser.add_argument("--scale", type=float, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    angle, growth = np.radians(options.degrees), options.scale - 1
    augment = Compose(
        [
            RandAffined(
                KEYS,
                prob=1.0,
                rotate_range=(angle,) * 3,
                scale_range=(growth,) * 3,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandFlipd(KEYS, prob=1.0, spatial_axis=(0, 1, 2)),
            RandGaussianNoised(("image",), prob=1.0, std=0.1),
            RandAdjustContrastd(("image",), prob=1.0, gamma=(0.67, 1.5)),
        ]
    ).set_random_state(0)
    stored = np.load(options.patches)
    samples = [
        {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}
        for image, label in zip(stored["image"], stored["label"], strict=True)
    ]
    for sample in samples[:3]:
        augment(dict(sample))
    begun = time.process_time()
    for sample in samples:
        augment(dict(sample))
    seconds = (time.process_time() - begun) / len(samples)
    print(json.dumps({"cpu_s": seconds, "versions": f"torch {torch.__version__}, MONAI {monai.__version__}"}))


if __name__ == "__main__":
    main()
