"""Which processes train together (`train.strategy: multi_worker`): from TF_CONFIG, or from what Slurm sets.

Every process of the run finds the same list of addresses and its own place in it. Nothing is connected here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segment.errors import InputError

FIRST_PORT, PORTS = 20000, 10000  # below the ports that systems give away by themselves, 32768 and above
LAST_PORT = 65535
LARGEST_GROUP = 100_000  # names in one bracket of a node list
_COUNT = re.compile(r"([0-9]+)(?:\(x([0-9]+)\))?")
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")


@dataclass(frozen=True)
class Cluster:
    """The processes of one run.

    Attributes:
        addresses: "host:port" of each, the chief first; at least one.
        rank: Which of them this process is, from 0.
    """

    addresses: tuple[str, ...]
    rank: int


def find_cluster(environment: Mapping[str, str]) -> Cluster:
    """The cluster that the environment variables describe: TF_CONFIG where it is set, else Slurm's.

    Raises:
        InputError: Neither is there, one is malformed, or there is only one process.
    """
    if environment.get("TF_CONFIG", "").strip():
        cluster = _from_tf_config(environment["TF_CONFIG"])
        source = "TF_CONFIG"
    elif "SLURM_PROCID" in environment:
        cluster = _from_slurm(environment)
        source = "Slurm"
    else:
        raise InputError(
            "train.strategy: multi_worker needs TF_CONFIG, or to be started by Slurm's srun; found neither; "
            "use mirrored for the GPUs of one machine"
        )
    if len(cluster.addresses) < 2:
        raise InputError(
            f"train.strategy: multi_worker needs at least 2 processes, {source} names 1; use auto on one machine, "
            "or start the training by srun with 2 or more tasks"
        )
    if len(set(cluster.addresses)) < len(cluster.addresses):
        raise InputError(f"{source}: expected different addresses, found {', '.join(cluster.addresses)}")
    return cluster


def _from_tf_config(text: str) -> Cluster:
    try:
        values = json.loads(text)
        jobs: dict[str, Any] = dict(values["cluster"])
        kind, index = str(values["task"]["type"]), int(values["task"]["index"])
        addresses = {job: [str(address) for address in found] for job, found in jobs.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise InputError(
            'TF_CONFIG: expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, '
            f"found {text!r}"
        ) from cause
    others = sorted(set(addresses) - {"chief", "worker"})
    if others or kind not in addresses:
        raise InputError(
            f"TF_CONFIG: expected the jobs chief and worker, found {', '.join(others) or f'a task of type {kind!r}'}"
        )
    if not 0 <= index < len(addresses[kind]):
        raise InputError(f"TF_CONFIG: {kind} {index} does not exist, the cluster has {len(addresses[kind])}")
    chief = addresses.get("chief", [])
    every = (*chief, *addresses.get("worker", []))
    bad = [address for address in every if not _is_address(address)]
    if bad:
        raise InputError(f"TF_CONFIG: expected addresses as host:port, found {bad[0]!r}")
    return Cluster(every, index + (len(chief) if kind == "worker" else 0))


def _is_address(text: str) -> bool:
    found = re.fullmatch(r".+:([0-9]{1,5})", text)
    return found is not None and int(found[1]) <= LAST_PORT


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    """One address for each task of the job step. Ports follow from the job's number, so all tasks find the same."""

    def value(*names: str) -> str:
        found = next((environment[name] for name in names if environment.get(name)), None)
        if found is None:
            raise InputError(f"Slurm: expected the variable {' or '.join(names)}; start the training by srun")
        return found

    nodes = expand_nodes(value("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"))
    tasks = expand_counts(value("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    if len(nodes) != len(tasks):
        raise InputError(f"Slurm: {len(nodes)} nodes but {len(tasks)} counts of tasks; start the training by srun")
    places = [(node, local) for node, count in zip(nodes, tasks, strict=True) for local in range(count)]
    rank = _number("SLURM_PROCID", value("SLURM_PROCID"))
    if rank >= len(places):
        raise InputError(f"Slurm: task {rank} of {len(places)}; start the training by srun")
    node = _number("SLURM_NODEID", environment.get("SLURM_NODEID", str(nodes.index(places[rank][0]))))
    if node >= len(nodes) or nodes[node] != places[rank][0]:
        raise InputError(f"Slurm: task {rank} is not on {places[rank][0]}; add --distribution=block to srun")
    if len(places) > 1 and "SLURM_STEP_NODELIST" not in environment and "SLURM_STEP_ID" not in environment:
        raise InputError(f"Slurm: found {len(places)} tasks but no job step; start the training by srun")
    first = FIRST_PORT + _number("SLURM_JOB_ID", value("SLURM_JOB_ID", "SLURM_JOBID")) % PORTS
    return Cluster(tuple(f"{host}:{first + local}" for host, local in places), rank)


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(f"{name}: expected a number, found {text!r}")
    return int(text)


def expand_counts(text: str) -> list[int]:
    """Slurm's tasks per node, "2(x3),1", as a list: [2, 2, 2, 1]. Raises InputError for anything else."""
    matches = [_COUNT.fullmatch(part) for part in text.split(",")]
    if not all(matches):
        raise InputError(f"Slurm: expected tasks per node such as 2(x3),1, found {text!r}")
    return [int(match[1]) for match in matches if match for _ in range(int(match[2] or 1))]


def expand_nodes(text: str) -> list[str]:
    """Slurm's list of nodes, "gpu[01-03,7],head", as names: gpu01, gpu02, gpu03, gpu7, head.

    Several brackets in one name ("r[1-2]n[1-2]") vary the last one fastest, as `scontrol show hostnames` does.

    Raises:
        InputError: It is none.
    """
    names = [name for part in _split(text) for name in _expand(part, text)]
    if not names:
        raise InputError(f"Slurm: expected a list of nodes, found {text!r}")
    return names


def _split(text: str) -> Sequence[str]:
    """At the commas outside brackets."""
    return [part for part in re.split(r",(?![^\[]*\])", text) if part]


def _expand(part: str, text: str) -> list[str]:
    match = re.fullmatch(r"([^\[\]]*)\[([^\[\]]+)\](.*)", part)
    if match is None:
        if re.search(r"[\[\]\s]", part):
            raise InputError(f"Slurm: expected a list of nodes, found {text!r}")
        return [part]
    numbers = [number for item in match[2].split(",") for number in _range(item, text)]
    return [f"{match[1]}{number}{rest}" for number in numbers for rest in (_expand(match[3], text) or [""])]


def _range(item: str, text: str) -> list[str]:
    match = _RANGE.fullmatch(item)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if match is None or not first <= last < first + LARGEST_GROUP:
        raise InputError(f"Slurm: expected a list of nodes, found {text!r}")
    return [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
