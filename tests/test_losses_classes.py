"""The Keras classes: they compute what the functions compute, and survive saving and loading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from loss_oracle import OPTIONS, SOFTMAX_TERMS, TERMS, expected, make_example

from segment import losses
from segment.config_loss import TERMS as SECTIONS
from segment.errors import InputError

EXAMPLE = make_example((5, 4), batch=3, channels=2)
CLASS_NAMES = {term: "".join(word.capitalize() for word in term.split("_")) for term in SECTIONS}


def class_of(term: str) -> type[tf.keras.losses.Loss]:
    return getattr(losses, CLASS_NAMES[term])


def targets(term: str) -> np.ndarray:
    if term in SOFTMAX_TERMS:
        return EXAMPLE.classes
    if term == "boundary":
        return EXAMPLE.distance
    if term == "component_dice":
        return np.concatenate([EXAMPLE.labels, EXAMPLE.cells], axis=-1)
    return EXAMPLE.labels


def logits(term: str) -> np.ndarray:
    return EXAMPLE.class_logits if term in SOFTMAX_TERMS else EXAMPLE.logits


@pytest.mark.parametrize("term", TERMS)
class TestEachClass:
    def test_reduces_the_values_of_the_function(self, term: str) -> None:
        wanted = expected(term, EXAMPLE, **OPTIONS[term])
        for reduction, value in (("none", wanted), ("sum", wanted.sum()), ("sum_over_batch_size", wanted.mean())):
            loss = class_of(term)(reduction=reduction, **OPTIONS[term])
            np.testing.assert_allclose(loss(targets(term), logits(term)), value, rtol=1e-6)
        sample_weight = np.array([1.0, 0.0, 2.0], np.float32)
        loss = class_of(term)(reduction="sum", **OPTIONS[term])
        weighted = loss(targets(term), logits(term), sample_weight=sample_weight)
        np.testing.assert_allclose(weighted, (wanted * sample_weight).sum(), rtol=1e-6)

    def test_comes_back_from_its_config(self, term: str) -> None:
        loss = class_of(term)(reduction="sum", name="mine", **OPTIONS[term])
        copy = tf.keras.losses.deserialize(json.loads(json.dumps(tf.keras.losses.serialize(loss))))
        assert type(copy) is type(loss)
        assert copy.get_config() == loss.get_config()
        assert copy.name == "mine"
        np.testing.assert_array_equal(copy(targets(term), logits(term)), loss(targets(term), logits(term)))

    def test_defaults_are_those_of_the_configuration(self, term: str) -> None:
        section = SECTIONS[term].model_validate({"name": term}).model_dump(exclude={"name", "weight"})
        config = class_of(term)().get_config()
        assert {name: config[name] for name in section} == section
        assert config["name"] == term


def test_distance_regression_takes_the_map_and_the_head() -> None:
    loss = losses.DistanceRegression(error="mean_absolute_error")
    value = np.abs(EXAMPLE.distance - EXAMPLE.logits).mean()
    np.testing.assert_allclose(loss(EXAMPLE.distance, EXAMPLE.logits), value, rtol=1e-6)


def test_bad_options_and_targets_are_refused() -> None:
    with pytest.raises(InputError, match=r"focal: gamma: .* found -1"):
        losses.Focal(gamma=-1.0)
    with pytest.raises(InputError, match=r"twice the channels of \(3, 5, 4, 2\), found \(3, 5, 4, 2\)"):
        losses.ComponentDice()(EXAMPLE.labels, EXAMPLE.logits)


def test_models_load_in_a_new_process_without_custom_objects(tmp_path: Path) -> None:
    wanted = {}
    for term in SECTIONS:
        inputs = tf.keras.Input((5, 4, 1))
        channels = 3 if term in SOFTMAX_TERMS else 2
        model = tf.keras.Model(inputs, tf.keras.layers.Conv2D(channels, 1)(inputs))
        loss = class_of(term)(reduction="sum", **OPTIONS.get(term, {}))
        model.compile(optimizer="sgd", loss=loss)
        model.save(tmp_path / f"{term}.keras")
        wanted[term] = [CLASS_NAMES[term], json.loads(json.dumps(loss.get_config()))]
    code = (
        "import json, sys, pathlib, tensorflow as tf, segment.losses\n"
        "load = lambda path: tf.keras.models.load_model(path).loss\n"
        "found = {path.stem: load(path) for path in pathlib.Path(sys.argv[1]).glob('*.keras')}\n"
        "print(json.dumps({name: [type(loss).__name__, loss.get_config()] for name, loss in found.items()}))\n"
    )
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


def test_a_keras_model_trains_with_a_class() -> None:
    model = tf.keras.Sequential([tf.keras.Input((5, 4, 2)), tf.keras.layers.Conv2D(2, 1)])
    model.compile(optimizer=tf.keras.optimizers.SGD(0.1), loss=losses.Dice())
    history = model.fit(EXAMPLE.labels.astype(np.float32), EXAMPLE.labels, epochs=3, batch_size=3, verbose=0).history
    assert history["loss"][2] < history["loss"][0]
