"""The Session: what one engine is driven with, and its Record, of which this is the only writer.

A record is committed in one order: the edge is looked up and its guards are asked (pure), the next record is saved, it
becomes the present one, the observers are told. So a commit that fails has changed nothing, and nothing is rolled back.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

from ..core.capabilities import NOTHING_KNOWN, Capabilities
from ..core.commands import Command
from ..core.deadline import Deadline
from ..core.errors import ConfigurationError, EngineBusy, EngineHeld, GuardRefused, InvalidTransition
from ..core.facts import Facts, Tag
from ..core.frozen import replace
from ..core.lease import Lease, LeaseHeld, clock
from ..core.observer import Observers
from ..core.policy import Policy
from ..core.ports import EngineAdapter, LeaseHolder, ResidualProbe, StateStore, TenantLedger
from ..core.record import NOTHING_YET, Record
from ..core.states import State
from ..core.transition import Transition
from ..nodes.probes import probe_for
from ..nodes.same_address import address_of
from ..rules.evidence import Context, Evidence
from ..rules.freshness import NOTHING_OBSERVED
from ..rules.machine import next_state
from ..rules.table import not_allowed
from ..store.journal import Journal
from ..store.sqlite import Store
from .edge import Edge
from .fates import Requests
from .journaling import EngineJournal
from .owner import Owner
from .tenancy import EngineTenancy
from .windows import TrainerWindow

_NOTHING = Evidence()

#: Whether a record must be saved for the commit to count, is saved where that works, or is not saved.
#: "begin": as "must", of a command that can then be written down to its end.
Save = Literal["begin", "must", "try", "no"]


class NotSaved(Exception):
    """A record that must be saved could not be; `__cause__` is what the store raised."""


class Session:
    """One engine as this process drives it. Everything but record and policy stays as it is from connect() on."""

    def __init__(
        self,
        adapter: EngineAdapter,
        *,
        name: str,
        group: str,
        policy: Policy,
        observers: Observers,
        probe: ResidualProbe | None,
        adapt_probe: Callable[[ResidualProbe], ResidualProbe],
        has_router: bool,
        store: StateStore | None,
        lease: LeaseHolder | None = None,
        tenants: TenantLedger | None = None,
    ) -> None:
        self.adapter = adapter
        self.name = name
        self.group = group
        self.policy = policy
        self.observers = observers
        self.has_router = has_router
        self.store = store
        #: Where what is known is kept beside the leases, for the next driver, by the one that has the engine.
        self.shared: StateStore | None = None
        #: What the engine is called in a store and by a holder of leases: its address, else its URL.
        address = address_of(adapter.url)
        self.key = address or str(adapter.url)
        #: Whether other processes can reach the engine: its URL has a host and a port.
        self.reachable = address is not None
        self.owner = Owner(lease, name=name, address=self.key)
        self.tenancy = EngineTenancy(tenants, adapter, name=name, key=self.key, unique=self.reachable, owner=self.owner)
        #: The command under way, the fleet's move that the engine takes part in, and the trainer's window, if any.
        self.busy: str | None = None
        self.in_move: str | None = None
        self.window: TrainerWindow | None = None
        self.draining: asyncio.Timeout | None = None  #: The limit of the drain under way, by which it can be given up.
        self._waiting: tuple[asyncio.Future[None], ...] = ()
        self.requests = Requests(adapter)
        self._record = NOTHING_YET
        #: What was observed since the command or the move began that has the engine now.
        self.observed = NOTHING_OBSERVED
        self.journal = EngineJournal(self.owner, name=name, key=self.key, of=self)
        #: Why the engine is in its state, in words; empty where that was not said.
        self.reason = ""
        #: When its state was entered on evidence, or seen to be so still (seconds, monotonic).
        self.confirmed_at_s = float("-inf")
        self._capabilities: Capabilities | None = None
        self._probe = probe if probe is None else adapt_probe(probe)
        self._adapt_probe = adapt_probe

    @property
    def record(self) -> Record:
        """All that is known of the engine."""
        return self._record

    @property
    def state(self) -> State:
        """Where the engine is."""
        return self._record.state

    @property
    def facts(self) -> Facts:
        """What is known of it, fact by fact."""
        return self._record.facts

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do; nothing where it was gone by then. ConfigurationError before connect()."""
        if self._capabilities is None and self.state is State.GONE:
            return NOTHING_KNOWN
        if self._capabilities is None:
            raise ConfigurationError(f"{self.name}: not connected yet; await connect() first")
        return self._capabilities

    @property
    def connected(self) -> bool:
        """Whether what the engine can do is known."""
        return self._capabilities is not None

    def capabilities_changed(self, capabilities: Capabilities) -> None:
        """What the engine can do is something else now."""
        self._capabilities = capabilities

    @property
    def probe(self) -> ResidualProbe:
        """What measures the memory of its processes."""
        if self._probe is None:
            self._probe = self._adapt_probe(probe_for(self.capabilities, self.policy))
        return self._probe

    def hold_to(self, policy: Policy) -> None:
        """The engine is held to this policy from here on; EngineBusy while a command or a move has it."""
        holder = self.holder()
        if holder is not None:
            raise EngineBusy(holder, **self.about("hold_to"))
        self.policy = policy

    async def connect(self, *, deadline_s: float) -> None:
        """What the engine can do is known."""
        self._capabilities = await self.adapter.connect(deadline_s=deadline_s)

    # the record

    def commit(self, record: Record, edge: Edge | None = None, *, save: Save | None = None) -> Transition | None:
        """`record` is what is known from here on, in the state to which `edge` leads; returns the transition, if any.

        Raises NoSuchEdge or Refusals, and with `save="must"` NotSaved; nothing changed then. Without an edge nothing
        is saved unless it is asked for: a store is written once before an engine is touched, and once after every edge.
        An edge is entered even where it cannot be saved; what is kept is older then, and that is logged.
        """
        transition = None if edge is None else self._transition(edge)
        if transition is not None:
            record = replace(record, state=transition.dest)
        noted = transition is not None or self._record.uncertain.needs_barrier
        refusable = save in ("begin", "must")
        if noted and not refusable:  # it is written with its row; what may be refused is noted once it was not
            self.journal.committed(self._record, record, transition)
        if (edge is not None or save is not None) and self.keeps_records:
            save_together([(self, record)], save or "try")
        if noted and refusable:
            self.journal.committed(self._record, record, transition)
        self._record = record
        self.tenancy.committed(record)
        if edge is not None and transition is not None:
            self.reason = edge.reason
            self.confirmed_at_s = time.monotonic() if edge.on_evidence else float("-inf")
            self.observers.notify("transition", transition)
        return transition

    def _transition(self, edge: Edge) -> Transition:
        source, dest = self._record.state, next_state(self._record.state, edge.trigger, edge.context)
        requests = self.requests.entered(source, dest, edge.trigger, edge.requests)
        return edge.transition(self.name, self.group, source, dest, requests)

    def go(self, trigger: str, *, reason: str, command: str = "") -> None:
        """The engine went along one edge, knowing what it knew."""
        self.commit(self._record, Edge(trigger, command, reason=reason))

    @property
    def keeps_records(self) -> bool:
        """Whether what is known of the engine is kept anywhere."""
        return self.store is not None or self.shared is not None

    def stores(self, record: Record, save: Save) -> Iterator[StateStore]:
        """Where a record is to be saved: what is known of an engine that another driver has is for that one to keep."""
        if self.store is not None and (save in ("begin", "must") or self.owner.other(record.facts.boot) is None):
            yield self.store
        if self.shared is not None and self.owner.lease is not None:
            yield self.shared

    def kept(self) -> Record | None:
        """What was kept of the engine last; None where nothing was that can be read here.

        The given store counts, unless the driver that used the engine last kept what it knew elsewhere.
        """
        own = None if self.store is None else self.store.load(self.key)
        shared = None if self.shared is None else self.shared.load(self.key)
        return shared if self.store is None or self.owner.kept_elsewhere else own

    def keep_where_unchanged(self, record: Record, read: Record | None) -> bool:
        """Whether the given store has this record, as far as it can be kept, instead of `read`, which it had before.

        False where another process wrote one meanwhile. That one is what was kept last.
        """
        if self.store is None or self.owner.other(record.facts.boot) is not None:
            return True
        try:
            self.store.save(self.key, record)
        except Exception:
            with suppress(Exception):
                if self.store.load(self.key) != read:
                    return False
            logging.getLogger("lifecycle").exception("%s: what is known of it could not be kept", self.name)
        return True

    def not_kept(self, problem: NotSaved, command: str) -> GuardRefused:
        """The refusal of a command whose record could not be saved: it would be forgotten if this process ended now."""
        reasons = {"store": f"what is known could not be kept ({problem}); fix this, or connect again"}
        return GuardRefused(reasons, **self.about(command))

    def goes_on_unrecorded(self, problem: Exception) -> bool:
        """Whether the policy lets a command go on where it cannot be written down, as `problem` says."""
        return isinstance(problem, OSError | sqlite3.Error | ConfigurationError) and self.policy.unrecorded == "warn"

    def forget_observed(self) -> None:
        """What was observed before the command or the move that begins serves nobody in it."""
        self.observed = NOTHING_OBSERVED

    # what is told

    def journal_file(self) -> Journal | None:
        """The journal beside what is known of the engine; None where nothing keeps one."""
        for store in (self.store, self.shared):
            if isinstance(store, Store):
                return store.journal
        return None

    def notify(self, event: str, *about: object) -> None:
        """The journal and the observers were told."""
        if self.journal_file() is not None:
            hear = getattr(self.journal, event, None)
            if hear is not None:
                hear(*about)
        self.observers.notify(event, *about)

    # who has it

    def holder(self, *, for_move: bool = False) -> str | None:
        """The command or the move that has the engine; None where it is free for commands (of its move, `for_move`)."""
        return self.busy or (None if for_move else self.in_move)

    @contextmanager
    def claimed(self, command: str, *, for_move: bool = False) -> Iterator[None]:
        """The engine belongs to this command; EngineBusy where another command or a move has it."""
        self.claim(command, for_move=for_move)
        try:
            yield
        finally:
            self.unclaim()

    def claim(self, command: str, *, for_move: bool = False) -> None:
        """The engine belongs to this command until `unclaim`; EngineBusy where another command or a move has it."""
        holder = self.holder(for_move=for_move)
        if holder is not None:
            raise EngineBusy(holder, **self.about(command))
        self.busy = command

    def unclaim(self) -> None:
        """No command has the engine any more."""
        self.busy = None
        self.let_go()

    def let_go(self) -> None:
        """Wakes whoever waits for the engine: a command, a move or a window has left it."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def until_let_go(self, deadline: Deadline) -> None:
        """A command, a move or a window has left the engine, or the deadline has passed."""
        left = asyncio.get_running_loop().create_future()
        self._waiting += (left,)
        try:
            await asyncio.wait({left}, timeout=deadline.left_s)
        finally:
            self._waiting = tuple(each for each in self._waiting if each is not left)

    def take(self, what: str, until_s: float | None, *, for_move: bool = False) -> None:
        """The engine is this driver's; EngineHeld where another driver has it. `for_move`: its move has the lease."""
        try:
            if for_move and self.owner.goes_on(self.facts.boot):
                return
            self.owner.take(self.facts.boot, what, until_s, may_run_still=self._record.uncertain.needs_barrier)
        except LeaseHeld as held:
            raise self.held_by(held.lease, what) from held

    def rest(self, *, keep: bool) -> None:
        """No command is under way any more; the lease is freed, unless it is to be kept."""
        may_run_still = self._record.uncertain.needs_barrier
        self.journal.flush()  # before another driver can write what it did after this
        self.owner.rests(self.facts.boot, str(self.state), keep=keep, may_run_still=may_run_still)

    def held_by(self, lease: Lease, command: str) -> EngineHeld:
        """The refusal of a command, or of a look, while another driver has the engine."""
        return EngineHeld(lease.who, lease.what, clock(lease.since_s), lease.until, **self.about(command))

    def about(self, command: str) -> dict[str, Any]:
        """The engine, the command and the state, as every error takes them."""
        return {"engine": self.name, "command": command, "state": self.state}

    def not_allowed(self, command: str, hint: str = "") -> InvalidTransition:
        """The error of a command that has no row in the state that the engine is in."""
        return not_allowed(**self.about(command), hint=hint, because=self.reason)

    # what the steps use

    def context(
        self,
        command: Command,
        *,
        targets: frozenset[Tag] = frozenset(),
        evidence: Evidence = _NOTHING,
        baseline: Evidence = _NOTHING,
        facts: Facts | None = None,
    ) -> Context:
        """What a guard or proof of this command is given now."""
        return Context(
            command=command,
            record=self._record if facts is None else replace(self._record, facts=facts),
            capabilities=self.capabilities,
            policy=self.policy,
            targets=targets,
            evidence=evidence,
            baseline=baseline,
            has_router=self.has_router,
        )


def commit_together(records: Sequence[tuple[Session, Record]], save: Save) -> None:
    """What is known of these engines, from here on: saved for all of them or for none. No state is entered."""
    save_together(records, save)
    for session, record in records:
        session.commit(record)


def save_together(records: Sequence[tuple[Session, Record]], save: Save) -> None:
    """These records are kept, each where its engine's are: in one transaction where that is one `Store`."""
    if save == "no":
        return
    rows: dict[int, tuple[StateStore, list[tuple[Session, Record]]]] = {}
    for session, record in records:
        for store in session.stores(record, save):
            rows.setdefault(id(store), (store, []))[1].append((session, record))
    saved: list[tuple[StateStore, list[tuple[Session, Record]]]] = []
    for store, these in rows.values():
        try:
            if save == "begin" and isinstance(store, Store):
                store.ready()
            _save_in(store, these)
            saved.append((store, these))
        except Exception as problem:
            if save in ("begin", "must") and not all(each.goes_on_unrecorded(problem) for each, _ in these):
                for other, those in saved:  # what is known stays what it was, in every store
                    with suppress(Exception):
                        _save_in(other, [(each, each.record) for each, _ in those])
                raise NotSaved(str(problem)) from problem
            names = ", ".join(each.name for each, _ in these)
            logging.getLogger("lifecycle").exception("%s: what is known of it could not be kept", names)


def _save_in(store: StateStore, records: Sequence[tuple[Session, Record]]) -> None:
    if isinstance(store, Store) and len(records) > 1:
        store.save_all({session.key: record for session, record in records})
        return
    for number, (session, record) in enumerate(records):
        try:
            store.save(session.key, record)
        except Exception:
            for earlier, _ in records[:number]:
                with suppress(Exception):
                    store.save(earlier.key, earlier.record)
            raise
