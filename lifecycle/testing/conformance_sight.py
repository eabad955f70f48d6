"""Looking: at an engine in every state of the ring, by those who led it there and by those who meet it there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..core.states import RING, State
from ..store.sqlite import Store
from .conformance_bench import Bench
from .conformance_story import story

#: What the facts of a state make where its history is not known: kv_restored has those of drained.
ALIKE = {State.KV_RESTORED: State.DRAINED}


class SightCases:
    """Observation and recovery in every state; meeting it afresh, and taking it over with what was remembered."""

    @pytest.mark.parametrize("state", RING, ids=str)
    @story
    async def test_looked_at(self, bench: Bench, state: State) -> None:
        """A look changes nothing, and recovery finds the state again."""
        engine = await bench.engine_in(state)
        assert await engine.verify() is state
        assert await engine.recover() in {ALIKE.get(state, state), *_stronger(state)}
        await bench.lead_home(engine)

    @pytest.mark.parametrize("state", RING, ids=str)
    @story
    async def test_met_afresh(self, bench: Bench, state: State) -> None:
        """Somebody who knows nothing of it claims no more than is so: what cannot be seen is not guessed."""
        engine = await bench.engine_in(state)
        stranger = await bench.attach()
        assert stranger.state in {state, ALIKE.get(state, state), State.FAILED, *_weaker(state), *_stronger(state)}
        assert await engine.verify() is state, "to be met changed it"
        await bench.lead_home(engine)

    @pytest.mark.parametrize("state", RING, ids=str)
    @story
    async def test_taken_over(self, bench: Bench, state: State, tmp_path: Path) -> None:
        """Another process that shares the memory of the first goes on where that stopped."""
        store = Store(tmp_path / "engines.sqlite3")
        try:
            await bench.engine_in(state, store=store)
            heir = await bench.attach(store=store)
            assert heir.state in {ALIKE.get(state, state), *_stronger(state)}
            await bench.lead_home(heir)
        finally:
            store.close()


def _stronger(state: State) -> set[State]:
    """The states that a look may find it to be in besides: a paused engine whose requests have ended is drained."""
    return {State.DRAINED} if state is State.PAUSED else set()


def _weaker(state: State) -> set[State]:
    """The states that claim less than this one and nothing else."""
    return {State.PAUSED} if state in (State.DRAINED, State.KV_RESTORED) else set()
