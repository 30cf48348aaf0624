"""Whole trainings in processes of their own, as a user starts them: run by test_workers.py and test_exact_resume.py.

TensorFlow is imported once and a process is forked for every training, before anything of it runs: starting one costs
milliseconds instead of seconds. `python forked_runs.py SCENARIO FOLDER` plays one of the scenarios at the end of this
file on the dataset in FOLDER/data, prints a line of JSON for each run of it, and leaves the run folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import tensorflow as tf

from segment import cli
from segment.training import trainer as trainer
from segment.training.cluster import FIRST_PORT, PORTS
from segment.training.step import TrainStep

SECONDS = 120.0  # after which a process counts as hung


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        arguments: Of `segment train`.
        cpus: Logical CPU devices.
        environment: Variables that are added.
        signals: (step, signal) that it sends to itself in that step of its own, counted from 1.
        full_disk: (step, file) that it fills the disk with in that step; where that is a large one, no file may grow
            any more instead, which fails in the same place.
    """

    arguments: Sequence[str]
    cpus: int = 1
    environment: dict[str, str] | None = None
    signals: tuple[int, int] | None = None
    full_disk: tuple[int, Path] | None = None


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
        step, number = run.signals
        _in_step(step, lambda: os.kill(os.getpid(), number))
    if run.full_disk is not None:
        step, path = run.full_disk
        _in_step(step, lambda: _fill_disk(path))
    sys.exit(cli.main(["train", *run.arguments]))


def _in_step(step: int, action: Callable[[], None]) -> None:
    original, calls = TrainStep.__call__, [0]

    def call(self: TrainStep, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            action()
        return original(self, *arguments, **options)

    TrainStep.__call__ = call  # type: ignore[method-assign]


def _fill_disk(path: Path) -> None:
    if not os.path.ismount(path.parent):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        return
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


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
    settings = {"steps": steps, "batch_size": 4, "precision": "float32", "log_every": 5, "validate_every": 20}
    settings |= {"ema_decay": 0.9, "optimizer": {"learning_rate": 0.01}, **train}
    path = folder / f"{Path(run_dir).name}.yaml"
    sections = {
        "data": {"root": str(folder / "data"), "validation_cases": ["case2"], "workers": 1},
        "model": {"dimensions": 2, "filters": [4, 8], "patch_size": [16, 16]},
        "loss": {"terms": [{"name": "dice"}], "weighting": {"name": "uncertainty"}},
        "train": settings,
    }
    path.write_text(json.dumps(sections))  # JSON is YAML
    return [str(path), "--run-dir", str(folder / run_dir)]


def slurm_workers(arguments: list[str], signals: tuple[int, int]) -> list[Run]:
    """Two workers as srun starts them on one node, whose ports follow from the number of the job; 1 gets signals."""
    job = next(number for number in random.sample(range(PORTS), PORTS) if _free(FIRST_PORT + number))
    names = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    first, second = (names | {"SLURM_PROCID": str(rank)} for rank in (0, 1))
    return [Run(arguments, environment=first), Run(arguments, environment=second, signals=signals)]


def _free(port: int) -> bool:
    try:
        for number in (port, port + 1):
            socket.create_server(("localhost", number)).close()
    except OSError:
        return False
    return True


def tf_config_workers(arguments: list[str], signals: tuple[int, int] | None = None) -> list[Run]:
    """Two workers that find each other by TF_CONFIG; worker 1 gets signals."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    first, second = (
        {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})}
        for rank in (0, 1)
    )
    return [Run(arguments, environment=first), Run(arguments, environment=second, signals=signals)]


def play_workers(folder: Path) -> None:
    """One process with two replicas, and two workers: worker 1 is asked to stop, then killed, then left alone."""
    together("one", [Run(options(folder, "one", steps=12, strategy="mirrored"), cpus=2)], folder)
    two = options(folder, "two", steps=12, strategy="multi_worker", checkpoint_minutes=1e-6)
    together("stopped", slurm_workers(two, (4, signal.SIGTERM)), folder)
    two.append("--resume")
    together("killed", tf_config_workers(two, (5, signal.SIGKILL)), folder)
    together("resumed", tf_config_workers(two), folder)


def play_resume(folder: Path) -> None:
    """60 steps in one go, and 60 steps with kill -9 at ten random moments, each followed by --resume."""
    together("straight", [Run(options(folder, "straight", steps=60))], folder)
    killed = [*options(folder, "killed", steps=60, checkpoint_minutes=1e-6), "--resume"]
    dice, moments = random.Random(), []
    for _ in range(10):
        process = start(Run(killed), folder / "killed.txt")
        _wait_at_random(folder / "killed" / "checkpoints", dice)
        os.kill(process, signal.SIGKILL)
        if wait(process) != -signal.SIGKILL:
            raise SystemExit(f"ended before it was killed: {(folder / 'killed.txt').read_text()}")
        moments.append(_newest(folder / "killed" / "checkpoints"))
    print(json.dumps({"name": "kills", "moments": moments}), flush=True)
    together("resumed", [Run(killed)], folder)
    play_full_disk(folder)


def play_full_disk(folder: Path) -> None:
    """60 steps on a disk of its own that is full in step 31, and the rest when there is room again."""
    disk, parent = folder / "disk", os.getpid()
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0  # needs the right to do so
    try:
        arguments = options(folder, "disk/run", steps=60, checkpoint_minutes=1e-6)
        together("full", [Run(arguments, full_disk=(31, disk / "filler"))], folder)
        left = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
        print(json.dumps({"name": "disk", "mounted": mounted, "left": left}), flush=True)
        (disk / "filler").unlink(missing_ok=True)
        together("with room", [Run([*arguments, "--resume"])], folder)
        shutil.copytree(disk / "run", folder / "refilled")
    finally:
        if mounted and os.getpid() == parent:  # a training that ends passes here too
            subprocess.run(["umount", str(disk)], check=False)


def _wait_at_random(checkpoints: Path, dice: random.Random) -> None:
    """Until some steps after the newest checkpoint, and often until a moment in the start of the process."""
    steps, began = _newest(checkpoints) + dice.randint(1, 4), time.monotonic()
    limit = SECONDS if dice.random() < 0.7 else dice.uniform(0.0, 3.0)
    while _newest(checkpoints) < steps and time.monotonic() < began + limit:
        time.sleep(0.001)
    time.sleep(dice.uniform(0.0, 0.02))  # of a step and the writing of its checkpoint


def _newest(checkpoints: Path) -> int:
    steps = [int(path.stem.removeprefix("step-")) for path in checkpoints.glob("step-*.ckpt")]
    return max(steps, default=0)


if __name__ == "__main__":
    {"workers": play_workers, "resume": play_resume}[sys.argv[1]](Path(sys.argv[2]))
