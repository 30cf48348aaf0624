"""The processes of one training: how they find each other, agree when to stop, and learn what the chief found.

The gradients travel through TensorFlow. What is small and must not differ between the processes (stop now? which
checkpoint? the score of a validation, an error of the chief) travels through one connection from every process to the
chief, as lines of JSON. It is made before TensorFlow starts, on the address that TensorFlow will listen on later, and a
process that ends closes it, which the others notice at once.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from segment.errors import InputError
from segment.files import jsonable
from segment.progress import CONSOLE
from segment.training.cluster import Cluster
from segment.training.interruption import Interrupted

MEETING_SECONDS = 300.0  # for all processes to start; queues of schedulers start them within seconds
ADVICE = "look at its messages, then start all of them again with --resume"
# A machine that vanishes closes nothing. The system asks it after 20 s of silence, every 5 s, and gives up after 4.
_KEEPALIVE = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))


class Team:
    """This process among those of the training; `Team()` is a training of one process.

    Args:
        rank: Of this process, from 0; 0 is the chief.
        links: The chief's connections to ranks 1, 2, ...; of another process the one to the chief.
    """

    def __init__(self, rank: int = 0, links: Sequence[socket.socket] = ()) -> None:
        self.rank = rank
        self._links = [_Link(link) for link in links]

    @property
    def chief(self) -> bool:
        """Whether this process writes the run folder and talks to the user."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return not self._links

    def agree(self, number: int) -> int:
        """The largest of the numbers that all processes give, at the same call; waits for every one.

        Raises:
            InputError: A process is gone.
        """
        if not self.chief:
            self._send(number)
            return int(self._receive(0))
        largest = max([number, *(int(self._receive(place)) for place in range(len(self._links)))])
        self._send(largest)
        return largest

    def from_chief(self, make: Callable[[], Any]) -> Any:
        """Calls `make` on the chief alone and returns its value everywhere; the others wait.

        Args:
            make: Gives a JSON-able value (tuples become lists). When it raises InputError or Interrupted, every
                process does.

        Raises:
            InputError: The chief is gone.
        """
        if self.alone:
            return make()
        if not self.chief:
            return _opened(self._receive(0))
        try:
            value = make()
        except InputError as error:
            self._farewell({"error": str(error)})
            raise
        except Interrupted as interrupted:
            self._farewell({"stop": interrupted.code})
            raise
        message = json.dumps({"value": jsonable(value)})
        self._send(json.loads(message))
        return json.loads(message)["value"]  # as the others see it: NaN, for example, is None

    def close(self) -> None:
        """Ends the connections; the others find this process gone."""
        for link in self._links:
            link.close()

    def _farewell(self, message: Any) -> None:
        with suppress(InputError):  # a process that is gone needs no news, and the chief has its own to raise
            self._send(message)

    def _send(self, message: Any) -> None:
        for place, link in enumerate(self._links):
            if not link.send(message):
                raise self._lost(place)

    def _receive(self, place: int) -> Any:
        message = self._links[place].receive()
        if message is None:
            raise self._lost(place)
        return message

    def _lost(self, place: int) -> InputError:
        return InputError(f"worker {place + 1 if self.chief else 0} has stopped; {ADVICE}")


def _opened(message: Any) -> Any:
    if "error" in message:
        raise InputError(f"worker 0: {message['error']}")
    if "stop" in message:
        raise Interrupted(int(message["stop"]))
    return message["value"]


class _Link:
    """One connection: a line of JSON a message."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if connection.family != socket.AF_UNIX and hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        connection.settimeout(None)
        self._connection = connection
        self._lines = connection.makefile("rb")

    def send(self, message: Any) -> bool:
        """Whether it could be sent."""
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Ends the connection."""
        with suppress(OSError):
            self._lines.close()
            self._connection.close()

    def receive(self) -> Any:
        """The next message; None when the other side is gone."""
        try:
            line = self._lines.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None


def meet(cluster: Cluster, *, purpose: str, seconds: float = MEETING_SECONDS) -> Team:
    """Waits until every process of the cluster is there and returns the team.

    Args:
        cluster: Its first address is free on the chief's machine.
        purpose: A text that is the same in all processes of one training, for example a hash of the options.
        seconds: To wait.

    Raises:
        InputError: Somebody is missing after that time or has another purpose, or the chief's address is taken.
    """
    deadline = time.monotonic() + seconds
    host, _, port = cluster.addresses[0].rpartition(":")
    if cluster.rank:
        team = Team(cluster.rank, [_call_chief(cluster, (host.strip("[]"), int(port)), purpose, deadline)])
        team.from_chief(lambda: None)
        return team
    found: dict[int, socket.socket] = {}
    problem = _await_others(cluster, int(port), purpose, deadline, found)
    team = Team(0, [found[rank] for rank in sorted(found)])

    def report() -> None:
        if problem is not None:
            raise InputError(problem)

    team.from_chief(report)
    return team


def _await_others(
    cluster: Cluster, port: int, purpose: str, deadline: float, found: dict[int, socket.socket]
) -> str | None:
    """Fills `found` with a connection for each rank; returns what is wrong, if anything is."""
    with _listening(cluster.addresses[0], port) as listener:
        while missing := [rank for rank in range(1, len(cluster.addresses)) if rank not in found]:
            try:
                listener.settimeout(max(deadline - time.monotonic(), 0.01))
                connection, _ = listener.accept()
            except TimeoutError:
                names = ", ".join(f"{rank} ({cluster.addresses[rank]})" for rank in missing)
                return f"worker {names} did not start in time; start all of them together"
            hello = _hello(connection)
            if hello is None or hello["rank"] not in missing:
                connection.close()  # not one of ours
                continue
            found[hello["rank"]] = connection
            if hello["purpose"] != purpose:
                return (
                    f"worker {hello['rank']} was started with other options or versions; "
                    "give every worker the same command and environment"
                )
    return None


@contextmanager
def _listening(address: str, port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as listener:
        try:
            if listener.family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TensorFlow takes the port over
            listener.bind(("", port))
            listener.listen(1024)
        except OSError as cause:
            raise InputError(f"worker 0: cannot listen on {address}: {cause.strerror or cause}") from cause
        yield listener


def _hello(connection: socket.socket) -> dict[str, Any] | None:
    try:
        connection.settimeout(10.0)
        value = json.loads(connection.makefile("rb").readline(4096))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and {"rank", "purpose"} <= set(value) else None


def _call_chief(cluster: Cluster, address: tuple[str, int], purpose: str, deadline: float) -> socket.socket:
    hello = json.dumps({"rank": cluster.rank, "purpose": purpose}).encode() + b"\n"
    pause, reason = 0.05, "nobody listens"
    while True:
        try:
            connection = socket.create_connection(address, timeout=10.0)
            if connection.getsockname() != connection.getpeername():  # else nobody listens: it has met itself
                connection.sendall(hello)
                return connection
            connection.close()
        except OSError as cause:
            reason = cause.strerror or str(cause)
        if time.monotonic() + pause > deadline:
            raise InputError(
                f"worker {cluster.rank}: worker 0 at {cluster.addresses[0]} did not start in time ({reason}); "
                "start all of them together"
            )
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def say_once(team: Team) -> None:
    """Silences messages and progress bars of every process but the chief; errors still show."""
    CONSOLE.quiet = not team.chief
