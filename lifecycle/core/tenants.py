"""Tenants: who may hold memory of which device, and how much at most.

A tenant is an engine, by its address, or a trainer, by its name. What it may hold is written in a ledger before it
takes more, and is lowered once what it gave back was measured. Sizes are bytes of one device, of the whole process
trees of the tenant. A device is a GPU's or a MIG instance's UUID, or `host:NAME` for the memory of a host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import ConfigurationError
from .lease import clock
from .readings import Process
from .units import mib


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who takes memory: `name` tells it from others, `who` says it in words.

    `processes` are those whose memory it is: once all have ended it holds nothing. An engine that comes back beside the
    trainer of its own `pipeline` does not wait behind others for the device.
    """

    name: str
    kind: Literal["engine", "trainer"]
    who: str
    pipeline: str
    processes: tuple[Process, ...] = ()


@dataclass(frozen=True, slots=True)
class Tenancy:
    """What one tenant may hold of one device at most; `size_bytes` is None where that is not known.

    `given_back`: it is what was left when the tenant gave its memory back, as measured then. `since_s` is in seconds
    since 1970.
    """

    device: str
    tenant: Tenant
    size_bytes: int | None
    given_back: bool
    since_s: float

    def __str__(self) -> str:
        size = "an unknown part" if self.size_bytes is None else mib(self.size_bytes)
        return f"{self.tenant.who} may hold {size} of it since {clock(self.since_s)}"


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a tenant may not take what it needs of a device: what the others may hold of it leaves too little.

    `need_bytes` is None where it is not known. `ahead` are those that wait for the device for longer.
    """

    device: str
    need_bytes: int | None
    budget_bytes: int
    others: tuple[Tenancy, ...] = ()
    ahead: tuple[Tenant, ...] = ()

    def __str__(self) -> str:
        need = "an unknown part of it is" if self.need_bytes is None else f"{mib(self.need_bytes)} of it are"
        said = [str(each) for each in self.others] + [f"{each.who} waits for it for longer" for each in self.ahead]
        why = "; ".join(said) or "nobody else holds any, so it is too small for this tenant"
        return f"the budget of {self.device} is {mib(self.budget_bytes)}, and {need} needed: {why}"


class LedgerUnusable(ConfigurationError):
    """The ledger cannot be asked or written; the message says why, and what would help."""


class NoRoom(TimeoutError):
    """A tenant got no room on its devices in time; the message names who holds them."""


class NotGivenBack(RuntimeError):
    """A tenant that leaves its devices still holds more of them than it may keep."""
