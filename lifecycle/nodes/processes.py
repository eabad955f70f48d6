"""Processes of this host: their trees, whether they still exist, which of them listen on a port, their commands."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from os import sysconf
from pathlib import Path

import psutil

from ..core.readings import Process
from ..core.verdicts import Unmeasurable
from .clock import host_boot

#: Whether the kernel shows processes in files.
_PROC = Path("/proc/self/stat").exists()

LOOPBACK = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::"}


def node_name() -> str:
    """Returns the name by which processes of this host are known (`Process.node`)."""
    return socket.gethostname()


def is_local(host: str) -> bool:
    """Returns whether this address is one of this host's own."""
    if host in LOOPBACK or host == node_name():
        return True
    addresses = {address.address for each in psutil.net_if_addrs().values() for address in each}
    return host in addresses


def by_pid(pid: int) -> Process:
    """Returns the process that has this pid now; its start time tells it from a later process of the same pid.

    Raises psutil.NoSuchProcess where there is none.
    """
    return Process(node=node_name(), pid=pid, start_time=_started_s(psutil.Process(pid)))


def start_mark(pid: int) -> str:
    """Returns what tells this process from every other that had or will have its pid here; empty where none has it."""
    after_name = _stat(pid)
    if after_name:
        return "" if after_name[0] in ("Z", "X") else f"{node_name()}/{host_boot()}/{after_name[19]}"
    try:
        return f"{node_name()}//{psutil.Process(pid).create_time():.0f}" if not _PROC else ""
    except psutil.NoSuchProcess:
        return ""


@cache
def pid_namespace() -> str:
    """Returns what tells the pid namespace of this process from others; pids of another mean nothing here.

    Empty where the kernel has none.
    """
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, behind its name; empty where it says nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started_s(process: psutil.Process) -> float:
    """When it started, by a clock of this boot of the host that nobody sets.

    The kernel counts from its boot, and psutil adds the time of that: it moves with the wall clock, and a process would
    be another one once the clock was set. What is added here is the same for one boot, and another for the next.
    """
    after_name = _stat(process.pid)
    if not after_name:  # it ended, or no kernel shows it in a file
        return process.create_time()
    return _boot_s() + int(after_name[19]) / sysconf("SC_CLK_TCK")


@cache
def _boot_s() -> float:
    """A number of this boot of the host, far from those of others."""
    return int(host_boot()[:6] or "0", 16) * 1e6


def tree_pids(root: Process) -> set[int]:
    """Returns the pids of this process and of all below it; empty if it ended or its pid belongs to another process."""
    try:
        process = _existing(root)
        return set() if process is None else {process.pid, *(child.pid for child in process.children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()


def pids_of_trees(roots: Iterable[Process]) -> frozenset[int]:
    """Returns the pids of these processes and of all below them."""
    return frozenset(pid for root in roots for pid in tree_pids(root))


def process_trees(roots: Sequence[Process]) -> tuple[Process, ...]:
    """Returns these processes and, for those of this host, every process below them now.

    A child may outlive its parent. Who keeps this list can tell later whether anything of the tree still exists.
    """
    local = [root for root in roots if root.agent is None]
    below = sorted(pids_of_trees(local) - {root.pid for root in local})
    return (*roots, *_still_there(below))


def above(pid: int) -> tuple[int, ...]:
    """Returns the pids of the processes above this one, its parent first; none where it has ended."""
    try:
        return tuple(parent.pid for parent in psutil.Process(pid).parents())
    except psutil.NoSuchProcess:
        return ()


def root_processes(processes: Sequence[Process]) -> tuple[Process, ...]:
    """Returns those of these processes that are below no other of them."""
    if len(processes) < 2:
        return tuple(processes)
    below = {pid for process in processes for pid in tree_pids(process) - {process.pid}}
    return tuple(process for process in processes if process.pid not in below)


def listeners() -> Mapping[int, frozenset[int]]:
    """Returns the pids of this host's processes that listen on TCP ports, by port. Reads every process's open files."""
    found: dict[int, set[int]] = {}
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.pid is not None:
            found.setdefault(connection.laddr.port, set()).add(connection.pid)
    return {port: frozenset(pids) for port, pids in found.items()}


def clients() -> Mapping[int, frozenset[int]]:
    """Returns the pids of this host's processes that hold an established TCP connection, by the port of its far end."""
    found: dict[int, set[int]] = {}
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_ESTABLISHED and connection.raddr and connection.pid is not None:
            found.setdefault(connection.raddr.port, set()).add(connection.pid)
    return {port: frozenset(pids) for port, pids in found.items()}


def roots_of(pids: Iterable[int]) -> tuple[Process, ...]:
    """Returns those of these processes that still exist, without those that are below another of them."""
    return root_processes(_still_there(pids))


def is_alive(process: Process) -> bool:
    """Returns whether this process still exists; a zombie holds no memory and counts as ended."""
    try:
        return _existing(process) is not None
    except psutil.NoSuchProcess:
        return False


def command_of(pid: int) -> str:
    """Returns the first words of the command line, at most 80 characters, for messages.

    A process that ended, or that another pid namespace hides, is "not visible from here".
    """
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
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


def of_other_user(pid: int) -> Unmeasurable:
    """Returns why this process cannot be measured: /proc shows its memory and environment to its own user only."""
    return Unmeasurable(reason=f"pid {pid} belongs to another user; run as that user or as root")


def _existing(process: Process) -> psutil.Process | None:
    """The process of this pid, unless it is a zombie or has another start time. Raises psutil.NoSuchProcess."""
    found = psutil.Process(process.pid)
    # The kernel counts start times in hundredths of a second, so that two readings of one may differ a little.
    same = abs(_started_s(found) - process.start_time) < 0.5
    return found if same and found.status() != psutil.STATUS_ZOMBIE else None


def _still_there(pids: Iterable[int]) -> list[Process]:
    """Those of these processes that have not ended meanwhile."""
    found = []
    for pid in pids:
        try:
            found.append(by_pid(pid))
        except psutil.NoSuchProcess:
            continue
    return found
