"""Processes that agree, played by threads over socket pairs; how they meet is tested in test_workers.py."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from segment.errors import InputError
from segment.training.interruption import Interrupted, StopRequest
from segment.training.team import Team


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Two connections, the chief's end first."""
    found = [socket.socketpair() for _ in range(2)]
    yield found
    for pair in found:
        for end in pair:
            end.close()


@pytest.fixture
def three(pairs: list[tuple[socket.socket, socket.socket]]) -> Iterator[list[Team]]:
    """A chief and two others."""
    others = [Team(rank, [theirs]) for rank, (_, theirs) in enumerate(pairs, start=1)]
    teams = [Team(0, [ours for ours, _ in pairs]), *others]
    yield teams
    for team in teams:
        team.close()


def everywhere(teams: list[Team], call: Callable[[Team], Any]) -> list[Any]:
    """Calls a function in every process at once; the values, or the errors."""

    def caught(team: Team) -> Any:
        try:
            return call(team)
        except (InputError, Interrupted) as error:
            return error

    with ThreadPoolExecutor(len(teams)) as pool:
        return list(pool.map(caught, teams))


class TestAgree:
    def test_the_largest_wins_everywhere(self, three: list[Team]) -> None:
        assert everywhere(three, lambda team: team.agree([0, 143, 130][team.rank])) == [143] * 3
        assert everywhere(three, lambda team: team.agree(0)) == [0] * 3

    def test_a_signal_to_one_stops_all_at_the_same_call(self, three: list[Team]) -> None:
        steps = [0, 0, 0]

        def train(team: Team) -> None:
            stop = StopRequest()
            while True:
                stop.check_together(team.agree)
                steps[team.rank] += 1
                if team.rank == 2 and steps[2] == 5:
                    stop.code = 143

        stopped = everywhere(three, train)
        assert [error.code for error in stopped] == [143] * 3
        assert steps == [5, 5, 5]

    def test_alone(self) -> None:
        assert Team().agree(7) == 7
        assert Team().from_chief(lambda: (1, 2)) == (1, 2)
        assert Team().chief
        assert Team().alone


class TestFromChief:
    def test_value(self, three: list[Team]) -> None:
        calls: list[int] = []

        def make() -> dict[str, Any]:
            calls.append(threading.get_ident())
            return {"f1": 0.1 + 0.2, "case": None}

        assert everywhere(three, lambda team: team.from_chief(make)) == [{"f1": 0.1 + 0.2, "case": None}] * 3
        assert len(calls) == 1

    def test_errors_and_interruptions_are_everybodys(self, three: list[Team]) -> None:
        def fail() -> None:
            raise InputError("disk full")

        def stop() -> None:
            raise Interrupted(130)

        assert [str(error) for error in everywhere(three, lambda team: team.from_chief(fail))] == [
            "disk full",
            "worker 0: disk full",
            "worker 0: disk full",
        ]
        assert [error.code for error in everywhere(three, lambda team: team.from_chief(stop))] == [130] * 3


class TestLost:
    def test_a_process_that_ends_is_noticed_at_once(self, three: list[Team]) -> None:
        three[2].close()
        three[1]._send(0)
        with pytest.raises(InputError, match=r"worker 2 has stopped; .*--resume"):
            three[0].agree(0)

    def test_the_chief_ends(self, three: list[Team]) -> None:
        three[0].close()
        for call in (lambda: three[1].agree(0), lambda: three[1].from_chief(lambda: None)):
            with pytest.raises(InputError, match="worker 0 has stopped"):
                call()


MEETING = """
import sys, threading
from segment.errors import InputError
from segment.training.cluster import Cluster
from segment.training.team import meet
import socket
ports = []
for _ in range(2):
    with socket.create_server(("127.0.0.1", 0)) as one: ports.append(one.getsockname()[1])
addresses = tuple(f"127.0.0.1:{port}" for port in ports)
said = {}
def come(rank, purpose, seconds):
    try:
        said[rank] = meet(Cluster(addresses, rank), purpose=purpose, seconds=seconds).rank
    except InputError as error:
        said[rank] = str(error)
def all_come(*comers):
    said.clear()
    threads = [threading.Thread(target=come, args=comer) for comer in comers]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    return [said[comer[0]] for comer in comers]
stranger = threading.Timer(0.1, lambda: socket.create_connection(("127.0.0.1", ports[0])).sendall(b"GET / HTTP/1.1\\n"))
stranger.start()
threading.Timer(0.3, come, args=(1, "a", 20)).start()
print(all_come((0, "a", 20)))
print(all_come((0, "a", 20), (1, "b", 20)))
print(all_come((0, "a", 0.3)))
print(all_come((1, "a", 0.3)))
"""


def test_meeting() -> None:
    """In a process of its own, which may use the loopback."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", MEETING], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    met, differ, late, chiefless = done.stdout.splitlines()
    assert met == "[0]"
    assert "worker 1 was started with other options" in differ
    assert differ.count("was started with other options") == 2  # both are told
    assert "worker 1 (127.0.0.1:" in late
    assert "did not start in time; start all of them together" in late
    assert "worker 1: worker 0 at 127.0.0.1:" in chiefless
    assert "did not start in time (Connection refused)" in chiefless
