"""The table: the only place where legal moves are written.

An engine that shares its GPU with a trainer goes round a ring,

    serving -> paused -> drained -> released -> weights_restored -> kv_restored -> serving

and every stable state is a set of claims about it (`CLAIMS`): whether it admits requests, whether any can run, which
memory is mapped, whether its weights are worth serving. A row of `OPERATIONS` says from which state a command may be
given, which transient state stands for "under way", where it leads, which guards are asked before the engine is
touched and which proofs must be seen before the destination is entered. **A call that was answered is not evidence.**

What follows from the rows is not written anywhere else: the `transitions` machine, the diagrams, the tables in the
documentation, "allowed here" in errors, the planner's routes, the exhaustive tests. Three kinds of edge follow for
every state and have no row: a transient state ends by `succeeded` (to its row's destination) or `failed`; a stable
state that an observation denies is `contradicted` and becomes failed; and detached, failed and gone become whatever is
`observed` (failed also what an operator `asserted`).

Like h11's, this file does not know which engine it is about, nor who asks. State first, effects second: a refused
command changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from ..core.capabilities import Capabilities
from ..core.commands import BY_NAME
from ..core.errors import InvalidTransition
from ..core.facts import Facts
from ..core.policy import ACCEPT, DEADLINES_S
from ..core.states import RING, STABLE, TRANSIENT, UNCLAIMED, State
from . import guards as g
from . import proofs as p
from .evidence import OBSERVED, Evidence, EvidenceKind
from .guards import Guard
from .proofs import Proof


@dataclass(frozen=True, slots=True)
class Operation:
    """One row: `command`, given in `source`, is under way in `via` and ends in `dest`.

    With the kinds of evidence that its guards, and its proofs, need.
    """

    command: str
    source: State
    via: State
    dest: State
    guards: tuple[Guard, ...]
    proofs: tuple[Proof, ...]
    needed_by_guards: frozenset[str] = field(init=False, compare=False, repr=False)
    needed_by_proofs: frozenset[str] = field(init=False, compare=False, repr=False)
    #: What has to be read before the calls: what the guards need, and what the proofs compare with later.
    needed_before: frozenset[str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "needed_by_guards", frozenset().union(*(each.needs for each in self.guards)))
        object.__setattr__(self, "needed_by_proofs", frozenset().union(*(each.needs for each in self.proofs)))
        compared = self.needed_by_proofs & {EvidenceKind.RESIDUAL, EvidenceKind.CHECKSUM}
        object.__setattr__(self, "needed_before", self.needed_by_guards | compared)


S = State
_RELEASE_GUARDS = (
    g.still_idle,
    g.memory_saver_enabled,
    g.hook_mode_safe,
    g.tags_releasable,
    g.weights_recoverable,
    g.bytes_visible,
    g.host_has_room,
    g.mapping_borne_out,
)
_RELEASED = (p.tags_unmapped, p.memory_returned)
_RESUMABLE = (g.all_mapped, g.mapping_borne_out, g.weights_valid, g.cache_fresh)

# fmt: off
OPERATIONS: tuple[Operation, ...] = (
    Operation("pause", S.SERVING, S.PAUSING, S.PAUSED, (g.mode_supported, g.derouted), (p.admission_closed,)),
    Operation("pause", S.PAUSED, S.REPAUSING, S.PAUSED, (g.mode_change_safe,), (p.admission_closed,)),
    Operation("drain", S.PAUSED, S.DRAINING, S.DRAINED, (g.mode_drains,), (p.admission_closed, p.idle)),
    Operation("release", S.DRAINED, S.RELEASING, S.RELEASED, _RELEASE_GUARDS, _RELEASED),
    Operation("release", S.WEIGHTS_RESTORED, S.RELEASING, S.RELEASED, _RELEASE_GUARDS, _RELEASED),
    Operation("release", S.KV_RESTORED, S.RELEASING, S.RELEASED, _RELEASE_GUARDS, _RELEASED),
    Operation("restore_weights", S.RELEASED, S.RESTORING_WEIGHTS, S.WEIGHTS_RESTORED,
              (g.cotenants_within_budget, g.device_has_room, g.mapping_borne_out),
              (p.weights_mapped, p.admission_closed)),
    Operation("update_weights", S.WEIGHTS_RESTORED, S.UPDATING_WEIGHTS, S.WEIGHTS_RESTORED,
              (g.source_ready, g.mapping_borne_out), (p.weights_match, p.admission_closed)),
    Operation("update_weights", S.DRAINED, S.UPDATING_IN_PLACE, S.DRAINED,
              (g.source_ready, g.mapping_borne_out), (p.weights_match, p.cache_fresh, p.admission_closed)),
    Operation("update_weights", S.PAUSED, S.UPDATING_LIVE, S.PAUSED,
              (g.live_update_supported, g.source_ready, g.mapping_borne_out), (p.weights_match, p.admission_closed)),
    Operation("restore_kv", S.WEIGHTS_RESTORED, S.RESTORING_KV, S.KV_RESTORED,
              (g.weights_valid, g.cotenants_within_budget, g.device_has_room, g.mapping_borne_out),
              (p.kv_mapped, p.cache_fresh, p.admission_closed)),
    Operation("resume", S.KV_RESTORED, S.RESUMING, S.SERVING, _RESUMABLE, (p.answers,)),
    Operation("resume", S.DRAINED, S.RESUMING, S.SERVING, _RESUMABLE, (p.answers,)),
    Operation("resume", S.PAUSED, S.RESUMING, S.SERVING, _RESUMABLE, (p.answers,)),
)
# fmt: on

#: What each state claims, in words, for the documentation and the diagrams.
CLAIMS: dict[State, str] = {
    S.DETACHED: "not yet observed; nothing is claimed",
    S.SERVING: "admits requests and answers; all tags mapped; weights valid",
    S.PAUSED: "admits none; some may run; all tags mapped",
    S.DRAINED: "admits none; idle; all tags mapped",
    S.RELEASED: "admits none; idle; the named tags unmapped",
    S.WEIGHTS_RESTORED: "admits none; idle; every weights-stage tag mapped",
    S.KV_RESTORED: "admits none; idle; all tags mapped; weights valid",
    S.GONE: "the process does not exist; its devices are free",
    S.FAILED: "nothing is claimed",
}


def row(command: str, state: State) -> Operation | None:
    """The row for this command in this state; None where it is not allowed."""
    for each in OPERATIONS:
        if each.source is state and each.command == command:
            return each
    return None


def allowed(state: State) -> tuple[str, ...]:
    """The commands that have a row here, in the table's order."""
    return tuple(each.command for each in OPERATIONS if each.source is state)


def not_allowed(*, engine: str, command: str, state: State, hint: str = "", because: str = "") -> InvalidTransition:
    """The error of a command that has no row here; it lists those that have one.

    `because` is why the engine is where it is. It is said where nothing is claimed of the engine.
    """
    why = f" (it is {state}: {because})" if because and state in UNCLAIMED else ""
    return InvalidTransition(engine=engine, command=command, state=state, allowed=allowed(state), hint=why + hint)


def fits(facts: Facts, capabilities: Capabilities, *, weights_are_valid: bool) -> State | None:
    """The first state whose claims the facts make: a state for which a fact is unknown does not fit.

    Never kv_restored, whose facts are those of drained. And paused instead of drained where the weights are valid and
    the prefix cache may be stale: from drained nothing but an update leads to a fresh one, from paused another drain.
    """
    mapped = {tag: facts.mapped.get(tag) for tag in (spec.name for spec in capabilities.tags)}
    all_mapped = all(value is True for value in mapped.values())
    if facts.admission == "open":
        return S.SERVING if all_mapped and weights_are_valid else None
    if facts.admission != "closed":
        return None
    idle = facts.running == 0
    if all_mapped:
        return S.DRAINED if idle and (facts.cache_fresh or not weights_are_valid) else S.PAUSED
    if not idle or None in mapped.values():
        return None
    weights_mapped = all(mapped[tag] for tag in capabilities.stage("weights"))
    return S.WEIGHTS_RESTORED if weights_mapped else S.RELEASED


def check_table(operations: Sequence[Operation] = OPERATIONS, *, gathered: frozenset[str] | None = None) -> None:
    """Raises ValueError that names the row, unless the rows make one coherent machine.

    `gathered` are the kinds of evidence that somebody gathers; None where it is not known who does. What is wrong here
    would otherwise be found only when a command asks for it, after its calls were sent.
    """
    _check_rows(operations)
    _check_checks(operations, gathered)
    _check_transients(operations)
    _check_reachable(operations)


def _check_rows(operations: Sequence[Operation]) -> None:
    seen: set[tuple[str, State]] = set()
    for each in operations:
        name = f"row {each.command} from {each.source}"
        if (each.command, each.source) in seen:
            raise ValueError(f"{name}: stands twice")
        seen.add((each.command, each.source))
        if each.command not in BY_NAME:
            raise ValueError(f"{name}: no such command")
        if each.source not in STABLE - UNCLAIMED or each.dest not in STABLE - UNCLAIMED:
            raise ValueError(f"{name}: leads from or to a state that is not a stable claim")
        if each.via not in TRANSIENT:
            raise ValueError(f"{name}: {each.via} is not a transient state")
        if not each.proofs:
            raise ValueError(f"{name}: enters {each.dest} without a proof")


def _check_checks(operations: Sequence[Operation], gathered: frozenset[str] | None) -> None:
    """Every guard and proof can be asked, and its answer judged."""
    lacking = frozenset(EvidenceKind) - OBSERVED - {part.name for part in fields(Evidence)}
    claims: dict[str, Guard | Proof] = {}
    for each in operations:
        name = f"row {each.command} from {each.source}"
        if each.command not in DEADLINES_S:
            raise ValueError(f"{name}: no deadline is known for it")
        checks: list[Guard | Proof] = [*each.guards, *each.proofs]
        for check in checks:
            for kind in check.needs:
                if (gathered is not None and kind not in gathered) or kind in lacking:
                    raise ValueError(f"{name}: {check.name} needs {kind!r}, which nobody gathers")
            same = claims.setdefault(f"{type(check).__name__} {check.name}", check)
            if same.check is not check.check:
                raise ValueError(f"{name}: two checks have the name {check.name}")
        for proof in each.proofs:
            if proof.name not in ACCEPT:
                raise ValueError(f"{name}: the proof {proof.name} has no least grade")
            unknown = [fact for fact in proof.doubts if fact not in _KNOWN_FACTS]
            if unknown:
                raise ValueError(f"{name}: the proof {proof.name} doubts {unknown[0]!r}, which is no fact")


def _check_transients(operations: Sequence[Operation]) -> None:
    ends: dict[State, State] = {}
    for each in operations:
        if ends.setdefault(each.via, each.dest) is not each.dest:
            raise ValueError(f"{each.via} has two destinations: {ends[each.via]} and {each.dest}")
    unused = TRANSIENT - set(ends)
    if unused:
        raise ValueError(f"no row goes through {', '.join(sorted(unused))}")


def _check_reachable(operations: Sequence[Operation]) -> None:
    reached = {S.SERVING}
    while True:
        more = {each.dest for each in operations if each.source in reached} - reached
        if not more:
            break
        reached |= more
    lost = set(RING) - reached
    if lost:
        raise ValueError(f"no way leads from serving to {', '.join(sorted(lost))}")
    stuck = [state for state in RING if not any(each.source is state for each in operations)]
    if stuck:
        raise ValueError(f"no way leads out of {', '.join(stuck)}")


_KNOWN_FACTS = frozenset(each.name for each in fields(Facts)) - {"basis"}

check_table()
