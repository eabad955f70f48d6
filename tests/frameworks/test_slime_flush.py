"""slime's flush loops in the actor for up to a minute, whatever the deadline of the drain is."""

from __future__ import annotations

import os
import threading

import pytest
from frameworks.servers import Group
from lifecycle.adapters.declared import About, DeclaredAdapter, Verb, Verbs

from lifecycle import Engine, FleetError, Policy, State
from lifecycle.frameworks.server import AsyncRolloutServer
from lifecycle.frameworks.slots import SlotMembers

TAGS = ("weights", "kv_cache")


class Actor:
    """slime's methods, and whether it admits requests. Its flush returns once somebody says so."""

    def __init__(self) -> None:
        self.admits, self.idle = "open", threading.Event()

    def pause_generation(self) -> None:
        self.admits = "closed"

    def flush_cache(self) -> None:
        if not self.idle.wait(60):
            raise TimeoutError("Timeout while flushing cache.")

    def release_memory_occupation(self) -> None: ...

    def resume_memory_occupation(self, tags: list[str] | None = None) -> None: ...

    def continue_generation(self) -> None:
        self.admits = "open"

    def admission(self) -> str:
        return self.admits


def engine_of(actor: Actor) -> Engine:
    verbs = Verbs(
        pause={"abort": Verb(call=actor.pause_generation, repeatable=True)},
        idle=Verb(call=actor.flush_cache, drops_cache=True),
        release=Verb(call=actor.release_memory_occupation, effects=dict.fromkeys(TAGS, "discarded")),
        restore=Verb(call=actor.resume_memory_occupation, effects=dict.fromkeys(TAGS, "resident")),
        push={"tensor": lambda: None},
        drop_cache=actor.flush_cache,
        resume=Verb(call=actor.continue_generation, repeatable=True),
        answer=lambda: "a token" if actor.admits == "open" else "",
        admission=actor.admission,
        barrier=actor.admission,
    )
    policy = Policy(residual_threshold_gib=64.0, settle_s=0.2, poll_s=0.01)
    adapter = DeclaredAdapter("slime:a", verbs, processes=os.getpid(), about=About(device="cpu"))
    return Engine(adapter, name="a", policy=policy, lease=None)


async def test_an_engine_whose_flush_runs_on_past_the_deadline_is_failed_until_it_has_ended() -> None:
    """Nothing is called behind it, so that nothing says where the engine is."""
    actor = Actor()
    async with AsyncRolloutServer(SlotMembers([Group([actor])], engine_of)) as server:
        with pytest.raises(FleetError, match="a: drain failed"):
            await server.offload(deadline_s=0.4)
        (engine,) = await server.engines()
        assert engine.state is State.FAILED
        assert actor.admits == "closed"
        actor.idle.set()
        fleet = await server.fleet()
        found = await fleet.recover(to="serving", deadline_s=5.0)
        assert found["a"].state is State.SERVING
        assert actor.admits == "open"
