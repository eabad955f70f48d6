"""The ports: what this library asks of engines, routers, stores, holders of leases, ledgers, probes and other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .agreement import RankOutcome
from .facts import Fact, Facts
from .lease import Driver, Lease, LeasedEngine, LeaseHeld, LeaseUse
from .verdicts import Verdict

if TYPE_CHECKING:
    from .commands import Command, Release
from collections.abc import Sequence

from .calls import Call, Reply
from .capabilities import Capabilities
from .observation import Observation, Probe
from .readings import Process, Reading
from .record import Record
from .requests import RequestCounts
from .tenants import Shortage, Tenancy, Tenant
from .verdicts import Unmeasurable


class EngineAdapter(Protocol):
    """One engine, as this library drives it. No method changes the lifecycle's state; only `send` changes the engine.

    Methods other than `plan` must return within `deadline_s`; an engine that does not answer is a value
    (`Reply.lost`, `Observation.alive`, a verdict), never an exception.
    """

    @property
    def url(self) -> str:
        """Where the engine is, without keys."""

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Reads what the engine can do. Raises ConfigurationError, with the remedy, where it cannot be driven."""

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The remote calls of a command, in order. Pure; empty where nothing needs to be sent."""

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push of weights; ValueError names the ways that the engine has."""

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Makes exactly one remote call, once."""

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Reads what is wanted; never generates, never changes anything."""

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Whether no request can run a step or hold device memory; may drop the prefix cache, and then says so.

        The figure `verdicts.REQUESTS_RUN` is true where requests are what it is not idle for. In an engine that was
        idle and closed, they are taken as the sign that somebody else opened it.
        """

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once everything sent before has taken effect or never will; False where that cannot be known."""

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Whether the engine generates real tokens."""

    async def processes(self) -> tuple[Process, ...] | None:
        """The processes that the engine's tree hangs from; None where they cannot be found."""

    async def aclose(self) -> None:
        """Lets go of connections. The engine is left as it is."""


@runtime_checkable
class KeepsOnHost(Protocol):
    """What an adapter may have beside the port: it knows what a release takes of its host's memory."""

    def host_bytes(self, command: Release, facts: Facts) -> int:
        """Host memory that this release would take, beyond what is kept from the last one to be used again."""


@runtime_checkable
class WaitsForIdle(Protocol):
    """What an adapter may have beside the port: its engine can wait itself until it is idle, so that nobody polls."""

    async def idle_within(self, facts: Facts, *, wait_s: float, deadline_s: float) -> Verdict:
        """As `prove_idle`, answered as soon as the engine is idle, and after `wait_s` seconds where it is not."""


@runtime_checkable
class CountsRequests(Protocol):
    """What an adapter may have beside the port: its engine counts its requests."""

    async def request_counts(self, *, deadline_s: float) -> RequestCounts | None:
        """What was counted until now, by a read or two that change nothing; None where it is not told."""


@runtime_checkable
class KeepsConnections(Protocol):
    """What an adapter may have beside the port: connections that it keeps, over which one server goes on answering."""

    async def boot_anew(self, *, deadline_s: float) -> Observation:
        """As `observe` of the boot alone, over a new connection, for which a balancer may choose another server."""


@runtime_checkable
class ClosesPush(Protocol):
    """What an adapter has beside the port whose engine refuses a push until the one before it was ended."""

    def close_push_call(self) -> Call:
        """Ends a push that failed, and is acknowledged also where none is open; the weights' contents are unknown."""


class ResidualProbe(Protocol):
    """Measures from outside what an engine's process tree holds."""

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """What the trees below `processes` hold now. No process at all is Unmeasurable, never 0."""


class Router(Protocol):
    """Requests reach engines through it. `close` and `open` return once the router has confirmed."""

    async def close(self, engines: Sequence[str]) -> None:
        """No new request is sent to these engines from here on; raises where that is not certain."""

    async def open(self, engines: Sequence[str]) -> None:
        """These engines may be sent requests again."""

    async def is_open(self, engine: str) -> bool | None:
        """Whether the router sends to this engine; None where it does not tell."""

    async def in_flight(self, engine: str) -> int | None:
        """Requests sent to this engine and not yet ended; None where the router does not count."""


@dataclass(frozen=True, slots=True)
class WorkerURL:
    """Where a router reaches an engine. `exact`: the router spells it so; else it may call the host otherwise."""

    url: str
    exact: bool = False


@runtime_checkable
class RoutesToWorkers(Protocol):
    """What a router has beside the port that is a server, and knows engines by the URLs at which it reaches them.

    RouterError says what is wrong where it does not answer as it should, or cannot be asked about an engine.
    """

    @property
    def url(self) -> str:
        """Where the router is, without keys."""

    def knows(self, workers: Mapping[str, WorkerURL]) -> None:
        """These engines, by name, are workers of this router, beside those that it was told of before."""

    async def check(self, engines: Sequence[str]) -> None:
        """The router answers, and can tell whether it sends to these engines. Raises RouterError; changes nothing."""

    async def aclose(self) -> None:
        """Lets go of connections. The router is left as it is."""


class StateStore(Protocol):
    """Keeps the Records of engines across processes. An engine is named by its address (without one, by its URL)."""

    def save(self, engine: str, record: Record) -> None:
        """The record of this engine survives the process. Raises where it cannot be kept."""

    def load(self, engine: str) -> Record | None:
        """The record that was kept last; None where there is none that can be read."""


@runtime_checkable
class LeaseHolder(Protocol):
    """Keeps leases. What it reaches is what is protected: drivers that ask different holders do not see each other.

    It is asked in the event loop's thread, as a store is, and must answer promptly.
    """

    def take(self, driver: Driver, engine: LeasedEngine, use: LeaseUse) -> Lease:
        """The driver has the engine and does this; the lease as it is then. Raises LeaseHeld where another has it.

        The first `use.sends` under a lease counts as a use.
        """

    def free(self, driver: Driver, engine: LeasedEngine) -> None:
        """The driver does not have the engine any more; nothing happens where it does not."""

    def seen(self, engine: LeasedEngine) -> Lease | None:
        """The lease that was taken last of this engine; None where none ever was."""


@runtime_checkable
class TakesTogether(Protocol):
    """What a holder may have beside the port that takes the leases of several engines at the cost of one."""

    def take_all(self, asked: Sequence[tuple[Driver, LeasedEngine, LeaseUse]]) -> list[Lease | LeaseHeld]:
        """As `take`: for each engine its lease, or why it was refused. Raises where none could be written down.

        With `use.goes_on` it is refused, too, where another driver took the lease since this one did, and freed it;
        and, unless something is sent, where it has ended.
        """

    def free_all(self, freed: Sequence[tuple[Driver, LeasedEngine]]) -> None:
        """As `free`, of all of these."""


@runtime_checkable
class RenewsLeases(Protocol):
    """What a holder has beside the port whose leases end unless their drivers renew them.

    `renew` is asked in a thread of its own, every `renew_s` seconds.
    """

    @property
    def renew_s(self) -> float:
        """Seconds between two renewals; a lease must outlast more than one that fails."""

    def renew(self, driver: Driver) -> None:
        """The leases that the driver still has end later. One that has ended stays so."""


class TenantLedger(Protocol):
    """Keeps what tenants may hold of devices. What it reaches is what is protected, as with a holder of leases.

    It is asked in the event loop's thread, and must answer promptly. Where it cannot, it raises LedgerUnusable.
    """

    @property
    def pipeline(self) -> str:
        """The pipeline to which the tenants of this process belong."""

    def reserve(
        self, tenant: Tenant, needs: Mapping[str, int | None], *, totals: Mapping[str, int], wait_s: float
    ) -> Shortage | None:
        """The tenant may hold these bytes of each device from here on (None: an unknown part), or of none of them.

        A shortage says why not, and keeps the tenant's place among those that wait, for `wait_s` seconds. `totals` are
        the sizes of the devices, which are their budgets where no other was stated.
        """

    def waits_no_more(self, name: str) -> None:
        """The tenant of this name is not in line any more."""

    def meets(self, tenant: Tenant, sizes: Mapping[str, int | None], *, given_back: bool) -> None:
        """The tenant may hold this, where nothing is known of it as these processes; else what is known stays."""

    def holds(self, tenant: Tenant, sizes: Mapping[str, int | None], *, given_back: bool) -> None:
        """The tenant may hold just this, whatever the budget is: a fact, and no request. It waits no more."""

    def leaves(self, name: str) -> None:
        """The tenant of this name holds nothing, and waits for nothing."""

    def tenancies(self) -> list[Tenancy]:
        """What every tenant that may live may hold."""


class Agreement(Protocol):
    """Several drivers of one job, its ranks, that go on together or not at all. Each drives engines of its own.

    The n-th barrier of one rank is the n-th of all. What a barrier decided, it decided for all ranks alike.
    """

    @property
    def rank(self) -> int:
        """Which rank this one is, from 0."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    async def agree(self, phase: str, outcome: RankOutcome, *, deadline_s: float) -> Sequence[RankOutcome]:
        """Votes, and returns the outcomes of all ranks, in their order: the same to every rank.

        Returns within `deadline_s`; a rank that did not vote by then is `MISSING` to all, also to itself. Raises
        AgreementLost where it cannot be known what was decided, and ConfigurationError where the ranks do not fit.
        One that is late, and `begins`, votes at the barrier where the others are now.
        """

    async def give_up(self, outcome: RankOutcome, *, deadline_s: float) -> None:
        """Says this to the others, without waiting for them: the caller has left.

        A vote of this rank on which nothing was decided yet is replaced by it. Otherwise it is its vote at the next
        barrier, unless the last one had an outcome after which the others do not go there. What `begins` is said to
        them in any case: after a failure, too, they come to the beginning of another verb.
        """
