"""The section `train` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segment.config_base import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share


class OptimizerConfig(Section):
    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = Field(default=1e-5, description="not applied to norms and biases")
    momentum: Share = Field(default=0.99, description="Nesterov momentum, for sgd only")
    schedule: Literal["constant", "poly", "cosine"] = "poly"
    warmup_share: Share = Field(default=0.02, description="share of the steps over which the rate rises from 0")
    clip_norm: NonNegativeFloat = Field(default=12.0, description="global norm of the averaged gradient; 0 is off")


class LossScaleConfig(Section):
    """Loss scaling, in force with mixed_float16 only."""

    mode: Literal["dynamic", "fixed"] = "dynamic"
    initial: PositiveFloat = 2.0**15
    growth_steps: PositiveInt = 2000


class TrainConfig(Section):
    steps: PositiveInt = 1000
    batch_size: PositiveInt = Field(default=2, description="patches a step over all replicas")
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"
    strategy: Literal["auto", "single", "mirrored"] = Field(
        default="auto", description="auto: mirrored with 2 or more GPUs"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    validate_every: PositiveInt = Field(default=250, description="steps between whole-volume validations")
    checkpoint_minutes: PositiveFloat = Field(
        default=10.0, description="longest time between checkpoints; each validation writes one too"
    )
    selection: Literal["lesion_f1", "iou", "dice"] = Field(
        default="lesion_f1", description="picks the model that is kept"
    )
    log_every: PositiveInt = Field(default=10, description="steps between rows of metrics.csv")
