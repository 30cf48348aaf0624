"""The sections `inference` and `evaluation` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segment.config_base import NonNegativeFloat, PositiveFloat, PositiveInt, Section


class OperatingPointConfig(Section):
    """How threshold, smallest predicted lesion and peak are chosen on the validation cases after training."""

    rule: Literal["small_lesion_recall", "recall"] = Field(
        default="small_lesion_recall", description="what is made as high as possible"
    )
    max_fp_per_scan: NonNegativeFloat = Field(default=1.0, description="the target: false positives a scan at most")
    peaks: bool = Field(
        default=False,
        description="choose which probability a predicted lesion must reach somewhere, too: more small lesions at few "
        "false positives",
    )


class InferenceConfig(Section):
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    window_batch: PositiveInt = Field(default=4, description="windows predicted at a time")
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.5, description="during training, and where no operating point could be chosen"
    )
    min_lesion_mm3: NonNegativeFloat = Field(default=0.0, description="smaller predicted components are removed")
    operating_point: OperatingPointConfig = OperatingPointConfig()
    flips: bool = Field(default=False, description="judge every mirrored copy of a window too: 8 times the work in 3D")
    uncertainty: Literal["none", "deviation", "entropy"] = Field(
        default="none", description="map of the votes' standard deviation, or of the entropy of their mean in bits"
    )
    max_memory_gb: PositiveFloat | None = Field(
        default=None, description="GiB that the process stays below; scans that need more are refused"
    )


class EvaluationConfig(Section):
    bin_edges_mm3: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (10.0, 50.0, 200.0)
    small_mm3: PositiveFloat = Field(default=50.0, description="a lesion of at most this volume is small")
    min_lesion_mm3: NonNegativeFloat = Field(
        default=0.0, description="smaller label lesions are ignored, and removed from masks"
    )
    match_iou: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    bootstrap_draws: PositiveInt = 2000

    @model_validator(mode="after")
    def _edges_rise(self) -> EvaluationConfig:
        if any(low >= high for low, high in zip(self.bin_edges_mm3, self.bin_edges_mm3[1:], strict=False)):
            raise ValueError(f"bin_edges_mm3: expected rising values, found {self.bin_edges_mm3}")
        if self.small_mm3 not in self.bin_edges_mm3:
            raise ValueError(f"small_mm3: expected one of bin_edges_mm3 {self.bin_edges_mm3}, found {self.small_mm3}")
        return self
