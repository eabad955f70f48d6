"""What must hold of every journal, whoever wrote it, checked offline against the table. Pure.

Each rule of `RULES` has a name and says in words what must hold. `violations` reads the entries once, in their order,
and names each entry that breaks one. What stands before the first entry (a journal is bounded) is unknown: a rule that
would need it is not applied until it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..core.commands import Release
from ..core.facts import Grade
from ..core.frozen import replace
from ..core.journal import (
    Attached,
    BarrierReturned,
    CallEnded,
    CallSent,
    CommandBegan,
    CommandEnded,
    Entry,
    HandedOver,
    MovePhase,
    Quarantined,
    Refused,
    StateEntered,
)
from ..core.policy import ACCEPT, takes
from ..core.requests import NOT_KNOWN, RequestFates
from ..core.states import IDLE, RING, UNCLAIMED, State
from .fates import impossible, later
from .identity import compare
from .machine import edges
from .table import OPERATIONS, Operation

RULES = {
    "edge": "every edge is one of the table's, or follows from it",
    "order": "every edge begins where the last one of its driver ended",
    "proofs": "a state is entered by a command only where each of its proofs holds, at the grade that is accepted",
    "intent": "every answer is of a call that was written down before, and every call of a command that has begun",
    "repeated": "a call that may not be repeated is not sent again without an answer or a decision between",
    "barrier": "nothing is sent after a call that may run still, before a barrier has returned",
    "fence": "no driver sends anything once a later one has sent something",
    "drained": "no participant of an offload, or of a fleet's release, is released before all are idle",
    "quarantine": "a move goes on without an engine only where that is gone, or closed and on no device of the others",
    "requests": "what became of requests adds up, and none that ended is taken back while the engine stays closed",
    "handover": "no device is handed over without the proof that its memory returned, or that its process is gone",
}

_EDGES = frozenset(edges())

#: The moves that release their participants, once all of them are idle.
_RELEASING = ("offload", Release.name)


@dataclass(frozen=True, slots=True)
class Violation:
    """An entry that breaks a rule; `why` says how, in words."""

    rule: str
    entry: Entry
    why: str


@dataclass(slots=True)
class _Driver:
    """What is known of one driver of one engine. `at` is None before its first edge in this journal.

    `accept` is None where it attached before this journal begins: it may accept any grade.
    """

    accept: dict[str, Grade] | None = None
    at: State | None = None
    command: str | None = None
    sent: CallSent | None = None
    whole: bool = False
    #: What became of its requests, since it was paused.
    requests: RequestFates = NOT_KNOWN


@dataclass(slots=True)
class _Engine:
    """What is known of one engine, over all its drivers. `open` are calls that may run still."""

    open: list[CallSent] = field(default_factory=list)
    fence: int = 0
    fenced: str = ""


def violations(entries: Iterable[Entry]) -> Iterator[Violation]:
    """The entries that break a rule, in order."""
    checker = Checker()
    for entry in entries:
        yield from checker.broken_by(entry)


class Checker:
    """Checks a journal entry by entry, as it is read."""

    def __init__(self) -> None:
        self._drivers: dict[str, _Driver] = {}
        self._engines: dict[str, _Engine] = {}
        self._moves: dict[str, MovePhase] = {}
        self._releasing: dict[str, set[str]] = {}
        #: Who was idle when the releases of a move were to begin.
        self._were_idle: dict[str, set[str]] = {}

    def broken_by(self, entry: Entry) -> list[Violation]:
        """The rules that this entry breaks, after all that were given before."""
        return [Violation(rule, entry, why) for rule, why in self._of(entry)]

    def _of(self, entry: Entry) -> Iterator[tuple[str, str]]:
        event = entry.event
        if isinstance(event, MovePhase):
            self._phase(event)
            return
        if isinstance(event, Quarantined):
            yield from self._quarantined(event)
            return
        if isinstance(event, HandedOver):
            yield from self._handed_over(event)
            return
        driver = self._drivers.setdefault(entry.driver, _Driver())
        engine = self._engines.setdefault(entry.key, _Engine())
        match event:
            case Attached():
                driver.accept = {**ACCEPT, **event.accept}
                driver.whole = True
                if driver.at is None:
                    driver.at = State.DETACHED
            case CommandBegan(command=command):
                driver.command = command
                if command == Release.name and (
                    driver.at is None or driver.at in IDLE
                ):  # what becomes of it now is no other's barrier
                    self._release_began(entry.driver)
            case Refused(error="EngineBusy"):
                pass  # of a second caller: the command under way goes on
            case CommandEnded() | Refused():
                driver.command = None
            case CallSent():
                yield from self._sent(entry, event, driver, engine)
            case CallEnded():
                yield from self._ended(event, driver, engine)
            case BarrierReturned():
                engine.open.clear()
            case StateEntered():
                yield from self._entered(event, driver, engine)
                if event.dest is State.RELEASING:
                    yield from self._not_idle(entry.driver)

    # edges

    def _entered(self, event: StateEntered, driver: _Driver, engine: _Engine) -> Iterator[tuple[str, str]]:
        edge = f"{event.source} -> {event.dest} by {event.trigger}"
        if (event.trigger, event.source, event.dest) not in _EDGES:
            yield "edge", f"{edge} is no edge of the table"
        if driver.at is not None and event.source is not driver.at:
            yield "order", f"{edge}, and it was {driver.at} before"
        driver.at = event.dest
        if event.trigger == "succeeded":
            yield from _unproved(event, driver)
        yield from _requests(event, driver)
        decided = event.trigger.startswith(("observed_", "asserted_")) and event.dest in (*RING, State.GONE)
        if decided:  # a barrier has returned, or a person says what is so
            engine.open.clear()

    # calls

    def _sent(self, entry: Entry, event: CallSent, driver: _Driver, engine: _Engine) -> Iterator[tuple[str, str]]:
        if event.command and driver.whole and driver.command != event.command:
            yield "intent", f"{event.call} is of {event.command}, and that has not begun"
        here = [each for each in engine.open if _one_process(each, event)]
        again = next((each for each in here if not each.repeatable and each.call == event.call), None)
        if again is not None:
            yield "repeated", f"{event.call} was sent before, and it is not known what became of it"
        elif here:
            yield "barrier", f"{event.call} was sent while {here[0].call} might run still"
        if event.fence and event.fence < engine.fence and entry.driver != engine.fenced:
            yield "fence", f"{event.call} was sent under lease {event.fence}, after one under {engine.fence}"
        if event.fence >= engine.fence:
            engine.fence, engine.fenced = event.fence, entry.driver
        driver.sent = event
        engine.open = [*here, event]

    def _ended(self, event: CallEnded, driver: _Driver, engine: _Engine) -> Iterator[tuple[str, str]]:
        sent = driver.sent
        if event.outcome == "unsent":
            engine.open = [each for each in engine.open if each is not sent]
            return
        if driver.whole and (sent is None or sent.call != event.call):
            yield "intent", f"{event.call} has an answer, and was not written down before"
        if event.outcome in ("done", "rejected"):
            engine.open = [each for each in engine.open if each is not sent]
        driver.sent = None

    # moves

    def _phase(self, event: MovePhase) -> None:
        if event.duration_s is None and Release.name in (event.phase, event.move):
            self._were_idle[event.move_id] = {each for each in event.drivers if self._state_of(each) in IDLE}
        if event.phase:
            return
        if event.duration_s is None:
            self._moves[event.move_id] = event
            self._releasing[event.move_id] = set()
        else:
            self._moves.pop(event.move_id, None)
            self._were_idle.pop(event.move_id, None)

    def _release_began(self, driver: str) -> None:
        for move_id, move in self._moves.items():
            if driver in move.drivers:
                self._releasing[move_id].add(driver)

    def _not_idle(self, driver: str) -> Iterator[tuple[str, str]]:
        """A release began: every other participant of its offload is idle, or its own release began where it was.

        One that was idle when the releases were to begin, and failed since, is waited for by nobody. What an onload
        releases again, on the way back from an offload too, was idle and waits for nobody.
        """
        if any(move.move == "onload" and driver in move.drivers for move in self._moves.values()):
            return
        for move_id, move in self._moves.items():
            if move.move not in _RELEASING or driver not in move.drivers:
                continue
            begun = self._releasing[move_id]
            begun.add(driver)
            were_idle = self._were_idle.get(move_id, ())
            others = ((other, self._state_of(other)) for other in move.drivers if other not in begun)
            known = (state for other, state in others if not (state in UNCLAIMED and other in were_idle))
            busy = next((state for state in known if state is not None and state not in IDLE), None)
            if busy is not None:
                yield "drained", f"a release began, and a participant of the {move.move} is {busy}"

    def _quarantined(self, event: Quarantined) -> Iterator[tuple[str, str]]:
        """The move has one participant less, which is gone, or holds no memory of a device of the others."""
        at, shared = self._state_of(event.left_out), sorted({*event.devices} & {*event.others})
        if event.gone and at not in (None, State.GONE):
            yield "quarantine", f"{event.name} is said to be gone, and it is {at}"
        elif not event.gone and not event.closed:
            yield "quarantine", f"{event.name} lives, and its router was not closed"
        elif not event.gone and not (event.devices and event.others):
            yield "quarantine", f"{event.name} lives, and it is not known whether it is on a device of the others"
        elif not event.gone and shared:
            yield "quarantine", f"{event.name} lives on {shared[0]}, which is a device of the others"
        move = self._moves.get(event.move_id)
        if move is not None:
            rest = tuple(driver for driver in move.drivers if driver != event.left_out)
            self._moves[event.move_id] = replace(move, drivers=rest)

    def _handed_over(self, event: HandedOver) -> Iterator[tuple[str, str]]:
        move = self._moves.get(event.move_id)
        for token in () if move is None else move.drivers:
            driver = self._drivers.get(token)
            if driver is None or driver.at is None:
                continue
            verdict = event.returned.get(token)
            if token in event.gone and driver.at is State.GONE:
                continue
            if driver.at is not State.RELEASED:
                yield "handover", f"an engine of the move is {driver.at}"
            elif verdict is None or not takes("memory_returned", verdict, _least(driver, "memory_returned")):
                yield "handover", f"of an engine of the move memory_returned is {verdict or 'unknown'}"

    def _state_of(self, driver: str) -> State | None:
        known = self._drivers.get(driver)
        return None if known is None else known.at


def _unproved(event: StateEntered, driver: _Driver) -> Iterator[tuple[str, str]]:
    row = _row(event)
    for proof in () if row is None else row.proofs:
        verdict = event.verdicts.get(proof.name)
        if verdict is None:
            yield "proofs", f"{event.dest} was entered without {proof.name}"
        elif not takes(proof.name, verdict, _least(driver, proof.name)):
            yield "proofs", f"{event.dest} was entered, and {proof.name} is {verdict}"


def _requests(event: StateEntered, driver: _Driver) -> Iterator[tuple[str, str]]:
    if event.dest is State.PAUSING and event.source is State.SERVING:
        driver.requests = NOT_KNOWN
    if event.requests is None:
        return
    wrong = impossible(event.requests) or later(driver.requests, event.requests)
    if wrong is not None:
        yield "requests", wrong
    driver.requests = NOT_KNOWN if event.dest is State.SERVING else event.requests


def _least(driver: _Driver, claim: str) -> Grade:
    return Grade.ASSERTED if driver.accept is None else driver.accept.get(claim, Grade.MEASURED)


def _row(event: StateEntered) -> Operation | None:
    return next((row for row in OPERATIONS if row.via is event.source and row.dest is event.dest), None)


def _one_process(one: CallSent, other: CallSent) -> bool:
    """Whether both calls may have gone to one process; what is not known may be."""
    return one.boot is None or other.boot is None or compare(one.boot, other.boot) != "other"
