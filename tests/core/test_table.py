"""The table: it checks itself, every cell of State x Command is as written here by hand, and the machine is just it."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from by_hand import CHECKS, LEGAL
from rig import V1, engine_in, imported, put, serving

import lifecycle
from lifecycle import (
    Drain,
    Grade,
    InvalidTransition,
    Pause,
    Proved,
    Release,
    RestoreKV,
    RestoreWeights,
    Resume,
    State,
    UpdateWeights,
    Verdict,
)
from lifecycle.core.policy import ACCEPT, DEADLINES_S
from lifecycle.core.states import RING, STABLE, TRANSIENT
from lifecycle.engine import gather
from lifecycle.engine.gather import READERS, Question
from lifecycle.rules import table
from lifecycle.rules.evidence import OBSERVED, Context, EvidenceKind
from lifecycle.rules.machine import NoSuchEdge, edges, next_state
from lifecycle.rules.proofs import proof
from lifecycle.rules.table import CLAIMS, OPERATIONS, Operation, allowed, check_table, row
from lifecycle.testing import ScriptedAdapter, capabilities, scripted

COMMANDS = {
    "pause": Pause(),
    "drain": Drain(),
    "release": Release(None, V1),
    "restore_weights": RestoreWeights(),
    "update_weights": UpdateWeights(V1),
    "restore_kv": RestoreKV(),
    "resume": Resume(),
}
CELLS = [(str(state), command) for state in State for command in COMMANDS]


@pytest.mark.parametrize(("state", "command"), CELLS)
def test_every_cell_is_legal_exactly_where_the_list_says(state: str, command: str) -> None:
    found = row(command, State(state))
    assert (found and (str(found.via), str(found.dest))) == LEGAL.get((state, command))
    assert (command in allowed(State(state))) == ((state, command) in LEGAL)


@pytest.mark.parametrize(("state", "command"), [cell for cell in CELLS if cell not in LEGAL])
async def test_an_illegal_command_changes_nothing_and_says_what_is_allowed(state: str, command: str) -> None:
    engine = await serving()
    engine.adapter.journal.clear()
    put(engine, state=State(state))
    before = (engine.facts, dict(engine.conditions), engine.desired)
    with pytest.raises(InvalidTransition) as refused:
        await engine.execute(COMMANDS[command])
    legal = [name for at, name in LEGAL if at == state]
    assert sorted(refused.value.allowed) == sorted(legal)
    assert all(name in str(refused.value) for name in legal)
    assert "e: " in str(refused.value)
    assert state in str(refused.value)
    assert engine.state is State(state)
    assert (engine.facts, dict(engine.conditions), engine.desired) == before
    assert engine.busy is None
    assert engine.adapter.journal == []
    with pytest.raises(NoSuchEdge):
        next_state(engine.state, command, engine.context(COMMANDS[command]))
    assert engine.state is State(state)


@pytest.mark.parametrize(("state", "command"), list(LEGAL))
async def test_a_legal_command_leads_where_the_list_says(state: str, command: str) -> None:
    engine = await engine_in(State(state))
    if command == "restore_kv":
        await engine.update_weights(V1)
    if (state, command) == ("paused", "update_weights"):
        await engine.resume()
        await engine.pause("freeze")
    via: list[State] = []
    engine.observers._observers = (type("Watch", (), {"transition": lambda _, record: via.append(record.dest)})(),)
    record = await engine.execute(COMMANDS[command])
    assert [str(each) for each in via] == list(LEGAL[state, command])
    assert (str(record.source), str(record.dest)) == LEGAL[state, command]
    assert record.command == command


@pytest.mark.parametrize(("state", "command"), list(LEGAL))
def test_each_row_asks_and_sees_what_the_list_says(state: str, command: str) -> None:
    found = row(command, State(state))
    assert found is not None
    guards, proofs = CHECKS[state, command]
    assert [guard.name for guard in found.guards] == guards.split()
    assert [proof.name for proof in found.proofs] == proofs.split()


def test_every_stable_state_says_what_it_claims() -> None:
    assert set(CLAIMS) == STABLE
    assert all(state.stable for state in CLAIMS)


def test_the_table_is_accepted() -> None:
    check_table()
    check_table(list(OPERATIONS))


def damaged(command: str, source: State, /, **changes: object) -> list[object]:
    return [
        replace(each, **changes) if (each.command, each.source) == (command, source) else each for each in OPERATIONS
    ]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([*OPERATIONS, OPERATIONS[0]], "row pause from serving: stands twice"),
        (damaged("drain", State.PAUSED, command="flush"), "row flush from paused: no such command"),
        (damaged("drain", State.PAUSED, source=State.DRAINING), "row drain from draining: leads from or to"),
        (damaged("drain", State.PAUSED, dest=State.RELEASING), "row drain from paused: leads from or to"),
        (damaged("drain", State.PAUSED, source=State.FAILED), "row drain from failed: leads from or to"),
        (damaged("drain", State.PAUSED, dest=State.GONE), "row drain from paused: leads from or to"),
        (damaged("drain", State.PAUSED, via=State.DRAINED), "row drain from paused: drained is not a transient"),
        (damaged("drain", State.PAUSED, proofs=()), "row drain from paused: enters drained without a proof"),
        (damaged("release", State.DRAINED, dest=State.DRAINED), "releasing has two destinations: drained and released"),
        ([each for each in OPERATIONS if each.command != "drain"], "no row goes through draining"),
        (damaged("restore_weights", State.RELEASED, dest=State.RELEASED), "no way leads from serving to .*restored"),
        (damaged("restore_weights", State.RELEASED, source=State.DRAINED), "no way leads out of released"),
    ],
)
def test_a_damaged_table_is_refused_and_the_row_is_named(rows: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_table(rows)


def test_evidence_that_nobody_gathers_is_refused_under_the_name_of_the_proof_that_needs_it() -> None:
    @proof("weather", least=Grade.REPORTED)
    def fine(context: Context) -> Verdict:
        return context.evidence.named["weather"]

    rows = damaged("drain", State.PAUSED, proofs=(fine,))
    try:
        with pytest.raises(ValueError, match="row drain from paused: fine needs 'weather', which nobody gathers"):
            check_table(rows, gathered=OBSERVED | READERS.keys())
        with pytest.raises(ValueError, match=r"needs .*'idle'.*, which nobody gathers"):
            check_table(gathered=(OBSERVED | READERS.keys()) - {EvidenceKind.IDLE})
        check_table(rows, gathered=OBSERVED | READERS.keys() | {"weather"})
    finally:
        del ACCEPT["fine"]


async def test_a_kind_of_evidence_with_a_name_of_its_own_reaches_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Proved(grade=Grade.MEASURED, reason="dry and calm")

    async def weather(asked: Question) -> Verdict:
        return read

    monkeypatch.setattr(gather, "READERS", {**READERS, "weather": weather})
    engine = await scripted(ScriptedAdapter("e", capabilities())).connect()
    kinds = frozenset({"weather", EvidenceKind.ADMISSION})
    evidence = await gather.gather(engine._session, kinds, Pause(), deadline_s=5)
    assert dict(evidence.named) == {"weather": read}


def checked(name: str, *, source: State = State.PAUSED, command: str = "drain", **changes: Any) -> list[Operation]:
    """The table, in which the guard or proof of this name has these changes in one row (that drains)."""

    def change(checks: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(replace(each, **changes) if each.name == name else each for each in checks)

    return [
        replace(each, guards=change(each.guards), proofs=change(each.proofs))
        if (each.command, each.source) == (command, source)
        else each
        for each in OPERATIONS
    ]


def test_a_proof_without_its_least_grade_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # another mapping, and not this one changed: what is put back stands last, and others list its keys
    monkeypatch.setattr(table, "ACCEPT", {claim: least for claim, least in ACCEPT.items() if claim != "idle"})
    with pytest.raises(ValueError, match="row drain from paused: the proof idle has no least grade"):
        check_table()


def test_a_command_without_a_deadline_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "DEADLINES_S", {name: s for name, s in DEADLINES_S.items() if name != "drain"})
    with pytest.raises(ValueError, match="row drain from paused: no deadline is known for it"):
        check_table()


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_is_needed_by_the_table(kind: EvidenceKind) -> None:
    check_table(gathered=OBSERVED | READERS.keys())
    with pytest.raises(ValueError, match=f"needs <EvidenceKind.{kind.name}.*which nobody gathers"):
        check_table(gathered=OBSERVED | READERS.keys() - {kind})


def test_the_readers_are_checked_when_they_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(lifecycle.rules.table, "check_table", lambda **how: asked.append(how))
    spec = spec_from_file_location("lifecycle.engine.gather_once_more", gather.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert asked == [{"gathered": OBSERVED | READERS.keys()}]


@pytest.mark.parametrize("name", ["still_idle", "memory_returned"])
def test_two_checks_of_one_name_are_refused(name: str) -> None:
    rows = checked(name, command="release", source=State.KV_RESTORED, check=lambda context: None)
    with pytest.raises(ValueError, match=f"row release from kv_restored: two checks have the name {name}"):
        check_table(rows)


def test_a_proof_that_doubts_what_is_no_fact_is_refused() -> None:
    with pytest.raises(ValueError, match="row drain from paused: the proof idle doubts 'mood', which is no fact"):
        check_table(checked("idle", doubts=("running", "mood")))
    with pytest.raises(ValueError, match="doubts 'basis', which is no fact"):
        check_table(checked("idle", doubts=("basis",)))


def test_the_machine_has_the_tables_edges_and_those_that_follow_from_it() -> None:
    expected = {(command, state, via) for (state, command), (via, _) in LEGAL.items()}
    for via, dest in LEGAL.values():
        expected |= {("succeeded", via, dest), ("failed", via, "failed")}
    for state in RING:
        expected.add(("contradicted", str(state), "failed"))
        expected.add((f"asserted_{state}", "failed", str(state)))
    for source in ("detached", "failed", "gone"):
        expected |= {(f"observed_{dest}", source, str(dest)) for dest in (*RING, "gone", "failed")}
    assert {(trigger, str(source), str(dest)) for trigger, source, dest in edges()} == expected
    assert len(edges()) == len(expected)


@pytest.mark.parametrize("state", sorted(TRANSIENT))
def test_every_transient_state_has_one_way_to_succeed_and_one_to_fail(state: State) -> None:
    out = [(trigger, dest) for trigger, source, dest in edges() if source is state]
    assert sorted(trigger for trigger, _ in out) == ["failed", "succeeded"]


def test_transitions_is_imported_by_the_machine_and_the_diagrams_alone() -> None:
    root = Path(lifecycle.__file__).parent
    importing = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if "transitions" in imported(path)}
    assert importing <= {"rules/machine.py", "render/diagram.py"}
    assert "rules/machine.py" in importing
