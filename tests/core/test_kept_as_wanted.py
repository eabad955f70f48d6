"""Weights of an engine that keeps or discards them as a release wants it: the source that is named decides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from rig import V1, context_of, facts, serving

from lifecycle import Engine, GuardRefused, Kept, Pause, PauseTraits, Policy, Pushed, State
from lifecycle.core.commands import Release
from lifecycle.core.facts import GARBAGE, Contents, TagSpec
from lifecycle.core.sources import Source
from lifecycle.core.units import GIB
from lifecycle.core.verdicts import NotApplicable, Refuted, Unmeasurable
from lifecycle.engine.headroom import host_room
from lifecycle.rules.proofs import cache_fresh
from lifecycle.rules.weights import is_kept
from lifecycle.testing import KEPT_WEIGHTS, KV_CACHE, WEIGHTS, capabilities

AS_WANTED = TagSpec("weights", "weights", "as_wanted", 4 * GIB)


async def nothing(engines: Sequence[Engine]) -> None:
    return None


KEEPING: list[Source | None] = [None, Kept()]
REPLACING: list[Source | None] = [V1, Pushed(nothing, "v1")]


@pytest.mark.parametrize("source", [*KEEPING, *REPLACING], ids=str)
def test_the_source_decides_only_where_the_engine_does_as_it_is_wanted(source: Source | None) -> None:
    assert is_kept(AS_WANTED, source) is (source in KEEPING)
    assert is_kept(KEPT_WEIGHTS, source)
    assert not is_kept(WEIGHTS, source)
    assert not is_kept(TagSpec("kv_cache", "kv", "as_wanted"), source), "KV is never kept"


async def drained() -> Engine:
    engine = await serving("e", AS_WANTED, KV_CACHE)
    await engine.pause()
    await engine.drain()
    return engine


@pytest.mark.parametrize("source", KEEPING, ids=str)
async def test_weights_that_nothing_replaces_are_kept_and_need_no_update(source: Source | None) -> None:
    engine = await drained()
    await engine.release(weights=source)
    assert engine.facts.contents == {"weights": Contents("kept", "v0")}
    await engine.restore_weights()
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING


async def test_weights_that_are_replaced_are_discarded() -> None:
    engine = await drained()
    await engine.release(weights=V1)
    assert engine.facts.contents == {"weights": GARBAGE}
    await engine.restore_weights()
    assert engine.weights_refusal() is not None
    await engine.update_weights(V1)
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING


async def test_only_a_release_that_keeps_weights_takes_room_on_the_host() -> None:
    engine = await serving("e", AS_WANTED, KV_CACHE, caps={"device": "cuda"})

    async def processes() -> None:
        return None

    engine.adapter.processes = processes  # its host cannot be asked then
    asked = [await host_room(engine._session, Release(None, source), 1.0) for source in (None, Kept(), V1)]
    assert [type(verdict) for verdict in asked] == [Unmeasurable, Unmeasurable, NotApplicable]


@pytest.mark.parametrize(("on_host", "kind"), [(True, Unmeasurable), (False, NotApplicable)])
async def test_what_is_kept_elsewhere_takes_none(on_host: bool, kind: type) -> None:
    kept = TagSpec("kv_cache", "kv", "kept", 8 * GIB, on_host=on_host)
    engine = await serving("e", WEIGHTS, kept, caps={"device": "cuda"})

    async def processes() -> None:
        return None

    engine.adapter.processes = processes  # its host cannot be asked then
    assert type(await host_room(engine._session, Release(frozenset({"kv_cache"})), 1.0)) is kind


async def test_weights_that_were_to_be_kept_are_compared_with_those_before() -> None:
    engine = await drained()
    engine.adapter.engine.checksums = {"target": "before"}
    await engine.release(weights=Kept())
    await engine.restore_weights()
    engine.adapter.engine.checksums = {"target": "zeros"}
    with pytest.raises(GuardRefused, match="the weights were to be kept"):
        await engine.restore_kv()


@pytest.mark.parametrize(
    ("keeps_kv", "live", "fresh", "kind"),
    [
        (True, True, False, NotApplicable),
        (True, False, True, NotApplicable),
        (True, False, False, Refuted),
        (True, False, None, Refuted),
        (False, True, False, Refuted),
    ],
)
def test_requests_that_wait_with_their_kv_need_no_fresh_cache(
    keeps_kv: bool, live: bool, fresh: bool | None, kind: type
) -> None:
    """Where new weights came under them, only where they are to go on with older KV."""
    caps = capabilities(pause={"freeze": PauseTraits(drains=True, keeps_kv=keeps_kv, live_update=live)})
    known = facts(cache_fresh=fresh, paused_by="freeze")
    assert type(cache_fresh(context_of(Pause(), known, caps, Policy()))) is kind
