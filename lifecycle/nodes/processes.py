"""Processes of this host: their trees, whether they still exist, which are clients of a port, their commands."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from ipaddress import ip_address

import psutil

from ..core.readings import Process
from ..core.verdicts import Unmeasurable
from .clock import host_boot
from .process_table import PROC, Entry, above, content_of, entry, trees

LOOPBACK = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::"}


def node_name() -> str:
    """Returns the name by which processes of this host are known (`Process.node`)."""
    return socket.gethostname()


def is_local(host: str) -> bool:
    """Returns whether this address is one of this host's own.

    Of the loopback network that is 127.0.0.1 alone: what is bound to another address of it, only somebody who meant it
    to be told apart has bound there.
    """
    return host in LOOPBACK or host == node_name() or host in own_addresses()


def own_addresses() -> frozenset[str]:
    """Returns the IP addresses of this host's interfaces."""
    found = (address for each in psutil.net_if_addrs().values() for address in each)
    return frozenset(each.address for each in found if each.family in (socket.AF_INET, socket.AF_INET6))


def is_loopback(host: str) -> bool:
    """Returns whether this name means the host itself on every host."""
    try:
        return host in LOOPBACK or ip_address(host).is_loopback
    except ValueError:
        return False


def by_pid(pid: int) -> Process:
    """Returns the process that has this pid now; its start time tells it from a later process of the same pid.

    Raises psutil.NoSuchProcess where there is none.
    """
    return Process(node_name(), pid, _entry(pid).started_s)


def start_mark(pid: int) -> str:
    """Returns what tells this process from every other that had or will have its pid here; empty where none has it."""
    each = entry(pid)
    if each is None or each.state in "ZX":
        return ""
    return f"{node_name()}/{host_boot()}/{each.ticks}" if PROC else f"{node_name()}//{each.started_s:.0f}"


@cache
def pid_namespace() -> str:
    """Returns what tells the pid namespace of this process from others; pids of another mean nothing here.

    Empty where the kernel has none.
    """
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def pids_of_trees(roots: Iterable[Process]) -> frozenset[int]:
    """Returns the pids of these processes and of all below them, without roots that have ended."""
    asked = tuple(roots)
    return frozenset(trees([asked])[asked])


def process_trees(roots: Sequence[Process]) -> tuple[Process, ...]:
    """Returns these processes and, for those of this host, every process below them now.

    A child may outlive its parent. Who keeps this list can tell later whether anything of the tree still exists.
    """
    local = tuple(root for root in roots if root.agent is None)
    return with_below(roots, trees([local])[local])


def with_below(roots: Sequence[Process], found: Mapping[int, Process]) -> tuple[Process, ...]:
    """Returns these processes, and after them those that were found of their trees besides, by pid."""
    return (*roots, *(found[pid] for pid in sorted(found.keys() - {root.pid for root in roots if root.agent is None})))


def root_processes(processes: Sequence[Process]) -> tuple[Process, ...]:
    """Returns those of these processes that are below no other of them."""
    if len(processes) < 2:
        return tuple(processes)
    pids, parents = {process.pid for process in processes}, above(process.pid for process in processes)
    return tuple(process for process in processes if pids.isdisjoint(parents[process.pid]))


def clients() -> Mapping[int, frozenset[int]]:
    """Returns the pids of this host's processes that hold an established TCP connection, by the port of its far end."""
    found: dict[int, set[int]] = {}
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_ESTABLISHED and connection.raddr and connection.pid is not None:
            found.setdefault(connection.raddr.port, set()).add(connection.pid)
    return {port: frozenset(pids) for port, pids in found.items()}


def roots_of(pids: Iterable[int]) -> tuple[Process, ...]:
    """Returns those of these processes that still exist, without those that are below another of them."""
    node = node_name()
    return root_processes([Process(node, each.pid, each.started_s) for each in map(entry, pids) if each is not None])


def is_alive(process: Process) -> bool:
    """Returns whether this process still exists; a zombie holds no memory and counts as ended. Reads one small file."""
    each = entry(process.pid)
    return each is not None and each.is_still(process)


def command_of(pid: int) -> str:
    """Returns the first words of the command line, at most 80 characters, for messages.

    A process that ended, or that another pid namespace hides, is "not visible from here".
    """
    try:
        raw = content_of(f"/proc/{pid}/cmdline")
    except OSError:
        return "not visible from here"
    words = [part.decode(errors="replace") for part in raw.split(b"\0")[:4] if part]
    return " ".join(words)[:80] or "no command line"


def on_other_node(processes: Sequence[Process]) -> Unmeasurable | None:
    """Returns why these processes cannot be measured here: one of them runs on another node. None if all are local."""
    away = next((process for process in processes if process.node != node_name()), None)
    if away is None:
        return None
    return Unmeasurable(reason=f"pid {away.pid} runs on {away.node}; give its URL agent=HOST:PORT")


def none_left(processes: Sequence[Process]) -> Unmeasurable:
    """Returns why nothing was measured: all these processes have ended. That is never reported as 0 bytes."""
    pids = ", ".join(str(process.pid) for process in processes) or "none known"
    return Unmeasurable(reason=f"no process of the engine is left to measure (pids: {pids})")


def said_ended(processes: Sequence[Process]) -> str:
    """That these processes have ended, in words."""
    pids = ", ".join(str(each.pid) for each in processes)
    return f"pids {pids} have ended" if len(processes) > 1 else f"pid {pids} has ended"


def of_other_user(pid: int) -> Unmeasurable:
    """Returns why this process cannot be measured: /proc shows its memory and environment to its own user only."""
    return Unmeasurable(reason=f"pid {pid} belongs to another user; run as that user or as root")


def _entry(pid: int) -> Entry:
    """What the kernel says of this process. Raises psutil.NoSuchProcess."""
    each = entry(pid)
    if each is None:
        raise psutil.NoSuchProcess(pid)
    return each
