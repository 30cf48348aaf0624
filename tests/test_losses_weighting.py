"""The weightings: values by hand, what each promises, and weights that stay finite whatever a step brings."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from loss_oracle import make_example

from segment import losses
from segment.config_loss import LossConfig

NAMES = ("binary_crossentropy", "dice", "focal")
SCHEDULE = [
    {"share": 0.2, "weights": {"dice": 0.0, "focal": 1.0}},
    {"share": 0.6, "weights": {"dice": 2.0, "focal": 0.5}},
    {"share": 1.0, "weights": {"dice": 2.0, "focal": 0.0}},
]
WEIGHTINGS = {
    "fixed": {},
    "schedule": {"points": SCHEDULE},
    "uncertainty": {},
    "gradient_norm": {},
    "dynamic_average": {"period_steps": 1},
    "recall_feedback": {},
}
EXAMPLE = make_example((6, 5), batch=2, channels=1)


def build(weighting: str, *, weights: tuple[float, ...] = (1.0, 1.0, 1.0), **options: Any) -> losses.Hybrid:
    terms = [{"name": name, "weight": weight} for name, weight in zip(NAMES, weights, strict=True)]
    options = WEIGHTINGS[weighting] | options
    return losses.build_hybrid(LossConfig.model_validate({"terms": terms, "weighting": {"name": weighting, **options}}))


def weights_of(hybrid: losses.Hybrid) -> list[float]:
    return [float(hybrid.weights()[f"weight/{term.name}"]) for term in hybrid.terms]


def step(hybrid: losses.Hybrid, *, share: float = 0.5, **replaced: float) -> losses.HybridOutput:
    """One step of the weighting, with statistics of the example; those named by `replaced` are as given."""
    output = hybrid(EXAMPLE.labels, EXAMPLE.logits)
    changed = {f"loss/{name}": tf.constant(value) for name, value in replaced.items()}
    hybrid.update(output.statistics | changed, share)
    return output


def summary(recall: float | None, false_positives: float) -> dict[str, Any]:
    return {"micro": {"small_lesion_recall": recall, "fp_per_scan": false_positives}}


class TestFixed:
    def test_total_is_the_weighted_sum_and_everything_is_reported(self) -> None:
        hybrid = build("fixed", weights=(1.0, 0.5, 2.0))
        output = hybrid(EXAMPLE.labels, EXAMPLE.logits)
        terms = [getattr(losses, name)(EXAMPLE.labels, EXAMPLE.logits).numpy() for name in NAMES]
        np.testing.assert_allclose(output.total, terms[0] + 0.5 * terms[1] + 2 * terms[2], rtol=1e-6)
        for name, term, weight in zip(NAMES, terms, (1.0, 0.5, 2.0), strict=True):
            assert float(output.statistics[f"loss/{name}"]) == pytest.approx(term.mean(), rel=1e-6)
            assert float(output.statistics[f"weight/{name}"]) == weight
        assert hybrid.on_validation(summary(0.0, 0.0)) is None


class TestSchedule:
    @pytest.mark.parametrize(
        ("share", "dice", "focal"),
        [(0.0, 0.0, 1.0), (0.2, 0.0, 1.0), (0.3, 0.5, 0.875), (0.6, 2.0, 0.5), (0.8, 2.0, 0.25), (1.0, 2.0, 0.0)],
    )
    def test_weights_are_piecewise_linear(self, share: float, dice: float, focal: float) -> None:
        hybrid = build("schedule", weights=(3.0, 1.0, 1.0))  # the term that the points do not name keeps its weight
        step(hybrid, share=share)
        assert weights_of(hybrid) == pytest.approx([3.0, dice, focal], abs=1e-6)


class TestUncertainty:
    def test_descent_finds_the_log_of_twice_the_loss(self) -> None:
        hybrid = build("uncertainty")
        (variance,) = hybrid.trainable_variables

        @tf.function
        def descend():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(hybrid(EXAMPLE.labels, EXAMPLE.logits).total)
            variance.assign_sub(tape.gradient(loss, variance))

        for _ in range(200):
            descend()
        output = hybrid(EXAMPLE.labels, EXAMPLE.logits)
        terms = np.array([float(output.statistics[f"loss/{name}"]) for name in NAMES])
        np.testing.assert_allclose(variance, np.log(2 * terms), rtol=1e-3)  # minimum of exp(-s) L + s / 2
        np.testing.assert_allclose(weights_of(hybrid), 1 / (2 * terms), rtol=1e-3)
        sigmas = [float(hybrid.weights()[f"sigma/{name}"]) for name in NAMES]
        np.testing.assert_allclose(sigmas, np.sqrt(2 * terms), rtol=1e-3)

    def test_a_term_of_weight_0_stays_out(self) -> None:
        hybrid = build("uncertainty", weights=(1.0, 0.0, 1.0))
        with tf.GradientTape() as tape:
            total = hybrid(EXAMPLE.labels, EXAMPLE.logits).total
        assert tape.gradient(total, hybrid.trainable_variables[0]).numpy()[1] == 0
        assert weights_of(hybrid)[1] == 0

    def test_a_bound_is_no_trap(self) -> None:
        hybrid = build("uncertainty", max_log_variance=1.0)
        (variance,) = hybrid.trainable_variables
        variance.assign([-9.0, 9.0, 0.0])  # far too much and far too little weight
        with tf.GradientTape() as tape:
            total = tf.reduce_mean(hybrid(EXAMPLE.labels, EXAMPLE.logits).total)
        slope = tape.gradient(total, variance).numpy()
        assert weights_of(hybrid)[:2] == pytest.approx([math.e, 1 / math.e])
        assert slope[0] < 0 < slope[1]  # descent leads back from both ends


class TestGradientNorm:
    def slope(self, hybrid: losses.Hybrid) -> np.ndarray:
        logits = tf.constant(EXAMPLE.logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            output = hybrid(EXAMPLE.labels, logits)
        hybrid.update(output.statistics, 0.5)
        return tape.gradient(output.total, logits).numpy()

    def norm(self, name: str) -> float:
        logits = tf.constant(EXAMPLE.logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = getattr(losses, name)(EXAMPLE.labels, logits)
        squares = (tape.gradient(value, logits).numpy() ** 2).reshape(2, -1).sum(1)
        return math.sqrt(squares.mean())

    def test_weighted_norms_are_equal_from_the_first_step(self) -> None:
        hybrid = build("gradient_norm")
        first = hybrid(EXAMPLE.labels, EXAMPLE.logits).statistics
        step(hybrid)
        reference = self.norm("binary_crossentropy")
        for name, weight in zip(NAMES, weights_of(hybrid), strict=True):
            assert weight * self.norm(name) == pytest.approx(reference, rel=1e-5)
            assert float(first[f"weight/{name}"]) == pytest.approx(weight, rel=1e-5)

    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_multiplying_a_term_by_1000_changes_nothing(self, index: int) -> None:
        plain, in_config = (
            build("gradient_norm"),
            build("gradient_norm", weights=np.where(np.arange(3) == index, 1000.0, 1.0)),
        )
        in_code = build("gradient_norm")
        term = in_code.terms[index]
        scaled = replace(term, loss=partial(lambda inner, *a, **k: 1000.0 * inner(*a, **k), term.loss))
        in_code.terms = (*in_code.terms[:index], scaled, *in_code.terms[index + 1 :])
        for _ in range(3):  # the first step has no running mean, the others have
            wanted = self.slope(plain)
            np.testing.assert_allclose(self.slope(in_config), wanted, rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose(self.slope(in_code), wanted, rtol=1e-5, atol=1e-9)

    def test_the_mean_runs(self) -> None:
        hybrid = build("gradient_norm", momentum=0.75)
        names = [*NAMES, "reference"]
        for square in (4.0, 16.0):  # running sums 0.25 x 4 = 1 of mass 0.25, then 0.75 + 4 = 4.75 of mass 0.4375
            hybrid.update(
                {f"gradient_square/{name}": tf.constant(square if name == "dice" else 1.0) for name in names}, 0.0
            )
        assert weights_of(hybrid) == pytest.approx([1.0, math.sqrt(0.4375 / 4.75), 1.0], rel=1e-5)

    def test_a_term_of_weight_0_is_off(self) -> None:
        hybrid = build("gradient_norm", weights=(1.0, 0.0, 1.0))
        step(hybrid)
        assert weights_of(hybrid)[1] == 0


class TestDynamicAverage:
    def test_weights_follow_the_ratio_of_the_last_two_means(self) -> None:
        hybrid = build("dynamic_average", weights=(1.0, 1.0, 0.0), period_steps=2)
        for values in ((3.0, 2.0), (5.0, 2.0), (1.0, 2.0)):
            assert weights_of(hybrid) == pytest.approx([1.0, 1.0, 0.0])
            step(hybrid, binary_crossentropy=values[0], dice=values[1])
        step(hybrid, binary_crossentropy=3.0, dice=4.0)
        # Means 4 then 2, and 2 then 3: ratios 0.5 and 1.5 at temperature 2.
        a, b = math.exp(0.25), math.exp(0.75)
        assert weights_of(hybrid) == pytest.approx([2 * a / (a + b), 2 * b / (a + b), 0.0], rel=1e-5)


class TestRecallFeedback:
    def test_moves_up_while_recall_is_low_and_back_when_not(self) -> None:
        hybrid = build("recall_feedback", step=2.0, max_factor=4.0, target_recall=0.8, max_fp_per_scan=2.0)
        # Focal is the recall-heavy term (positive_weight 0.75). Factor f: weights 3 / (2 + f) and 3 f / (2 + f).
        course = [
            (0.5, 1.0, 2.0, "rises from 1.000 to 2.000: small-lesion recall 0.500 is under its target 0.8"),
            (0.5, 2.0, 4.0, "rises from 2.000 to 4.000.*2.00 false positives a scan are within the budget of 2"),
            (0.5, 1.0, 4.0, "stays from 4.000 to 4.000"),
            (0.5, 2.1, 2.0, "falls from 4.000 to 2.000.*2.10 false positives a scan are over the budget of 2"),
            (0.8, 0.0, 1.0, "falls from 2.000 to 1.000: small-lesion recall 0.800 is not under its target"),
            (0.9, 9.0, 1.0, "stays"),
            (None, 0.0, 1.0, "nothing to go by"),
            (math.nan, 0.0, 1.0, "nothing to go by"),
        ]
        for recall, false_positives, factor, text in course:
            decision = hybrid.on_validation(summary(recall, false_positives))
            assert re.search(text, decision), decision
            other, heavy = 3 / (2 + factor), 3 * factor / (2 + factor)
            assert weights_of(hybrid) == pytest.approx([other, other, heavy], rel=1e-6)

    def test_named_terms_take_the_place_of_the_recall_heavy_ones(self) -> None:
        hybrid = build("recall_feedback", recall_terms=["dice"], step=2.0)
        hybrid.on_validation(summary(0.0, 0.0))
        assert weights_of(hybrid) == pytest.approx([0.75, 1.5, 0.75])


@pytest.mark.parametrize("name", WEIGHTINGS)
class TestAll:
    @pytest.mark.parametrize("value", [0.0, 1.0, math.nan, math.inf, -math.inf])
    def test_weights_stay_finite_whatever_a_term_is(self, name: str, value: float) -> None:
        hybrid = build(name)
        terms = hybrid.terms
        for index in range(12):
            odd = replace(terms[1], loss=lambda voxels, **_: tf.reduce_sum(voxels.logits, [1, 2, 3]) * 0.0 + value)
            hybrid.terms = (terms[0], odd, terms[2]) if index % 4 < 2 else terms
            with tf.GradientTape() as tape:
                output = hybrid(EXAMPLE.labels, EXAMPLE.logits)
                loss = tf.reduce_mean(output.total)
            for variable in hybrid.trainable_variables:
                variable.assign_sub(0.5 * tape.gradient(loss, variable))
            hybrid.update(output.statistics, index / 12)
            hybrid.on_validation(summary(value, 1.0))
            assert np.isfinite(weights_of(hybrid)).all()
            assert (np.array(weights_of(hybrid)) >= 0).all()
            if index % 4 < 2 and not math.isfinite(value):
                assert not np.isfinite(loss)  # the step must see that it is broken

    def test_weights_come_back_from_a_checkpoint(self, name: str, tmp_path: Path) -> None:
        hybrid, restored = build(name), build(name)
        for share in (0.1, 0.2, 0.35):
            step(hybrid, share=share, dice=share)
        for variable in hybrid.trainable_variables:
            variable.assign([0.1, 0.2, 0.3])
        hybrid.on_validation(summary(0.0, 0.0))
        path = tf.train.Checkpoint(hybrid=hybrid).save(str(tmp_path / "state"))
        tf.train.Checkpoint(hybrid=restored).restore(path).assert_existing_objects_matched().assert_consumed()
        assert weights_of(restored) == weights_of(hybrid)
        if name != "fixed":
            assert weights_of(hybrid) != pytest.approx([1.0, 1.0, 1.0])
            assert len(restored.variables) > 0
