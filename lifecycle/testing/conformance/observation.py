"""Observation in every state of the ring, by the driver that brought the engine there and by one that attaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...core.states import RING, State
from ...store.sqlite import Store
from .bench import Bench
from .coroutine_case import coroutine_case

#: The state that an observation yields: kv_restored has the facts of drained.
OBSERVED_AS = {State.KV_RESTORED: State.DRAINED}


class ObservationCases:
    """Verification, recovery, attaching without a store, and attaching with one, in every state."""

    @pytest.mark.parametrize("state", RING, ids=str)
    @coroutine_case
    async def test_looked_at(self, bench: Bench, state: State) -> None:
        """`verify` changes nothing, and `recover` finds the state again."""
        engine = await bench.engine_in(state)
        assert await engine.verify() is state
        assert (await engine.recover()).state in {OBSERVED_AS.get(state, state), *_stronger(state)}
        await bench.onload(engine)

    @pytest.mark.parametrize("state", RING, ids=str)
    @coroutine_case
    async def test_met_afresh(self, bench: Bench, state: State) -> None:
        """A driver without a store claims no more than is true; a fact that cannot be observed stays unknown."""
        engine = await bench.engine_in(state)
        newcomer = await bench.attach()
        assert newcomer.state in {
            state,
            OBSERVED_AS.get(state, state),
            State.FAILED,
            *_weaker(state),
            *_stronger(state),
        }
        assert await engine.verify() is state, "attaching changed the state"
        await bench.onload(engine)

    @pytest.mark.parametrize("state", RING, ids=str)
    @coroutine_case
    async def test_taken_over(self, bench: Bench, state: State, tmp_path: Path) -> None:
        """A second driver with the same store goes on where the first one stopped."""
        store = Store(tmp_path / "engines.sqlite3")
        try:
            await bench.engine_in(state, store=store)
            successor = await bench.attach(store=store)
            assert successor.state in {OBSERVED_AS.get(state, state), *_stronger(state)}
            await bench.onload(successor)
        finally:
            store.close()


def _stronger(state: State) -> set[State]:
    """The states that an observation may yield besides: a paused engine without requests is drained."""
    return {State.DRAINED} if state is State.PAUSED else set()


def _weaker(state: State) -> set[State]:
    """The states whose claims are a part of this one's."""
    return {State.PAUSED} if state in (State.DRAINED, State.KV_RESTORED) else set()
