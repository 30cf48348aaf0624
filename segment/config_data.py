"""The sections `data` and `augmentation` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, model_validator

from segment.config_base import PositiveFloat, PositiveInt, Section, Share

Entities = dict[str, str | None]  # of BIDS file names; null: the name must not have that entity


class BidsConfig(Section):
    """Which files of a BIDS dataset are used: filters on suffix and entities, such as {suffix: T1w, acq: mprage}."""

    channels: dict[str, Entities] = Field(
        default={}, description="filter of each channel, by its name; empty takes every suffix that all sessions have"
    )
    label: Entities = Field(default={"suffix": "mask"}, description="filter of the lesion mask in derivatives/")


class DataConfig(Section):
    """Where the cases are and how they are brought onto the network's grid."""

    root: Path = Field(default=Path("sample_data"), description="dataset folder, or a CSV manifest")
    layout: Literal["auto", "nnunet", "msd", "bids", "csv"] = "auto"
    bids: BidsConfig = BidsConfig()
    validation_cases: tuple[str, ...] | None = Field(default=None, description="case ids; null draws them by patient")
    validation_share: Share = Field(default=0.2, description="share of patients drawn when validation_cases is null")
    folds: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="divide the patients into this many folds instead of drawing a share"
    )
    fold: NonNegativeInt = Field(default=0, description="which of the folds is the validation side, from 0")
    validation_half: Literal["left", "right"] | None = Field(
        default=None,
        description="with few patients: this half of every one is validated on and the other trained on, instead of "
        "holding patients out",
    )
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = Field(
        default=None, description="voxel spacing of the network grid; null takes the median of the dataset"
    )
    normalization: Literal["zscore", "percentile", "tissue"] = Field(
        default="zscore",
        description="of each channel by itself, within its non-zero mask: zscore (MR); percentile clips at 0.5 and "
        "99.5 first, CT at those of the voxels inside lesions over all training cases; tissue (brain-extracted MR) "
        "sets the main tissue peak to 0 and the darkest tissue to -3, so that lesion load does not move the scale",
    )
    lesion_patch_share: Share = Field(default=0.5, description="share of patches placed around a lesion")
    workers: PositiveInt = Field(default=2, description="threads that prepare cases and draw patches")
    skip_invalid: bool = Field(default=False, description="leave invalid cases out and list them, instead of stopping")

    @model_validator(mode="after")
    def _folds_fit_together(self) -> DataConfig:
        if self.folds is None:
            if self.fold:
                raise ValueError(f"fold: expected data.folds beside it, found fold {self.fold} alone")
        elif self.fold >= self.folds:
            raise ValueError(f"fold: expected 0 to {self.folds - 1} for {self.folds} folds, found {self.fold}")
        elif self.validation_cases is not None:
            raise ValueError("folds: expected validation_cases to be null beside it; give one of them")
        if self.validation_half is not None and (self.validation_cases is not None or self.folds is not None):
            raise ValueError(
                "validation_half: expected validation_cases and folds to be null beside it; give one of them"
            )
        return self


class AugmentationConfig(Section):
    """Random changes of the training patches. Each `_share` is the share of patches that the change is applied to."""

    flip: bool = Field(default=True, description="mirror along each axis, half of the patches each")
    turn: bool = Field(default=False, description="90-degree turns between axes of equal spacing and patch size")
    affine_share: Share = Field(default=0.3, description="rotation and scaling, in one resampling")
    rotation_degrees: Annotated[float, Field(ge=0.0, le=90.0)] = Field(
        default=15.0, description="largest angle about each axis; thick slices are turned within themselves only"
    )
    scale: Annotated[float, Field(ge=1.0, le=2.0)] = Field(
        default=1.2, description="largest factor of growing; its inverse is that of shrinking"
    )
    elastic_share: Share = Field(default=0.1, description="smooth deformations, of 2D models only")
    dropout_share: Share = Field(default=0.1, description="blanked squares, of 2D models only")
    bias_field_share: Share = Field(default=0.2, description="smooth multiplicative fields, of 3D models only")
    channel_mixing_share: Share = Field(
        default=0.0, description="every channel takes on some of the others, as with other MR sequences; 3D models only"
    )
    brightness_contrast_share: Share = 0.3
    gamma_share: Share = 0.3
    noise_share: Share = 0.2
    blur_share: Share = 0.1
    low_resolution_share: Share = Field(default=0.1, description="thicker slices or coarser voxels, interpolated back")
    lesion_removal_share: Share = Field(
        default=0.0,
        description="patches in which some of the lesions above 50 mm3 are painted over, so that a network trained on "
        "many lesions is not lost where there are few",
    )
    copy_paste_share: Share = Field(
        default=0.2, description="1 to 3 further lesions pasted into tissue like their own, small ones more often"
    )
    copy_paste_shapes: Path | None = Field(
        default=None,
        description="folder of lesion masks (NIfTI, no scans needed); half of what is pasted has their shapes",
    )
