"""Which number format is chosen where, the policy's life time, and the loss scale's moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf

from segment.config import Config, LossScaleConfig
from segment.errors import InputError
from segment.files import write_json
from segment.training import precision
from segment.training.precision import (
    LARGEST_SCALE,
    LossScale,
    precision_of_run,
    precision_policy,
    read_cpu_flags,
    resolve_precision,
)

PLAIN = frozenset({"avx2", "avx512f"})


class TestResolve:
    @pytest.mark.parametrize(
        ("capabilities", "flags", "expected"),
        [
            ([], PLAIN, "float32"),
            ([], PLAIN | {"amx_bf16"}, "mixed_bfloat16"),
            ([], PLAIN | {"avx512_bf16"}, "mixed_bfloat16"),
            ([], frozenset(), "float32"),
            ([(8, 0)], PLAIN, "mixed_bfloat16"),
            ([(9, 0), (8, 6)], PLAIN, "mixed_bfloat16"),
            ([(7, 0)], PLAIN, "mixed_float16"),
            ([(7, 5)], PLAIN | {"amx_bf16"}, "mixed_float16"),
            ([(9, 0), (7, 5)], PLAIN, "mixed_float16"),
            ([(6, 1)], PLAIN | {"amx_bf16"}, "float32"),
            ([(12, 0)], PLAIN, "mixed_bfloat16"),
        ],
    )
    def test_auto(self, capabilities: list[tuple[int, int]], flags: frozenset[str], expected: str) -> None:
        assert resolve_precision("auto", compute_capabilities=capabilities, cpu_flags=flags) == expected

    def test_a_named_one_is_kept(self) -> None:
        assert resolve_precision("mixed_float16", compute_capabilities=[], cpu_flags=PLAIN) == "mixed_float16"

    def test_unknown_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"train\.precision: expected auto or one of float32.*found 'half'"):
            resolve_precision("half", compute_capabilities=[], cpu_flags=PLAIN)


class TestOfRun:
    """A run goes on in the format that it began in, whatever machine it lands on."""

    def test_a_new_run_takes_what_suits_the_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(precision, "compute_capabilities", lambda: [(7, 0)])
        assert precision_of_run(Config(run_dir=tmp_path)) == "mixed_float16"

    def test_a_resumed_one_keeps_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(precision, "compute_capabilities", lambda: [(7, 0)])
        write_json(tmp_path / "manifest.json", {"precision": "mixed_bfloat16"})
        assert precision_of_run(Config(run_dir=tmp_path)) == "mixed_bfloat16"
        assert "began in mixed_bfloat16 and goes on in it" in capsys.readouterr().err


class TestCpuFlags:
    def test_first_cpu_of_linux(self, tmp_path: Path) -> None:
        path = tmp_path / "cpuinfo"
        path.write_text("processor\t: 0\nmodel name\t: X\nflags\t\t: fpu amx_bf16 avx2\nbugs\t\t: a\n\nflags\t: b\n")
        assert read_cpu_flags(path) == {"fpu", "amx_bf16", "avx2"}

    def test_missing_file_is_no_flags(self, tmp_path: Path) -> None:
        assert read_cpu_flags(tmp_path / "absent") == frozenset()


class TestPolicy:
    def test_layers_compute_in_it_and_keep_float32_weights(self) -> None:
        with precision_policy("mixed_bfloat16"):
            layer = tf.keras.layers.Dense(2)
            result = layer(tf.ones([1, 3]))
        assert result.dtype == tf.bfloat16
        assert tf.as_dtype(layer.kernel.dtype) == tf.float32

    def test_the_one_before_is_put_back_even_after_an_error(self) -> None:
        before = tf.keras.mixed_precision.global_policy().name
        with pytest.raises(KeyError), precision_policy("mixed_float16"):
            raise KeyError("stop")
        assert tf.keras.mixed_precision.global_policy().name == before


def moves(scale: LossScale, goods: list[bool]) -> list[float]:
    """The scale after each step."""
    values = []
    for good in goods:
        scale.update(tf.constant(good))
        values.append(float(scale.scale))
    return values


class TestLossScale:
    def test_doubles_after_good_steps_in_a_row_and_halves_on_a_bad_one(self) -> None:
        scale = LossScale(LossScaleConfig(mode="dynamic", initial=8.0, growth_steps=3), scaling=True)
        goods = [True, True, False, True, True, True, True]
        assert moves(scale, goods) == [8, 8, 4, 4, 4, 8, 8]
        assert int(scale.skipped) == 1
        assert int(scale.skipped_in_row) == 0

    def test_defaults_start_at_2_to_the_15_and_double_after_2000(self) -> None:
        scale = LossScale(LossScaleConfig(), scaling=True)
        scale.good_in_row.assign(1998)
        assert moves(scale, [True, True, True, False]) == [2**15, 2**16, 2**16, 2**15]

    def test_never_below_one(self) -> None:
        scale = LossScale(LossScaleConfig(mode="dynamic", initial=3.0), scaling=True)
        assert moves(scale, [False] * 3) == [1.5, 1, 1]
        assert int(scale.skipped_in_row) == 3

    def test_never_grows_beyond_the_largest(self) -> None:
        scale = LossScale(LossScaleConfig(mode="dynamic", initial=LARGEST_SCALE, growth_steps=1), scaling=True)
        assert moves(scale, [True]) == [LARGEST_SCALE]

    def test_fixed_stays(self) -> None:
        scale = LossScale(LossScaleConfig(mode="fixed", initial=65536.0, growth_steps=1), scaling=True)
        assert moves(scale, [True, False, True]) == [65536] * 3

    def test_without_scaling_it_is_one_and_counts_all_the_same(self) -> None:
        scale = LossScale(LossScaleConfig(mode="dynamic", initial=8.0, growth_steps=1), scaling=False)
        assert moves(scale, [True, False]) == [1, 1]
        assert int(scale.skipped) == 1
