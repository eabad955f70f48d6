"""From an address to the processes behind it, on this host."""

from __future__ import annotations

import asyncio
import socket

import psutil

from ..core.readings import Process
from .process_memory import tree

LOOPBACK = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::"}


def here() -> str:
    """The name by which processes of this host are known."""
    return socket.gethostname()


def is_local(host: str) -> bool:
    """Whether this address is one of this host's own."""
    if host in LOOPBACK or host == here():
        return True
    addresses = {address.address for each in psutil.net_if_addrs().values() for address in each}
    return host in addresses


def by_pid(pid: int) -> Process:
    """The process of this pid now, with its start time, so that a later one of the same pid is not taken for it."""
    return Process(node=here(), pid=pid, start_time=psutil.Process(pid).create_time())


def listening_on(port: int) -> tuple[Process, ...]:
    """The processes of this host that listen on a TCP port; the topmost only where several of one tree do."""
    pids = {
        connection.pid
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port == port
        and connection.pid is not None
    }
    found = []
    for pid in pids:
        try:
            found.append(by_pid(pid))
        except psutil.NoSuchProcess:
            continue
    return topmost(found)


def topmost(processes: list[Process]) -> tuple[Process, ...]:
    """Those that hang below no other of them."""
    below = {pid for process in processes for pid in tree(process) - {process.pid}}
    return tuple(process for process in processes if process.pid not in below)


async def find_listening(port: int, *, deadline_s: float) -> tuple[Process, ...]:
    """`listening_on` in a thread, bounded; empty when it took too long."""
    try:
        async with asyncio.timeout(deadline_s):
            return await asyncio.to_thread(listening_on, port)
    except TimeoutError:
        return ()
