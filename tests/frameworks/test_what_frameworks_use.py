"""What the frameworks' verbs use of an engine: an override with a version, another policy, who hears, whose lease."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
from frameworks.servers import Actors, Group
from lifecycle.adapters.declared import About, DeclaredAdapter, Verb, Verbs

from lifecycle import ConfigurationError, Engine, EngineBusy, FleetError, GuardRefused, InvalidTransition, Policy, State
from lifecycle.core.facts import Contents, Fact, Grade
from lifecycle.core.frozen import replace
from lifecycle.core.observer import BaseObserver, Observers
from lifecycle.core.transition import Transition
from lifecycle.engine.owner import own_identity
from lifecycle.testing import KV_CACHE, QUICK, WEIGHTS


async def failed_engine(actors: Actors, name: str = "e") -> Engine:
    """An engine that somebody else gave its weights back: nothing is known of them."""
    engine = await unseen(actors, name, unmapped={"kv_cache"})
    await engine.connect()
    engine._session.go("contradicted", reason="a test")
    return engine


# override_state(version=)


async def test_weights_whose_version_is_asserted_are_worth_serving_and_others_are_not() -> None:
    actors = Actors()
    one, other = await failed_engine(actors, "one"), await failed_engine(actors, "other")
    one.override_state(State.WEIGHTS_RESTORED, by="me", reason="I restored them", version="v7")
    assert one.facts.contents["weights"] == Contents("loaded", "v7")
    assert one.facts.grades[Fact.CONTENTS] is Grade.ASSERTED
    other.override_state(State.WEIGHTS_RESTORED, by="me", reason="I restored them")
    with pytest.raises(GuardRefused, match="weights holds contents unknown"):
        await other.restore_kv()


async def test_an_observed_state_is_asserted_again_for_weights_of_which_nothing_is_known_alone() -> None:
    actors = Actors()
    engine = await actors.engine_of("e").connect()
    with pytest.raises(InvalidTransition):
        engine.override_state(State.SERVING, by="me", reason="it does", version="v7")
    server = actors.server(Group(["w"]))
    await server.offload()
    await server.onload_weights()
    with pytest.raises(InvalidTransition):  # they are garbage: that is known
        actors.made["w"].override_state(State.WEIGHTS_RESTORED, by="me", reason="so", version="v7")


@pytest.mark.parametrize(
    ("state", "version", "why"),
    [(State.RELEASED, "v7", "discards weights when it is released"), (State.SERVING, " ", "is the label of weights")],
)
async def test_a_version_that_cannot_be_is_refused(state: State, version: str, why: str) -> None:
    engine = await failed_engine(Actors())
    with pytest.raises(ConfigurationError, match=why):
        engine.override_state(state, by="me", reason="so", version=version)
    assert engine.state is State.FAILED


# who answers for an engine that nothing can observe


async def unseen(actors: Actors, name: str = "e", *, unmapped: set[str], admission: Any = "closed") -> Engine:
    """An engine that somebody else left so, of which nothing tells which tags are mapped."""
    engine = actors.engine_of(name)
    model = engine.adapter.engine
    model.unmapped, model.admission, model.paused_by = unmapped, admission, "abort"
    for tag in unmapped:
        model.resident[tag] = 0
    return engine


async def server_over(actors: Actors, by: str | None, **left: Any) -> Any:
    """A server of one engine that was left so."""
    engine = await unseen(actors, **left)
    server = actors.server(Group(["e"]), by=by)
    server._members._engine_of = lambda handle: engine  # type: ignore[attr-defined]
    return server, engine


async def test_what_a_verb_implies_is_asserted_where_the_evidence_leaves_it_open() -> None:
    server, engine = await server_over(Actors(), "slime", unmapped={"kv_cache"})
    await server.onload_kv(version="v9")
    assert engine.state is State.SERVING
    assert engine.facts.contents["weights"] == Contents("loaded", "v9")


#: Tags of one size: what is resident does not tell which of them is released.
ALIKE = (replace(WEIGHTS, expected_bytes=KV_CACHE.expected_bytes), KV_CACHE)


async def test_of_states_that_the_evidence_leaves_open_the_verb_tells_which() -> None:
    server, engine = await server_over(Actors(tags=ALIKE), "slime", unmapped={"kv_cache"})
    await engine.connect()
    assert engine.state is State.FAILED
    assert "released or weights_restored" in engine.reason
    await server.onload_kv(version="v9")
    assert engine.state is State.SERVING


async def test_nothing_is_asserted_that_the_evidence_denies() -> None:
    """It is closed, and memory of it is released: whoever offloads it takes it for one that serves, and is wrong."""
    server, engine = await server_over(Actors(tags=ALIKE), "slime", unmapped={"kv_cache"})
    with pytest.raises(FleetError, match="it is failed: released or weights_restored"):
        await server.offload()
    assert engine.state is State.FAILED
    assert engine.adapter.journal.calls() == []


async def test_an_engine_that_failed_under_this_driver_is_never_asserted() -> None:
    actors = Actors()
    server = actors.server(Group(["a"]), by="slime")
    await server.offload()
    actors.made["a"]._session.go("contradicted", reason="somebody acted")
    with pytest.raises(FleetError, match="no command is allowed here"):
        await server.onload_weights()
    assert actors.states == {"a": "failed"}


async def test_where_nobody_answers_for_it_the_verb_is_refused() -> None:
    server, engine = await server_over(Actors(), None, unmapped={"kv_cache"})
    with pytest.raises(FleetError, match="weights holds contents unknown; name a source"):
        await server.onload_kv()
    assert not any("restore" in call for call in engine.adapter.journal.calls())


# hold_to


async def test_an_engine_is_held_to_another_policy_from_there_on() -> None:
    engine = await Actors().engine_of("e").connect()
    engine.hold_to(replace(QUICK, residual_threshold_gib=7.0))
    assert engine.policy.residual_threshold_gib == 7.0


async def test_not_while_a_command_has_it() -> None:
    engine = await Actors().engine_of("e").connect()
    with engine.claimed_for("offload"), pytest.raises(EngineBusy, match="hold_to"):
        engine.hold_to(Policy())
    assert engine.policy is QUICK


# who hears


class Hears(BaseObserver):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def transition(self, record: Transition) -> None:
        self.heard.append(record.dest)


def test_who_joins_hears_inside_alone() -> None:
    first, second = Hears(), Hears()
    observers = Observers([first])
    edge = Transition("e", "default", "succeeded", State.PAUSING, State.PAUSED, "pause")
    with pytest.raises(ZeroDivisionError), observers.joined_by(second):
        observers.notify("transition", edge)
        _ = 1 / 0
    observers.notify("transition", edge)
    assert (len(first.heard), len(second.heard), list(observers)) == (2, 1, [first])


# declared engines of one kind


def declared(name: str) -> DeclaredAdapter:
    def none(tags: Any = None) -> Mapping[str, Any]:
        return {}

    both: Any = dict.fromkeys(("weights", "kv_cache"), "discarded")
    back: Any = dict.fromkeys(both, "resident")
    verbs = Verbs(
        pause={"abort": Verb(call=none, name="pause")},
        resume=none,
        release=Verb(call=none, effects=both, name="release"),
        restore=Verb(call=none, effects=back, name="restore", drops_cache=True),
    )
    return DeclaredAdapter(name, verbs, processes=os.getpid(), about=About(engine="slime", device="cpu"))


async def test_two_engines_of_one_kind_without_a_boot_of_their_own_have_two_identities() -> None:
    """With one identity for both, the lease of the first kept the driver from the second."""
    boots = []
    for name in ("slime:one", "slime:two"):
        adapter = declared(name)
        await adapter.connect(deadline_s=5.0)
        seen = await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5.0)
        assert seen.boot is not None
        boots.append(own_identity(seen.boot))
    assert boots == ["slime slime:one", "slime slime:two"]


async def test_a_command_before_connect_is_refused() -> None:
    with pytest.raises(InvalidTransition):
        await Actors().engine_of("e").pause()
