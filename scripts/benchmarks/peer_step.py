"""The step of `step.py` in PyTorch: MONAI's DynUNet of the same shape. Prints JSON; runs in the peers' environment."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import monai
import torch
from monai.networks.nets import DynUNet


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patch", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--filters", type=int, nargs="+", required=True)
    parser.add_argument("--float32", action="store_true", help="the network in float32")
    options = parser.parse_args()
    torch.manual_seed(0)
    levels = len(options.filters)
    network = DynUNet(
        3,
        2,
        1,
        [3] * levels,
        [1] + [2] * (levels - 1),
        [2] * (levels - 1),
        filters=options.filters,
        norm_name=("instance", {"affine": True}),
        act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    ).to(memory_format=torch.channels_last_3d)
    shape = (options.batch, 2, *(options.patch,) * 3)
    images = torch.randn(shape).to(memory_format=torch.channels_last_3d)
    labels = (torch.rand((options.batch, 1, *shape[2:])) < 0.01).float()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not options.float32):
            logits = network(images)
        torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()

    def forward() -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=not options.float32):
            network(images)

    result = {
        "step": _seconds(step, options.repeats),
        "versions": f"torch {torch.__version__}, MONAI {monai.__version__}",
    }
    network.eval()
    print(json.dumps(result | {"forward": _seconds(forward, options.repeats)}))


def _seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    call(), call()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return taken


if __name__ == "__main__":
    main()
