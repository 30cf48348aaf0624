"""Every option with its default and its check: YAML files and `key.sub=value` overrides become one `Config`.

This is the only place where defaults stand (`config_loss.py` holds the section `loss`). An unknown key is an error that
names the nearest valid one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from segment.config_base import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share, explain
from segment.config_loss import LossConfig
from segment.errors import InputError
from segment.files import write_text


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


class ModelConfig(Section):
    """The U-Net. Null values are planned from the dataset."""

    dimensions: Literal[2, 3] = 3
    patch_size: tuple[PositiveInt, ...] | None = Field(
        default=None, description="voxels per axis of the network grid, 2 or 3 values as `dimensions`; null is planned"
    )
    filters: tuple[PositiveInt, ...] = Field(
        default=(16, 32, 64, 128), description="channels of each level, finest first"
    )
    strides: tuple[tuple[PositiveInt, ...], ...] | None = Field(
        default=None, description="stride into each level after the first, per axis; null is planned from the spacing"
    )
    residual: bool = False
    deep_supervision: bool = False

    @model_validator(mode="after")
    def _lengths_agree(self) -> ModelConfig:
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


class InferenceConfig(Section):
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    window_batch: PositiveInt = Field(default=4, description="windows predicted at a time")
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    min_lesion_mm3: NonNegativeFloat = Field(default=0.0, description="smaller predicted components are removed")


class EvaluationConfig(Section):
    bin_edges_mm3: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (10.0, 50.0, 200.0)
    small_mm3: PositiveFloat = Field(default=50.0, description="a lesion of at most this volume is small")
    min_lesion_mm3: NonNegativeFloat = Field(default=0.0, description="smaller label lesions are ignored")
    match_iou: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    bootstrap_draws: PositiveInt = 2000

    @model_validator(mode="after")
    def _edges_rise(self) -> EvaluationConfig:
        if any(low >= high for low, high in zip(self.bin_edges_mm3, self.bin_edges_mm3[1:], strict=False)):
            raise ValueError(f"bin_edges_mm3: expected rising values, found {self.bin_edges_mm3}")
        if self.small_mm3 not in self.bin_edges_mm3:
            raise ValueError(f"small_mm3: expected one of bin_edges_mm3 {self.bin_edges_mm3}, found {self.small_mm3}")
        return self


class Config(Section):
    """Everything that a run depends on; saved as config.yaml in the run folder."""

    run_dir: Path = Path("runs/default")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number, as people expect (YAML 1.1 asks for a dot), and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = next((key for key in keys if keys.count(key) > 1), None)
        if repeated is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key.sub=value` overrides in order, and checks everything.

    Raises:
        InputError: The file is missing or is not YAML, a key is unknown (the nearest valid one is named), or a value
            is out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as cause:
        raise InputError(f"cannot read configuration {path}: {getattr(cause, 'strerror', None) or cause}") from cause
    except yaml.YAMLError as cause:
        raise InputError(f"configuration {path} is not valid YAML: {cause}") from cause
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"configuration {path}: expected a mapping of sections, found {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    return config_from(values, source=str(path))


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise InputError(f"override {override!r}: expected key.sub=value, for example train.steps=500")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as cause:
        raise InputError(f"override {override!r}: the value is not valid YAML: {cause}") from cause
    target = values
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise InputError(f"override {override!r}: {part!r} is a single value and has no key below it")
    target[parts[-1]] = value


def config_from(values: dict[str, Any], *, source: str) -> Config:
    """Checks plain values; `source` is named in errors. Raises InputError as `load_config` does."""
    try:
        return Config.model_validate(values)
    except ValidationError as cause:
        raise InputError(f"{source}: {explain(cause, Config)}") from cause


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML that `load_config` reads back to an equal one."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
