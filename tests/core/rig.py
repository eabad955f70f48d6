"""What the core's tests share: an engine in any state of the ring, and readings of the journal."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lifecycle import Contents, Engine, Fact, Facts, Fleet, FromDisk, Grade, Group, State
from lifecycle.core.record import Calibration, Desired, Record
from lifecycle.rules.evidence import Context
from lifecycle.testing import QUICK, Journal, ScriptedAdapter, ScriptedRouter, capabilities, scripted

V1 = FromDisk("/models/step-1", "v1")
V2 = FromDisk("/models/step-2", "v2")

#: How an engine comes from the state before into this one.
STEPS = {
    State.PAUSED: lambda engine: engine.pause(),
    State.DRAINED: lambda engine: engine.drain(),
    State.RELEASED: lambda engine: engine.release(weights=V1),
    State.WEIGHTS_RESTORED: lambda engine: engine.restore_weights(),
    State.KV_RESTORED: lambda engine: _kv_restored(engine),
}


async def _kv_restored(engine: Engine) -> None:
    await engine.update_weights(V1)
    await engine.restore_kv()


def new_engine(
    name: str = "e", *tags: Any, policy: Any = QUICK, caps: dict[str, Any] | None = None, **how: Any
) -> Engine:
    """An engine that is not connected yet. `how`: of the adapter (journal, sizes, devices) and of `scripted`."""
    of_engine = {key: how.pop(key) for key in ("group", "offload", "has_router") if key in how}
    adapter = ScriptedAdapter(name, capabilities(*tags, **(caps or {})), **how)
    return scripted(adapter, policy=policy, **of_engine)


async def serving(name: str = "e", *tags: Any, **how: Any) -> Engine:
    """An engine that serves."""
    return await new_engine(name, *tags, **how).connect()


async def engine_in(state: State, *tags: Any, **how: Any) -> Engine:
    """An engine in this stable state, brought there by its verbs; its journal is empty then."""
    engine = await serving("e", *tags, **how)
    for at, step in STEPS.items():
        if engine.state is state:
            break
        if state is State.FAILED:
            engine._session.go("contradicted", reason="a test")
            break
        await step(engine)
        assert engine.state is at
    assert engine.state is state
    engine.adapter.journal.clear()
    return engine


async def fleet_of(
    *names: str,
    groups: dict[str, Group] | None = None,
    router: bool = False,
    policy: Any = QUICK,
    caps: dict[str, dict[str, Any]] | None = None,
) -> tuple[Fleet, Journal]:
    """A connected fleet; a name may be `group/name`. All write in one journal, which is empty then."""
    journal = Journal()
    engines = []
    for name in names:
        group, _, bare = name.rpartition("/")
        offload = (groups or {}).get(group, Group()).offload
        engines.append(
            new_engine(
                bare,
                journal=journal,
                group=group or "default",
                offload=offload,
                has_router=router,
                policy=policy,
                caps=(caps or {}).get(bare),
            )
        )
    fleet = Fleet(engines, groups=groups, policy=policy, router=ScriptedRouter(journal) if router else None)
    await fleet.__aenter__()
    journal.clear()
    return fleet, journal


async def serve_again(engine: Engine) -> None:
    """From released, drained or paused, the engine serves again by its verbs."""
    if engine.state is State.RELEASED:
        await engine.restore_weights()
    if engine.state is State.PAUSED:
        await engine.drain()
    if engine.weights_refusal():
        await engine.update_weights(V1)
    if engine.state is State.WEIGHTS_RESTORED:
        await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING
    assert engine.adapter.engine.violations == []
    assert engine.adapter.engine.submit()


def sent(engine: Engine) -> list[str]:
    """The calls that the engine was sent, in order."""
    return engine.adapter.journal.calls(engine.name)


def states(engines: Iterable[Engine]) -> dict[str, str]:
    """Where each engine is."""
    return {engine.name: str(engine.state) for engine in engines}


def facts(**known: Any) -> Facts:
    """What is known of an engine that is drained and healthy, with these changes."""
    healthy = {
        "boot": "boot-1",
        "admission": "closed",
        "paused_by": "abort",
        "running": 0,
        "mapped": {"weights": True, "kv_cache": True},
        "contents": {"weights": Contents("launched", "v0")},
        "cache_fresh": True,
    }
    return Facts().learn({Fact(name): value for name, value in {**healthy, **known}.items()}, Grade.REPORTED)


def context_of(command: Any, known: Facts, caps: Any, policy: Any, **changes: Any) -> Context:
    """What a guard or proof is given about an engine of which this is known.

    `wanted`, `attached_boot`, `full`, `learned` and `kept_checksums` are of its record.
    """
    calibration = Calibration(
        attached_boot=changes.pop("attached_boot", None),
        bytes_by_tags=changes.pop("learned", {}),
        reading_all_mapped=changes.pop("full", None),
        kept_checksums=changes.pop("kept_checksums", {}),
    )
    desired = Desired(version=changes.pop("wanted", None))
    record = Record(facts=known, desired=desired, calibration=calibration)
    return Context(command, record, caps, policy, **changes)


def put(engine: Engine, **changes: Any) -> None:
    """The record of the engine has these parts, without evidence: what no public way allows."""
    engine._session._record = replace(engine.record, **changes)


def believing(engine: Engine, **known: Any) -> None:
    """Only what is known of the engine changed, not the engine."""
    put(engine, facts=engine.facts.learn({Fact(name): value for name, value in known.items()}, Grade.REPORTED))


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names
