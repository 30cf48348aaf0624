"""The network: `build_unet` makes it and `run_network` calls it. Importing it registers a saved model's layers."""

from segment.model.layers import ChannelScale, InstanceNorm, LeakyReLU
from segment.model.unet import build_unet, run_network
from segment.model.upsampling import UpsampleJoin

__all__ = ["ChannelScale", "InstanceNorm", "LeakyReLU", "UpsampleJoin", "build_unet", "run_network"]
