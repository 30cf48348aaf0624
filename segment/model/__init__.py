"""The network: `build_unet` makes it and `run_network` calls it. Importing it registers a saved model's layers."""

from segment.model.layers import InstanceNorm, LeakyReLU, PixelShuffle
from segment.model.unet import build_unet, run_network

__all__ = ["InstanceNorm", "LeakyReLU", "PixelShuffle", "build_unet", "run_network"]
