"""Every option with its default and its check: YAML files and `key.sub=value` overrides become one `Config`.

The `config_*.py` files beside this one hold a section each; defaults stand nowhere else. An unknown key is an error
that names the nearest valid one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from segment.config_base import Section, explain
from segment.config_data import AugmentationConfig, DataConfig
from segment.config_inference import EvaluationConfig, InferenceConfig
from segment.config_loss import LossConfig
from segment.config_model import ModelConfig
from segment.config_train import LossScaleConfig, OptimizerConfig, TrainConfig
from segment.errors import InputError
from segment.files import write_text

__all__ = [
    "AugmentationConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "InferenceConfig",
    "LossConfig",
    "LossScaleConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "config_from",
    "load_config",
    "save_config",
]


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


# Dates stay text: nothing here is one, and a folder may be named 2024-02-30.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
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
