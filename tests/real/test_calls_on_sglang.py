"""How many requests each command of a cycle sends a real SGLang. docs/measured/calls.md says what each is for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from lane import POLICY, Lane, address, source
from server import RealSGLang

from lifecycle import BaseObserver, Command, Fleet, State

#: The most requests of each command. A look that is older than `evidence_max_age_s` is made again, and a real engine
#: takes its time, so that a command may ask again for the boot and the admission.
MOST = {
    "pause": 5,
    "drain": 3,
    "release": 6,
    "restore_weights": 3,
    "update_weights": 4,
    "restore_kv": 4,
    "resume": 6,
}
CYCLE = 21


class Requests(BaseObserver):
    """The requests of an adapter's HTTP client, by the command in which they were sent."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[str]] = {}
        self._command = "connect"

    def command_started(self, engine: str, command: Command, state: State) -> None:
        self._command = command.name

    def watch(self, adapter: Any) -> None:
        """Every request of this adapter is counted from here on."""
        request = adapter._http.request

        async def counted(method: str, path: str, **options: Any) -> Any:
            self.of.setdefault(self._command, Counter())[f"{method} {path.partition('?')[0]}"] += 1
            return await request(method, path, **options)

        adapter._http.request = counted


@pytest.fixture
def sglang(lane: Lane) -> RealSGLang:
    """The running server. Each test leaves it serving the first checkpoint."""
    return lane.serve("plain")


async def test_the_requests_of_each_command(sglang: RealSGLang, record_property: Any) -> None:
    requests = Requests()
    fleet = Fleet.connect([address(sglang)], policy=POLICY, observers=[requests])
    requests.watch(fleet.engines[0].adapter)
    async with fleet:
        connect = requests.of.pop("connect").total()
        for _ in range(2):  # the first release learns the sizes
            requests.of.clear()
            await fleet.offload(weights=source(0))
            await fleet.onload()
    by_command = {command: counted.total() for command, counted in requests.of.items()}
    line = ", ".join(f"{command} {count}" for command, count in by_command.items())
    record_property("report", f"requests of a cycle from disk: {sum(by_command.values())} ({line}), connect {connect}")
    assert by_command.keys() == MOST.keys()
    assert all(count <= MOST[command] for command, count in by_command.items()), requests.of
    assert sum(by_command.values()) <= CYCLE + 4, requests.of
    assert connect <= 6
