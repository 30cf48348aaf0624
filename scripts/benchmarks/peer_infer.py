"""One scan of `infer.py` in PyTorch, by MONAI or nnU-Net. Prints JSON; runs in the peers' environment."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from memory import kib

Find = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", choices=("monai", "nnunet"), required=True)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--overlap", type=float, required=True)
    parser.add_argument("--shape", type=int, nargs=3, required=True)
    parser.add_argument("--channels", type=int, required=True)
    parser.add_argument("--filters", type=int, nargs="+", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--scan", type=Path, help="read this file and write the mask beside it, once")
    parser.add_argument("--float32", action="store_true", help="the network in float32")
    options = parser.parse_args()
    import monai
    import torch

    versions = f"torch {torch.__version__}, MONAI {monai.__version__}"
    if options.tool == "nnunet":
        # Before the first figure: what its imports hold is no cost of the prediction.
        importlib.import_module("nnunetv2.inference.predict_from_raw_data")

        versions = f"torch {torch.__version__}, nnU-Net {importlib.metadata.version('nnunetv2')}"
    before = resident_mib()
    with torch.inference_mode():
        find = (monai_window if options.tool == "monai" else nnunet_window)(options)
        seconds = whole_file(find, options) if options.scan else repeated(find, options)
    peak = kib("VmHWM") / 1024
    print(json.dumps({"seconds": seconds, "imports_mib": before, "peak_mib": peak, "versions": versions}))


def repeated(find: Find, options: argparse.Namespace) -> list[float]:
    """Wall seconds from the normalised image in memory to its mask, after a first small one that is not counted."""
    random = np.random.default_rng(0)
    find(random.standard_normal((options.channels, *(options.window,) * 3), np.float32))
    image = random.standard_normal((options.channels, *options.shape), np.float32)
    taken = []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        find(image)
        taken.append(time.perf_counter() - begun)
    return taken


def whole_file(find: Find, options: argparse.Namespace) -> list[float]:
    """Reads one file with MONAI's transforms, predicts it and writes its mask with nibabel."""
    import nibabel as nib
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, NormalizeIntensity

    begun = time.perf_counter()
    load = Compose([LoadImage(image_only=True), EnsureChannelFirst(), NormalizeIntensity(nonzero=True)])
    image = load(options.scan)
    affine = np.asarray(image.affine)
    mask = find(image)
    nib.save(nib.Nifti1Image(mask[0], affine), options.scan.with_name("peer_mask.nii.gz"))
    return [time.perf_counter() - begun]


def unet(options: argparse.Namespace) -> Any:
    """MONAI's DynUNet of our network's shape, with random weights."""
    import torch
    from monai.networks.nets import DynUNet

    torch.manual_seed(0)
    levels = len(options.filters)
    network = DynUNet(
        3,
        options.channels,
        1,
        [3] * levels,
        [1] + [2] * (levels - 1),
        [2] * (levels - 1),
        filters=options.filters,
        norm_name=("instance", {"affine": True}),
        act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    )
    return network.to(memory_format=torch.channels_last_3d).eval()


def quick(network: Any, options: argparse.Namespace) -> Callable[[Any], Any]:
    """The network as both tools call it: channels last and, unless float32 is asked for, bf16 autocast."""
    import torch

    def forward(windows: Any) -> Any:
        windows = windows.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not options.float32):
            return network(windows).float()

    return forward


def monai_window(options: argparse.Namespace) -> Find:
    import torch
    from monai.inferers import sliding_window_inference

    forward = quick(unet(options), options)

    def find(image: np.ndarray) -> np.ndarray:
        logits = sliding_window_inference(
            torch.as_tensor(image)[None],
            (options.window,) * 3,
            options.batch,
            forward,
            overlap=options.overlap,
            mode="gaussian",
        )
        return (torch.sigmoid(logits[0]) >= 0.5).to(torch.uint8).numpy()

    return find


def nnunet_window(options: argparse.Namespace) -> Find:
    """nnU-Net's own predictor without mirroring, on our network's shape; it takes one window at a time."""
    import torch

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, "/nonexistent")
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = unet(options)
            self.forward = quick(self.inner, options)

    predictor = nnUNetPredictor(
        tile_step_size=1 - options.overlap,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    predictor.network = Network()
    predictor.configuration_manager = SimpleNamespace(patch_size=[options.window] * 3)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=1)
    predictor.allowed_mirroring_axes = None

    def find(image: np.ndarray) -> np.ndarray:
        logits = predictor.predict_sliding_window_return_logits(torch.as_tensor(image))
        return (torch.sigmoid(logits.float()) >= 0.5).to(torch.uint8).numpy()

    return find


def resident_mib() -> float:
    return kib("VmRSS") / 1024


if __name__ == "__main__":
    main()
