"""The section `model` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from segment.config_base import PositiveInt, Section


class ModelConfig(Section):
    """The U-Net. Null values are planned from the dataset."""

    dimensions: Literal[2, 3] = 3
    patch_size: tuple[PositiveInt, ...] | None = Field(
        default=None, description="voxels per axis of the network grid, 2 or 3 values as `dimensions`; null is planned"
    )
    slices: PositiveInt = Field(
        default=1, description="of 2D models: slices seen as channels, an odd number; 3 is one neighbour on each side"
    )
    filters: tuple[PositiveInt, ...] = Field(
        default=(16, 32, 64, 128), description="channels of each level, finest first"
    )
    strides: tuple[tuple[PositiveInt, ...], ...] | None = Field(
        default=None, description="stride into each level after the first, per axis; null is planned from the spacing"
    )
    norm: Literal["instance", "none"] = Field(
        default="instance",
        description="instance trains faster; none makes what a lesion looks like independent of how many others are in "
        "its patch, for lesion loads unlike those trained on",
    )
    residual: bool = False
    deep_supervision: bool = False

    @model_validator(mode="after")
    def _lengths_agree(self) -> ModelConfig:
        if self.slices % 2 == 0 or (self.dimensions == 3 and self.slices != 1):
            raise ValueError(f"slices: expected an odd number, and 1 with dimensions 3, found {self.slices}")
        if len(self.filters) < 2:
            raise ValueError(f"filters: expected at least 2 levels, found {len(self.filters)}")
        if self.patch_size is not None and len(self.patch_size) != self.dimensions:
            raise ValueError(f"patch_size: expected {self.dimensions} values, found {len(self.patch_size)}")
        if self.strides is not None:
            expected = len(self.filters) - 1
            if len(self.strides) != expected:
                raise ValueError(
                    f"strides: expected {expected} entries, one a level after the first, found {len(self.strides)}"
                )
            if any(len(stride) != self.dimensions for stride in self.strides):
                raise ValueError(f"strides: expected {self.dimensions} values in each entry, found {self.strides}")
        return self
