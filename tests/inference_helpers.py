"""Run folders, and predictors whose network is a threshold, for the tests of inference. Not a test module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from builders import write_nifti
from data_helpers import make_test_plan

from segment.config import Config, config_from, save_config
from segment.data.label_files import find_labels
from segment.data.planning import Plan
from segment.files import write_json
from segment.inference.point_in_use import PointInUse
from segment.inference.predictor import Member, Predictor
from segment.inference.stages import Job
from segment.model import build_unet

LESION, TISSUE = 10.0, 1.0


def quick_config(**inference: object) -> Config:
    """The defaults with a few resampling draws."""
    return config_from({"inference": inference, "evaluation": {"bootstrap_draws": 20}}, source="test")


def write_run(
    folder: Path, plan: Plan, *, seed: int = 0, config: Config | None = None, policy: str = "float32"
) -> tf.keras.Model:
    """Writes plan.json, config.yaml and model.keras of an untrained network, which is returned."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    model = build_unet(plan, seed=seed)
    tf.keras.mixed_precision.set_global_policy(before)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", plan.to_json())
    save_config(config or quick_config(), folder / "config.yaml")
    model.save(folder / "model.keras")
    return model


def bright_is_lesion(windows: np.ndarray) -> np.ndarray:
    """A network that finds what is brighter than a standard deviation above the mean of the scan."""
    return np.where(windows[..., :1] > 1.0, 20.0, -20.0)


def make_member(plan: Plan | None = None, forward=bright_is_lesion, **inference: object) -> Member:
    return Member(Path("run"), plan or make_test_plan(), quick_config(**inference), forward, 2, "0" * 64)


def threshold_predictor(plan: Plan | None = None, **inference: object) -> Predictor:
    return Predictor([make_member(plan, **inference)])


def lesion_image(shape: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A scan of tissue with some bright voxels at random places, and the mask of these."""
    mask = np.random.default_rng(seed).random(shape) < 0.03
    mask[0, 1, 2] = True  # never empty, and not the same after a flip
    return np.where(mask, LESION, TISSUE).astype(np.float32), mask.astype(np.uint8)


def write_scan(folder: Path, case_id: str, affine: np.ndarray, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Writes images/CASE_0000.nii.gz and labels/CASE.nii.gz and returns the mask of the bright voxels."""
    image, mask = lesion_image(shape, seed)
    write_nifti(folder / "images" / f"{case_id}_0000.nii.gz", image, affine)
    write_nifti(folder / "labels" / f"{case_id}.nii.gz", mask, affine)
    return mask


def make_job(output: Path, predictor: Predictor | None = None, labels: Path | None = None, **changes: Any) -> Job:
    """Predicting into a new folder at threshold 0.5, unless changed."""
    output.mkdir()
    given = {name: changes.pop(name, least) for name, least in (("min_lesion_mm3", 0.0), ("min_peak", 0.0))}
    point = PointInUse(changes.pop("threshold", 0.5), source="test", **given)
    values: dict[str, Any] = {"probabilities": False, "settings": "0", "resume": False, "shard": None, **changes}
    experts = None if labels is None else find_labels(labels)
    return Job(predictor or threshold_predictor(), output, experts, point=point, **values)
