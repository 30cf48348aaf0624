"""`scripts/benchmark.py`: what it says to a wrong name and to Ctrl-C, and that the helps have an example."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark.py"


@pytest.fixture
def benchmark() -> Any:
    return runpy.run_path(str(SCRIPT))["main"]


def test_a_wrong_name_is_said_with_the_right_ones(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(["lesion_lod"]) == 2
    shown = capsys.readouterr()
    assert "\n  lesion_load " in shown.out
    assert shown.err == "error: expected one of these names, found 'lesion_lod'\n"


def test_without_a_name_they_are_listed(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark([]) == 0
    assert capsys.readouterr().out.startswith("usage: python scripts/benchmark.py NAME")


def test_ctrl_c_is_one_line(
    benchmark: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    real = importlib.import_module  # TensorFlow loads parts of itself with it, when they are first used
    step = SimpleNamespace(main=interrupted)

    def imported(name: str, *package: str | None) -> Any:
        return step if name == "benchmarks.step" else real(name, *package)

    monkeypatch.setattr(importlib, "import_module", imported)
    assert benchmark(["step"]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("name", ["accuracy", "ablation", "lesion_load", "lesion_pictures", "losses", "evaluate"])
def test_help_has_an_example(benchmark: Any, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark([name, "--help"])
    assert stopped.value.code == 0
    assert f"  python scripts/benchmark.py {name} --" in capsys.readouterr().out
