"""The sections `data` and `augmentation` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from segment.config_base import PositiveFloat, PositiveInt, Section, Share


class DataConfig(Section):
    """Where the cases are and how they are brought onto the network's grid."""

    root: Path = Field(default=Path("sample_data"), description="dataset folder, or a CSV manifest")
    layout: Literal["auto", "nnunet", "csv"] = "auto"
    validation_cases: tuple[str, ...] | None = Field(default=None, description="case ids; null draws them by patient")
    validation_share: Share = Field(default=0.2, description="share of patients drawn when validation_cases is null")
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        default=None, description="voxel spacing of the network grid; null takes the median of the dataset"
    )
    normalization: Literal["zscore", "percentile"] = Field(
        default="zscore",
        description="zscore within the non-zero mask (MR), percentile clips at 0.5 and 99.5 first (CT)",
    )
    lesion_patch_share: Share = Field(default=0.5, description="share of patches placed around a lesion")
    workers: PositiveInt = Field(default=2, description="threads that prepare cases and draw patches")
    skip_invalid: bool = Field(default=False, description="leave invalid cases out and list them, instead of stopping")


class AugmentationConfig(Section):
    """Random changes of the training patches. Each `_share` is the share of patches that the change is applied to."""

    flip: bool = Field(default=True, description="mirror along each axis, half of the patches each")
    brightness_contrast_share: Share = 0.3
    gamma_share: Share = 0.3
    noise_share: Share = 0.2
    blur_share: Share = 0.1
