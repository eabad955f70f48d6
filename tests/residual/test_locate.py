"""From processes to their nodes, one loop for all who ask; from an address to processes; trees of processes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from lifecycle import Policy, Process, Unmeasurable
from lifecycle.core.readings import Reading
from lifecycle.nodes import locate
from lifecycle.nodes.address import parse
from lifecycle.nodes.locate import by_node, ended, find_processes
from lifecycle.nodes.probes import NodeProbe
from lifecycle.nodes.process_env import preloaded
from lifecycle.nodes.processes import by_pid, process_trees, root_processes
from lifecycle.nodes.remote import RemoteNode
from lifecycle.nodes.this_host import ThisHost


def on(agent: str | None, pid: int) -> Process:
    return Process("n", pid, 0.0, agent=agent)


SPREAD = [on("a:1", 1), on(None, 2), on("b:1", 3), on("a:1", 4)]


def test_each_node_comes_once_with_its_processes_in_their_order() -> None:
    found = list(by_node(SPREAD))
    assert [[process.pid for process in there] for _, there in found] == [[1, 4], [2], [3]]
    assert [getattr(node, "address", None) for node, _ in found] == ["a:1", None, "b:1"]
    assert [type(node) for node, _ in found] == [RemoteNode, ThisHost, RemoteNode]
    assert list(by_node([])) == []


class Silent:
    """A node that uses up every deadline and notes it."""

    asked: list[tuple[Any, float]]

    def __init__(self, address: str | None = None, threshold_gib: float | None = None) -> None:
        self.threshold_gib = threshold_gib

    async def read(self, processes: Any, *, kind: str, scope: str, deadline_s: float) -> Reading | Unmeasurable:
        self.asked.append((self.threshold_gib, deadline_s))
        return Reading({f"gpu-{processes[0].pid}": 1}, (), kind)

    async def any_alive(self, processes: Any, *, deadline_s: float) -> bool | None:
        self.asked.append((processes[0].agent, deadline_s))
        await asyncio.sleep(deadline_s / 2)
        return False


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> type[Silent]:
    Silent.asked = []
    monkeypatch.setattr(locate, "RemoteNode", Silent)
    monkeypatch.setattr(locate, "ThisHost", Silent)
    return Silent


async def test_the_probe_reads_every_node_and_gives_agents_the_threshold(silent: type[Silent]) -> None:
    reading = await NodeProbe("cuda", Policy(residual_threshold_gib=1.5)).read(SPREAD, deadline_s=5)
    assert isinstance(reading, Reading)
    assert reading.devices == {"gpu-1": 1, "gpu-2": 1, "gpu-3": 1}
    assert [threshold for threshold, _ in silent.asked] == [1.5, None, 1.5]


async def test_nodes_share_one_deadline(silent: type[Silent]) -> None:
    assert await ended(SPREAD, deadline_s=0.4)
    given = [deadline_s for _, deadline_s in silent.asked]
    assert given == pytest.approx([0.4, 0.2, 0.1], abs=0.05)


async def test_an_unknown_node_is_not_known_to_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        agent = f"127.0.0.1:{free.getsockname()[1]}"
    assert not await ended([on(agent, 1)], deadline_s=5)
    assert not await ended([], deadline_s=5)


async def test_the_listener_on_a_port_of_this_host_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert await find_processes(parse(f"loopback://127.0.0.1:{port}"), deadline_s=10) == (by_pid(os.getpid()),)
    assert await find_processes(parse(f"loopback://127.0.0.1:{port}"), deadline_s=10) is None
    assert await find_processes(parse("loopback://192.0.2.1:80"), deadline_s=10) is None, "another host, no agent"


def test_a_tree_is_listed_with_its_children_and_has_one_root() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        mine, below = by_pid(os.getpid()), by_pid(child.pid)
        elsewhere = on("a:1", child.pid)
        assert process_trees([mine, elsewhere])[:2] == (mine, elsewhere)
        assert below in process_trees([mine])
        assert process_trees([elsewhere]) == (elsewhere,)
        assert root_processes([below, mine]) == (mine,)
    finally:
        child.communicate(b"\n", timeout=10)


def test_libraries_in_ld_preload_are_separated_by_colons_or_spaces() -> None:
    saver = "/site/torch_memory_saver_hook_mode_preload.abi3.so"
    assert preloaded({"LD_PRELOAD": f"/a.so {saver}:/b.so"}) == ([saver], ["/a.so", "/b.so"])
    assert preloaded({}) == ([], [])
