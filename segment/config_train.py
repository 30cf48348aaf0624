"""The section `train` of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segment.config_base import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share

LENGTHS = ("steps", "epochs", "samples")
DEFAULT_STEPS = 1000


class OptimizerConfig(Section):
    name: Literal["adamw", "sgd", "radam", "lookahead", "novograd", "lamb", "yogi"] = Field(
        default="adamw", description="those after sgd need tensorflow-addons on TensorFlow 2.15"
    )
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = Field(default=1e-5, description="not applied to norms and biases")
    decay: Literal["decoupled", "l2"] = Field(
        default="decoupled",
        description="decoupled: kernels shrink by learning_rate * weight_decay, apart from the gradient; "
        "l2: the loss gets a term, weight_decay / 2 times the sum of the kernels' squares",
    )
    momentum: Share = Field(default=0.99, description="Nesterov momentum, for sgd only")
    schedule: Literal["constant", "poly", "cosine"] = "poly"
    warmup_share: Share = Field(default=0.02, description="share of the steps over which the rate rises from 0")
    average: Literal["none", "swa"] = Field(
        default="none",
        description="swa: the mean of the last quarter's weights is validated and saved; needs tensorflow-addons",
    )
    clip_norm: NonNegativeFloat = Field(default=12.0, description="global norm of the averaged gradient; 0 is off")


class LossScaleConfig(Section):
    """Loss scaling, in force with mixed_float16 only."""

    mode: Literal["dynamic", "fixed"] = "dynamic"
    initial: Annotated[float, Field(ge=1.0)] = 2.0**15
    growth_steps: PositiveInt = 2000


class TrainConfig(Section):
    """The training. Its length is given by one of `steps`, `epochs` and `samples`; 1,000 steps if none is given."""

    steps: PositiveInt | None = Field(default=DEFAULT_STEPS, description="updates of the weights")
    epochs: PositiveFloat | None = Field(
        default=None, description="one is as many patches as fill the volume of all training cases"
    )
    samples: PositiveInt | None = Field(default=None, description="patches")
    batch_size: PositiveInt = Field(default=2, description="patches over all replicas that are computed at once")
    accumulate_steps: PositiveInt = Field(
        default=1, description="batches whose gradients are averaged for one step; needs the memory of one"
    )
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"
    strategy: Literal["auto", "single", "mirrored", "multi_worker"] = Field(
        default="auto",
        description="auto: mirrored with 2 or more GPUs, else single; multi_worker: TF_CONFIG or Slurm say which",
    )
    all_reduce: Literal["auto", "nccl", "hierarchical_copy", "reduce_to_one"] = Field(
        default="auto", description="how gradients are added up over replicas; auto: nccl on GPUs"
    )
    gpus: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="numbers of the GPUs to use; null is all of them, [] the CPU"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="of the running mean of the weights that is validated and saved; 0 is off"
    )
    debug_numerics: bool = Field(
        default=False, description="find the term, layer and case of the first number that is not finite"
    )
    validate_every: PositiveInt = Field(default=250, description="steps between whole-volume validations")
    checkpoint_minutes: PositiveFloat = Field(
        default=10.0, description="longest time between checkpoints; each validation writes one too"
    )
    selection: Literal["small_lesion_recall_at_fp", "iou", "dice", "lesion_f1"] = Field(
        default="small_lesion_recall_at_fp",
        description="picks the model that is kept; the default is the recall of small lesions at the best threshold "
        "within inference.operating_point.max_fp_per_scan",
    )
    patience: PositiveInt | None = Field(
        default=None, description="validations without a better one after which the training stops; null is never"
    )
    log_every: PositiveInt = Field(default=10, description="steps between rows of metrics.csv")

    @model_validator(mode="before")
    @classmethod
    def _has_one_length(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = [name for name in LENGTHS if values.get(name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{given[1]}: expected one of {', '.join(LENGTHS)}, found {' and '.join(given)}; "
                f"set the other to null, for example train.{given[0]}=null"
            )
        if not given:
            # Null, with no other length, is the default too.
            return {key: value for key, value in values.items() if key != "steps"}
        return values if given == ["steps"] else {**values, "steps": None}

    @model_validator(mode="after")
    def _has_one_average(self) -> TrainConfig:
        if self.ema_decay and self.optimizer.average != "none":
            raise ValueError(
                f"ema_decay: expected 0 with optimizer.average={self.optimizer.average}, found {self.ema_decay}; "
                "a model has one average of its weights"
            )
        return self

    @model_validator(mode="after")
    def _gpus_differ(self) -> TrainConfig:
        if self.gpus is not None and len(set(self.gpus)) < len(self.gpus):
            raise ValueError(f"gpus: expected different GPUs, found {list(self.gpus)}")
        return self

    @property
    def patches_per_step(self) -> int:
        """Patches that one update of the weights sees, over all replicas and accumulated batches."""
        return self.batch_size * self.accumulate_steps
