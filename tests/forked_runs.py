"""Whole trainings in processes of their own, as a user starts them: run by test_workers.py and test_kills.py.

TensorFlow is imported once and a process is forked for every training, before anything of it runs: starting one costs
milliseconds instead of seconds. `python forked_runs.py SCENARIO FOLDER` plays one of the scenarios at the end of this
file on the dataset in FOLDER/data, prints a line of JSON for each run of it, and leaves the run folders.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import tensorflow as tf  # noqa: E402

from segment import cli  # noqa: E402
from segment.training import trainer  # noqa: E402
from segment.training.step import TrainStep  # noqa: E402

SECONDS = 120.0  # after which a process counts as hung


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        arguments: Of `segment train`.
        cpus: Logical CPU devices.
        environment: Variables that are added.
        signals: (step, signal) that it sends to itself in that step of its own, counted from 1.
    """

    arguments: Sequence[str]
    cpus: int = 1
    environment: dict[str, str] | None = None
    signals: tuple[int, int] | None = None


def start(run: Run, output: Path) -> int:
    """Forks a process that trains, with its output in a file; returns its id."""
    process = os.fork()
    if process:
        return process
    with output.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.environ.update(run.environment or {})
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * run.cpus)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    if run.signals is not None:
        _signal_in_step(*run.signals)
    sys.exit(cli.main(["train", *run.arguments]))


def _signal_in_step(step: int, number: int) -> None:
    original, calls = TrainStep.__call__, [0]

    def call(self: TrainStep, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            os.kill(os.getpid(), number)
        return original(self, *arguments, **options)

    TrainStep.__call__ = call  # type: ignore[method-assign]


def wait(process: int, seconds: float = SECONDS) -> int:
    """The exit code of a process, minus the signal for one that was killed; 1000 for one that had to be."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 1000


def together(name: str, runs: Sequence[Run], folder: Path) -> None:
    """Plays runs side by side and prints their exit codes, outputs and seconds."""
    began = time.monotonic()
    outputs = [folder / f"{name}-{index}.txt" for index in range(len(runs))]
    processes = [start(run, output) for run, output in zip(runs, outputs, strict=True)]
    codes = [wait(process) for process in processes]
    texts = [output.read_text(errors="replace") for output in outputs]
    seconds = time.monotonic() - began
    print(json.dumps({"name": name, "codes": codes, "texts": texts, "seconds": round(seconds, 1)}), flush=True)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def options(folder: Path, run_dir: str, *, steps: int, **train: Any) -> list[str]:
    """The arguments of a training on FOLDER/data with a network of two levels on patches of 16 x 16."""
    settings = {"steps": steps, "batch_size": 4, "precision": "float32", "log_every": 5, "validate_every": 20, **train}
    path = folder / f"{run_dir}.yaml"
    sections = {
        "data": {"root": str(folder / "data"), "validation_cases": ["case2"], "workers": 1},
        "model": {"dimensions": 2, "filters": [4, 8], "patch_size": [16, 16]},
        "train": settings | {"optimizer": {"learning_rate": 0.01}},
    }
    path.write_text(json.dumps(sections))  # JSON is YAML
    return [str(path), "--run-dir", str(folder / run_dir)]


def slurm_workers(arguments: list[str], *, signals: dict[int, tuple[int, int]] | None = None) -> list[Run]:
    """Two workers as srun would start them on one node; its ports follow from the number of the job."""
    ports = free_ports(2)
    job = {"SLURM_JOB_ID": str(ports[0]), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    return [
        Run(arguments, environment=job | {"SLURM_PROCID": str(rank)}, signals=(signals or {}).get(rank))
        for rank in (0, 1)
    ]


def tf_config_workers(arguments: list[str], *, signals: dict[int, tuple[int, int]] | None = None) -> list[Run]:
    """Two workers that find each other by TF_CONFIG."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    settings = [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}) for rank in (0, 1)
    ]
    return [
        Run(arguments, environment={"TF_CONFIG": text}, signals=(signals or {}).get(rank))
        for rank, text in enumerate(settings)
    ]


def play_workers(folder: Path) -> None:
    """One process with two replicas; two workers; and two workers of which one is stopped, then one killed."""
    length = {"steps": 12, "validate_every": 6}
    one = options(folder, "one", strategy="mirrored", **length)
    two = options(folder, "two", strategy="multi_worker", **length)
    together("one", [Run(one, cpus=2)], folder)
    together("two", slurm_workers(two), folder)
    broken = options(folder, "broken", strategy="multi_worker", checkpoint_minutes=1e-6, **length)
    together("stopped", tf_config_workers(broken, signals={1: (4, signal.SIGTERM)}), folder)
    broken.append("--resume")
    together("killed", tf_config_workers(broken, signals={1: (5, signal.SIGKILL)}), folder)
    together("resumed", tf_config_workers(broken), folder)


def play_kills(folder: Path) -> None:
    """60 steps in one go, and 60 steps with kill -9 at ten random moments, each followed by --resume."""
    straight = options(folder, "straight", steps=60, ema_decay=0.9)
    together("straight", [Run(straight)], folder)
    killed = options(folder, "killed", steps=60, ema_decay=0.9, checkpoint_minutes=1e-6)
    checkpoints = folder / "killed" / "checkpoints"
    dice = random.Random()
    moments = []
    for _ in range(10):
        before = _newest(checkpoints)
        process = start(Run([*killed, "--resume"]), folder / "killed.txt")
        target, began = before + dice.randint(0, 5), time.monotonic()
        while _newest(checkpoints) < target and time.monotonic() < began + SECONDS:
            time.sleep(0.001)
        time.sleep(dice.uniform(0.0, 2.0 if target == before else 0.05))  # 2 s: anywhere in the start of the process
        os.kill(process, signal.SIGKILL)
        if wait(process) != -signal.SIGKILL:
            raise SystemExit(f"ended before it was killed: {(folder / 'killed.txt').read_text()}")
        moments.append(_newest(checkpoints))
    print(json.dumps({"name": "kills", "moments": moments}), flush=True)
    together("resumed", [Run([*killed, "--resume"])], folder)


def _newest(checkpoints: Path) -> int:
    steps = [int(path.stem.removeprefix("step-")) for path in checkpoints.glob("step-*.ckpt")]
    return max(steps, default=0)


if __name__ == "__main__":
    trainer.train  # noqa: B018 - imported for the processes to come
    {"workers": play_workers, "kills": play_kills}[sys.argv[1]](Path(sys.argv[2]))
