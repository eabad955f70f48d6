"""Memory of devices for a trainer: taken when the other tenants have given it back, and given back by measure.

A trainer that is no engine of this library takes part in the ledger of tenants by `occupying`. It goes in where the
ledger and the devices both say that there is room *now*: the ledger knows what the others may take again, the device
what somebody holds whom the ledger does not know, or who has taken his memory back since. It has left once what its
processes still hold was measured.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from ..core.deadline import Deadline
from ..core.errors import ConfigurationError
from ..core.policy import Policy, positive
from ..core.ports import TenantLedger
from ..core.readings import Process, Reading
from ..core.tenants import NoRoom, NotGivenBack, Tenant
from ..core.units import mib
from ..core.verdicts import Proved, Unmeasurable
from ..nodes.locate import sizes_of_devices
from ..nodes.probes import NodeProbe
from ..nodes.processes import by_pid, node_name
from ..nodes.this_host import ThisHost
from .headroom import judge

#: Seconds that a trainer is given to let its memory go when it leaves.
LEAVE_S = 10.0

#: The trainers of this process that are inside, by name.
_inside: set[str] = set()


@asynccontextmanager
async def occupying(
    ledger: TenantLedger,
    needs: Mapping[str, int],
    *,
    name: str,
    deadline_s: float,
    keeps_bytes: int | None = None,
    policy: Policy | None = None,
) -> AsyncIterator[None]:
    """Inside, this process and those below it may hold up to `needs[device]` bytes of each device, all it has included.

    `keeps_bytes` is what it may hold of each after it has left (default: the policy's residual threshold). Waits in
    line for `deadline_s` seconds, then raises NoRoom, which names who holds the devices. NotGivenBack says that it
    still held more LEAVE_S seconds after the end; the ledger has the devices as held then. ConfigurationError where a
    device cannot be measured, or the ledger not be used.
    """
    policy = policy or Policy()
    positive("deadline_s", deadline_s)
    if not needs:
        raise ConfigurationError(f"{name}: no device is named")
    for device, size in needs.items():
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
            raise ConfigurationError(f"{name}: needs[{device!r}]: a number of bytes > 0, got {size!r}")
    me = (by_pid(os.getpid()),)
    tenant = Tenant(name, "trainer", f"trainer {name} (pid {os.getpid()} on {node_name()})", ledger.pipeline, me)
    keeps = policy.threshold_bytes if keeps_bytes is None else keeps_bytes
    if name in _inside:
        raise ConfigurationError(f"{name}: this process is inside under that name already; give each block its own")
    _inside.add(name)
    try:
        async with _occupied(ledger, tenant, needs, keeps, Deadline(deadline_s), policy):
            yield
    finally:
        _inside.discard(name)


@asynccontextmanager
async def _occupied(
    ledger: TenantLedger, tenant: Tenant, needs: Mapping[str, int], keeps: int, deadline: Deadline, policy: Policy
) -> AsyncIterator[None]:
    await _enter(ledger, tenant, needs, keeps, deadline, policy)
    try:
        yield
    except BaseException as error:
        try:
            await _leave(ledger, tenant, needs, keeps, policy)
        except (NotGivenBack, ConfigurationError) as held:
            error.add_note(str(held))
        raise
    await _leave(ledger, tenant, needs, keeps, policy)


async def _enter(
    ledger: TenantLedger, tenant: Tenant, needs: Mapping[str, int], keeps: int, deadline: Deadline, policy: Policy
) -> None:
    """The ledger and the devices have room."""
    held = await _held(tenant.processes, needs, policy, deadline.left_s)
    if isinstance(held, Unmeasurable):
        raise ConfigurationError(f"{tenant.who}: what it holds cannot be measured: {held.reason}")
    totals, host = dict[str, int](), f"host:{node_name()}"
    for device in needs:
        totals |= await sizes_of_devices(tenant.processes, [device], deadline_s=deadline.left_s)
        if device not in totals or (device.startswith("host:") and device != host):
            raise ConfigurationError(
                f"{tenant.who}: there is no device {device} here that tells its size; name it by the UUID that "
                f"`nvidia-smi -L` shows (of a divided GPU its MIG instance), or {host}"
            )
    entered = False
    try:
        while True:
            wait_s = deadline.left_s + 2 * policy.poll_s
            short = ledger.reserve(tenant, needs, totals=totals, wait_s=wait_s)
            why = str(short) if short is not None else await _taken(tenant, needs, held, deadline)
            if not why:
                entered = True
                return
            if deadline.left_s <= 0:
                raise NoRoom(f"{tenant.who}: no room in {deadline.total_s:.1f} s: {why}")
            await asyncio.sleep(min(policy.poll_s, deadline.left_s))
    finally:
        if not entered:
            ledger.holds(tenant, held, given_back=all(size <= keeps for size in held.values()))


async def _taken(tenant: Tenant, needs: Mapping[str, int], held: Mapping[str, int], deadline: Deadline) -> str:
    """Why the devices have no free memory for this now; empty where they have."""
    for device, need in needs.items():
        missing = max(0, need - held.get(device, 0))
        free = await ThisHost().free_memory(
            [device], tenant.processes, need_bytes=missing, deadline_s=deadline.look_s(0.5)
        )
        verdict = judge(missing, free, tenant.name)
        if not isinstance(verdict, Proved):
            return verdict.reason
    return ""


async def _leave(
    ledger: TenantLedger,
    tenant: Tenant,
    needs: Mapping[str, int],
    keeps_bytes: int,
    policy: Policy,
) -> None:
    """What the process still holds is measured, and is what the ledger has of it from here on."""
    deadline = Deadline(LEAVE_S)
    while True:
        held = await _held(tenant.processes, needs, policy, deadline.look_s(0.5))
        still = {} if isinstance(held, Unmeasurable) else {d: size for d, size in held.items() if size > keeps_bytes}
        if isinstance(held, Mapping) and not still:
            ledger.holds(tenant, held, given_back=True)
            return
        if deadline.left_s <= 0:
            break
        await asyncio.sleep(min(policy.poll_s, deadline.left_s))
    if isinstance(held, Unmeasurable):
        raise NotGivenBack(f"{tenant.who}: what it still holds cannot be measured: {held.reason}")
    ledger.holds(tenant, held, given_back=False)
    said = ", ".join(f"{mib(size)} of {device}" for device, size in still.items())
    raise NotGivenBack(
        f"{tenant.who}: it still holds {said}, and may keep {mib(keeps_bytes)}; nobody else gets the device. "
        "Free what it allocated, then enter and leave again, or end the process"
    )


async def _held(
    processes: tuple[Process, ...], devices: Iterable[str], policy: Policy, deadline_s: float
) -> dict[str, int] | Unmeasurable:
    """What these processes and those below them hold of each of the devices."""
    clock, found = Deadline(deadline_s), dict[str, int]()
    hosts = {device for device in devices if device.startswith("host:")}
    for kind, wanted in (("cpu", hosts), ("cuda", set(devices) - hosts)):
        if not wanted:
            continue
        reading = await NodeProbe("cpu" if kind == "cpu" else "cuda", policy).read(processes, deadline_s=clock.look_s())
        if isinstance(reading, Reading):
            found |= {device: size for device, size in reading.devices.items() if device in wanted}
        elif reading.figures.get("resident_bytes") != 0:
            return reading
    return {device: found.get(device, 0) for device in devices}
