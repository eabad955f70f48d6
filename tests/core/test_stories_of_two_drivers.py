"""Stories of an engine with two drivers, each of which ended in one that was killed or taken from under the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rig import V1, V2

from lifecycle import (
    Engine,
    EngineBusy,
    EngineHeld,
    Fleet,
    FleetError,
    GuardRefused,
    InvalidTransition,
    OperationFailed,
    Pushed,
    State,
)
from lifecycle.core.calls import Call, Reply
from lifecycle.core.facts import Fact, SizeGrade, TagSpec
from lifecycle.core.units import GIB, MIB
from lifecycle.store.leases import Leases
from lifecycle.store.sqlite import Store
from lifecycle.testing import HANG, QUICK, Act, Journal, ScriptedAdapter, ScriptedRouter, capabilities


def driver(adapter: ScriptedAdapter, lease: Any = None, **how: Any) -> Engine:
    """One more driver of this engine."""
    return Engine(adapter, name=adapter.name, policy=QUICK, probe=adapter.probe, lease=lease, **how)


async def until(condition: Callable[[], bool]) -> None:
    """It is so; fails where it is not after many turns of the loop."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it did not come to be so")


@pytest.mark.parametrize("grade", list(SizeGrade))
async def test_bytes_that_fit_no_choice_of_tags_decide_nothing_by_the_level_either(grade: SizeGrade) -> None:
    tags = (
        TagSpec("weights", "weights", "discarded", 4 * GIB, grade),
        TagSpec("kv_cache", "kv", "discarded", 8 * GIB, grade),
    )
    adapter = ScriptedAdapter("e", capabilities(*tags), sizes={"weights": 4 * GIB, "kv_cache": 5 * GIB})
    adapter.engine.leaked_bytes = 640 * MIB
    engine = await driver(adapter).connect()
    adapter.engine.apply("pause", {"mode": "abort"})  # somebody closes it, and it drops a cache; nothing is released
    adapter.engine.leaked_bytes = 0
    assert await engine.verify() is State.FAILED
    assert engine.facts.mapped == {"weights": None, "kv_cache": None}
    assert not adapter.engine.deaths


class _EndedError(BaseException):
    """The driver's process ends here."""


async def test_weights_that_somebody_else_loaded_are_not_taken_for_those_that_were_kept(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await driver(adapter, store=Store(tmp_path / "engines")).connect()
    await first.pause()
    adapter.engine.label = "theirs"
    await first.resume()
    adapter.engine.label = "others"  # while it serves
    second = await driver(adapter, store=Store(tmp_path / "engines")).connect()
    assert second.state is State.FAILED
    assert adapter.engine.admission == "open", "attaching sends nothing"
    assert "weights holds contents unknown" in second.reason
    with pytest.raises(
        InvalidTransition, match=r"it is failed: .*weights holds contents unknown.*recover\(\) closes it"
    ):
        await second.pause()
    assert (await second.recover()).state is State.PAUSED
    assert second.reason == "its facts make this state"


@pytest.mark.parametrize("leased", [True, False])
async def test_of_two_drivers_that_meet_an_engine_at_once_either_may_move_it(tmp_path: Path, leased: bool) -> None:
    adapter = ScriptedAdapter("e")
    leases = [Leases(tmp_path / "leases") if leased else None for _ in range(2)]
    both = [driver(adapter, lease, store=Store(tmp_path / "engines")) for lease in leases]
    first, second = both
    read, reads, met = adapter.probe.read, asyncio.Event(), asyncio.Event()

    async def slowly(*given: Any, **how: Any) -> Any:
        adapter.probe.read = read  # type: ignore[method-assign]
        reads.set()
        await met.wait()
        return await read(*given, **how)

    adapter.probe.read = slowly  # type: ignore[method-assign]
    connecting = asyncio.ensure_future(first.connect())
    await asyncio.wait_for(reads.wait(), 5)
    await second.connect()
    if not leased:
        await second.pause()
    met.set()
    await connecting
    if not leased:
        assert first.state is State.DRAINED, "what the other kept counts, and no request runs"
    for each in both if leased else [first]:
        if leased:
            await each.pause()
        await each.resume()
        assert each.state is State.SERVING


async def test_what_a_driver_killed_in_an_update_kept_of_the_mapping_is_only_remembered(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    store = Store(tmp_path / "engines")
    first = await driver(adapter, store=store).connect()
    await first.pause()
    await first.drain()
    await first.release(weights=V1)
    await first.restore_weights()
    send = adapter.send

    def never(*given: Any) -> None:
        raise _EndedError

    async def ends(call: Call, *, deadline_s: float) -> Reply:
        await send(call, deadline_s=deadline_s)
        store.save = never  # type: ignore[method-assign]
        raise _EndedError

    adapter.send = ends  # type: ignore[method-assign]
    with pytest.raises(_EndedError):
        await first.update_weights(V1, deadline_s=0.2)
    adapter.send = send  # type: ignore[method-assign]
    adapter.engine.apply("restore", {"tags": ["kv_cache"]})  # somebody else, who left the admission closed
    until = asyncio.get_running_loop().time() + 5
    while True:
        try:
            second = await driver(adapter, store=Store(tmp_path / "engines")).connect()
            break
        except EngineHeld:  # until the deadline of the call that was under way
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.05)
    assert second.facts.mapped["kv_cache"] is True
    assert second.state is State.DRAINED
    assert not adapter.engine.deaths


async def test_who_only_looks_ends_no_push_of_another_driver(tmp_path: Path) -> None:
    leases, adapter = tmp_path / "leases", ScriptedAdapter("e")
    adapter.reports_tags = True
    first = await driver(adapter, Leases(leases)).connect()
    await first.pause()
    await first.drain()

    async def breaks(parties: Any) -> None:
        raise RuntimeError("the trainer broke")

    adapter.script("close_update", *[Act("rejected", "never", status=500, detail="no")] * 4)
    with pytest.raises(OperationFailed):
        await first.update_weights(Pushed(breaks, "v9"))
    await first.aclose()
    looks = await driver(adapter, Leases(leases)).connect()
    assert looks.record.uncertain.push_open
    adapter.as_modelled()
    pushes = await driver(adapter, Leases(leases)).connect()
    await pushes.recover()
    await pushes.release(weights=V1)
    await pushes.restore_weights()
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def push(parties: Any) -> None:
        await parties[0].push("tensor")
        begun.set()
        await goes_on.wait()

    update = asyncio.create_task(pushes.update_weights(Pushed(push, "v2")))
    await asyncio.wait_for(begun.wait(), 5)
    sent = len(adapter.journal.calls())
    await looks.verify()
    assert adapter.journal.calls()[sent:] == []
    goes_on.set()
    assert (await update).dest is State.WEIGHTS_RESTORED


@pytest.mark.parametrize("refused", ["override_state", "offloaded"])
async def test_what_is_refused_while_a_command_is_under_way_frees_no_lease(tmp_path: Path, refused: str) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, Leases(tmp_path / "leases")).connect()
    adapter.script("observe", HANG)
    pause = asyncio.create_task(engine.pause(deadline_s=1.0))
    await until(lambda: engine.busy is not None)
    with pytest.raises(EngineBusy):
        if refused == "override_state":
            engine.override_state(State.PAUSED, by="an operator", reason="a try")
        else:
            async with Fleet([engine]).offloaded(weights=V1):
                pass
    second = await driver(adapter, Leases(tmp_path / "leases")).connect()
    with pytest.raises(EngineHeld):
        await second.pause()
    pause.cancel()
    await asyncio.gather(pause, return_exceptions=True)


async def test_a_release_is_refused_by_where_all_engines_are_after_another_driver(tmp_path: Path) -> None:
    leases, one, two = tmp_path / "leases", ScriptedAdapter("one"), ScriptedAdapter("two")
    async with Fleet([driver(each, Leases(leases)) for each in (one, two)]) as drains:
        await drains.pause()
        await drains.drain()
    async with Fleet([driver(each, Leases(leases)) for each in (one, two)]) as fleet:
        async with Fleet([driver(one, Leases(leases))]) as resumes:
            await resumes.resume()
        with pytest.raises(FleetError, match="one: release refused in state serving"):
            await fleet.release(weights=V1)
        assert fleet["two"].state is State.DRAINED
        assert not one.engine.unmapped | two.engine.unmapped


async def test_until_a_given_up_call_has_ended_nobody_attaches(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    engine = await driver(adapter, Leases(tmp_path / "leases")).connect()
    await engine.pause()
    await engine.drain()
    adapter.late_when_cancelled = True
    adapter.script("release", HANG)
    adapter.script("barrier", *[Act("lost", "never")] * 9)
    release = asyncio.create_task(engine.release(weights=V1, deadline_s=60.0))
    await until(lambda: adapter.journal.calls()[-1].startswith("e: release"))
    release.cancel()
    await asyncio.gather(release, return_exceptions=True)
    assert Fact.MAPPED not in engine.facts.grades
    await engine.aclose()
    with pytest.raises(EngineHeld, match="may run until"):
        await driver(adapter, Leases(tmp_path / "leases")).connect()


async def test_what_a_killed_driver_sent_takes_effect_before_the_next_one_loads(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    killed = await driver(adapter, Leases(tmp_path / "leases")).connect()
    await killed.pause()
    await killed.drain()
    second = await driver(adapter, Leases(tmp_path / "leases")).connect()
    send, shared = adapter.send, killed._session.shared

    def never(*given: Any) -> None:
        raise _EndedError

    async def ends(call: Call, *, deadline_s: float) -> Reply:
        await send(call, deadline_s=deadline_s)
        shared.save = never  # type: ignore[method-assign, union-attr]
        raise _EndedError

    adapter.send = ends  # type: ignore[method-assign]
    adapter.script("load", Act("lost", "late", after_calls=2))
    with pytest.raises(_EndedError):
        await killed.update_weights(V1, deadline_s=1.0)
    adapter.send = send  # type: ignore[method-assign]
    await killed.aclose()
    await second.update_weights(V2)
    await second.resume()
    assert adapter.engine.label == "v2", "it serves what its driver says"
    assert adapter.engine.contents["weights"].version == second.facts.contents["weights"].version == "v2"


def beside(adapter: ScriptedAdapter, folder: Path) -> Engine:
    """A driver that shares leases and store with the others of this folder."""
    return driver(adapter, Leases(folder / "leases"), store=Store(folder / "engines"))


async def released_by_a_driver(adapter: ScriptedAdapter, folder: Path) -> Engine:
    """A driver that has released the engine, and has its lease."""
    first = await beside(adapter, folder).connect()
    await first.pause()
    await first.drain()
    await first.release(weights=V1)
    return first


async def test_who_only_looks_writes_over_nothing_that_the_driver_of_an_engine_keeps(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await released_by_a_driver(adapter, tmp_path)
    looks = await beside(adapter, tmp_path).connect()
    adapter.engine.apply("resume", {})  # somebody opens it for a moment
    assert await looks.verify() is State.FAILED
    assert looks.driven_by is not None
    assert looks.driven_by.startswith(f"{first._session.owner.driver.who} has it")
    adapter.engine.apply("pause", {"mode": "abort"})
    await first.restore_weights()  # what it keeps is what it kept last
    assert first.state is State.WEIGHTS_RESTORED


async def test_who_meets_a_new_process_leaves_what_is_kept_to_the_driver_that_has_it(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await released_by_a_driver(adapter, tmp_path)
    adapter.engine.restart()
    looks = await beside(adapter, tmp_path).connect()
    assert looks.state is State.SERVING
    await looks.aclose()
    await first.recover()
    await Fleet([first]).onload()
    assert first.state is State.SERVING
    assert adapter.engine.label == "v1"


async def test_a_window_that_fails_leaves_the_engine_to_serve_what_another_driver_named_before_it(
    tmp_path: Path,
) -> None:
    adapter = ScriptedAdapter("e")
    first, second = (Fleet([driver(adapter, Leases(tmp_path / "leases"))]) for _ in range(2))
    async with first, second:
        async with first.offloaded(weights=V2):
            pass
        with pytest.raises(RuntimeError, match="the training step broke"):
            async with second.offloaded(["kv_cache"]):
                raise RuntimeError("the training step broke")
        assert second["e"].state is State.SERVING
        assert second["e"].desired.version == adapter.engine.label == "v2"


class NoRecords:
    """A holder of leases that has no place for records, as one on another host."""

    def __init__(self, path: Path) -> None:
        self.leases = Leases(path)

    def __call__(self, question: str, **given: Any) -> Any:
        return getattr(self.leases, question)(**given)


async def test_weights_that_another_driver_loaded_and_kept_no_record_of_are_not_those_of_the_launch(
    tmp_path: Path,
) -> None:
    adapter = ScriptedAdapter("e", version=None)  # it does not say what it was launched with
    first, second = [await driver(adapter, NoRecords(tmp_path / "leases")).connect() for _ in range(2)]
    async with Fleet([first]).offloaded(weights=V1):
        pass
    assert (await second.recover()).state is State.DRAINED
    assert second.facts.contents["weights"] is None
    assert adapter.engine.admission == "closed"


async def test_an_engine_that_another_driver_opened_is_closed_before_it_is_released(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = await driver(adapter, NoRecords(tmp_path / "leases")).connect()
    await first.pause()
    second = await driver(adapter, NoRecords(tmp_path / "leases")).connect()
    assert second.state is State.DRAINED
    await first.resume()
    adapter.reports_admission = False  # what answers now does not say it
    with suppress(InvalidTransition):  # found open, it was closed: it is paused, and not drained
        await second.release(weights=V1)
    assert not adapter.engine.submit()
    assert adapter.engine.deaths == [], "a request that came in would have ended it"


async def test_a_router_that_an_earlier_driver_closed_may_send_again(tmp_path: Path) -> None:
    adapter = ScriptedAdapter("e")
    first = driver(adapter, store=Store(tmp_path / "engines"), has_router=True)
    async with Fleet([first], router=ScriptedRouter(Journal())) as fleet:
        await fleet.pause()
        await first.resume()  # it alone: nobody opens the router
        assert first.facts.routed is False
    second = await driver(adapter, store=Store(tmp_path / "engines"), has_router=True).connect()
    with pytest.raises(GuardRefused, match="the router has not confirmed"):
        await second.pause()
    assert adapter.engine.admission == "open"
