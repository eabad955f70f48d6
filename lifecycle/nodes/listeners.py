"""Which processes of this host a URL's host and port reach: not each that listens on that port, at whatever address.

A socket that is bound to an address gets what is sent there; one that is bound to none gets the rest. A name is
resolved as whoever connects to it would resolve it. Where it means no address of this host (the host is behind another
address, or is one of several on which an engine runs), only the port tells.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import psutil

from ..core.readings import Process
from .processes import own_addresses, roots_of

IP = IPv4Address | IPv6Address

#: A host as a URL spells it, or None for any, and a port.
Question = tuple[str | None, int]

ANY_IPV4, ANY_IPV6 = IPv4Address("0.0.0.0"), IPv6Address("::")
LOOPBACK_IPV4, LOOPBACK_IPV6 = IPv4Address("127.0.0.1"), IPv6Address("::1")

#: What a client reaches that connects to no address in particular, and to the name that needs no resolver.
_MEANT: dict[str, frozenset[IP]] = {
    "localhost": frozenset({LOOPBACK_IPV4, LOOPBACK_IPV6}),
    str(ANY_IPV4): frozenset({LOOPBACK_IPV4}),
    str(ANY_IPV6): frozenset({LOOPBACK_IPV6, LOOPBACK_IPV4}),
}


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that listens at this address, which is 0.0.0.0 or :: for every one."""

    address: IP
    pid: int


def listening_roots(asked: Iterable[Question]) -> dict[Question, tuple[Process, ...]]:
    """Returns, for each host and port, the processes that listen there, without those below another of them.

    Reads every process's open files, once.
    """
    found = listeners()
    return {(host, port): roots_of(reached(found.get(port, ()), host)) for host, port in asked}


def listeners() -> dict[int, list[Listener]]:
    """Returns the processes of this host that listen on TCP ports, by port."""
    found: dict[int, list[Listener]] = {}
    for each in psutil.net_connections(kind="tcp"):
        if each.status == psutil.CONN_LISTEN and each.laddr and each.pid is not None:
            found.setdefault(each.laddr.port, []).append(Listener(_plain(each.laddr.ip), each.pid))
    return found


def reached(listening: Collection[Listener], host: str | None) -> frozenset[int]:
    """Returns the pids of those that a client of this host reaches; all where its name is no address of this host."""
    addresses = frozenset[IP]() if host is None else _addresses_of(host)
    if not addresses:
        return frozenset(each.pid for each in listening)
    bound = frozenset(each.pid for each in listening if each.address in addresses)
    return bound or frozenset(each.pid for each in listening if _takes_the_rest(each.address, addresses))


def _takes_the_rest(bound: IP, addresses: frozenset[IP]) -> bool:
    """Whether a socket of this address gets what is sent to one of those; one of :: gets IPv4 too."""
    return bound == ANY_IPV6 or (bound == ANY_IPV4 and any(each.version == 4 for each in addresses))


def _addresses_of(host: str) -> frozenset[IP]:
    """The addresses of this host that this name means; none where it means none, or nobody resolves it."""
    if host in _MEANT:
        return _MEANT[host]
    try:
        found = frozenset(_plain(str(each[4][0])) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError:
        return frozenset()
    own = {_plain(each) for each in own_addresses()}
    return frozenset(each for each in found if each.is_loopback or each in own)


def _plain(address: str) -> IP:
    """The address; of an IPv4 address in an IPv6 one, that. The name of an interface behind a % is left out."""
    found = ip_address(address.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found
