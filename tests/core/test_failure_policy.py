"""The table of what happens when some fail, cell by cell: engine `a` fails in a phase, and `b` does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import get_args

import pytest
from rig import V1, believing, fleet_of, serve_again, states

from lifecycle import ConfigurationError, Fleet, FleetError, Group, Refuted, State
from lifecycle.core.policy import OnFailure
from lifecycle.fleet.failure_policy import FAILURE_POLICY, Consequence, Failed, Others, Phase, Step, rows
from lifecycle.testing import LOST_AFTER, QUICK, REJECTED

Prepare = Callable[[Fleet], Awaitable[None]]


async def router_fails(fleet: Fleet) -> None:
    fleet.router.close_fails = OSError("the router is away")


async def pause_fails(fleet: Fleet) -> None:
    fleet["a"].adapter.script("pause", REJECTED)


async def drain_fails(fleet: Fleet) -> None:
    fleet["a"].adapter.engine.stubborn = -1


async def release_fails(fleet: Fleet) -> None:
    fleet["a"].adapter.engine.frees = False


async def stale_after_freeze(fleet: Fleet) -> None:
    """Both are paused by freeze with a cache that may be stale: on the way home they are paused anew, then drained."""
    await fleet.pause("freeze")
    for engine in fleet:
        believing(engine, cache_fresh=None)
    fleet["a"].adapter.script("pause", REJECTED)


async def stale_and_stubborn(fleet: Fleet) -> None:
    await fleet.pause()
    for engine in fleet:
        believing(engine, cache_fresh=None)
    fleet["a"].adapter.engine.stubborn = -1


def released_then(call: str, act: object) -> Prepare:
    """Both are released, and this call of `a` fails on the way home."""

    async def prepare(fleet: Fleet) -> None:
        await fleet.offload(weights=V1)
        fleet["a"].adapter.script(call, act)

    return prepare


async def released(fleet: Fleet) -> None:
    await fleet.offload(weights=V1)


async def mute(fleet: Fleet) -> None:
    await fleet.offload(weights=V1)
    fleet["a"].adapter.always("answers", Refuted(reason="no token came"))


#: How `a` fails in each phase; where each then is, by policy; and of which engines the router is closed.
CELLS: dict[Step, tuple[Prepare, dict[OnFailure, tuple[str, str, set[str]]]]] = {
    ("offload", Phase.CLOSE_ROUTER): (
        router_fails,
        {"restore": ("serving", "serving", set()), "hold": ("serving", "serving", set())},
    ),
    ("offload", Phase.PAUSE): (
        pause_fails,
        {"restore": ("serving", "serving", set()), "hold": ("serving", "paused", {"a", "b"})},
    ),
    ("offload", Phase.DRAIN): (
        drain_fails,
        {"restore": ("serving", "serving", set()), "hold": ("paused", "drained", {"a", "b"})},
    ),
    ("offload", Phase.RELEASE): (
        release_fails,
        {"restore": ("released", "serving", {"a"}), "hold": ("released", "released", {"a", "b"})},
    ),
    ("onload", Phase.PAUSE): (
        stale_after_freeze,
        {"restore": ("paused", "serving", {"a"}), "hold": ("paused", "serving", {"a"})},
    ),
    ("onload", Phase.DRAIN): (
        stale_and_stubborn,
        {"restore": ("paused", "serving", {"a"}), "hold": ("paused", "serving", {"a"})},
    ),
    ("onload", Phase.RESTORE_WEIGHTS): (
        released_then("restore", LOST_AFTER),
        {"restore": ("released", "serving", {"a"}), "hold": ("weights_restored", "serving", {"a"})},
    ),
    ("onload", Phase.UPDATE_WEIGHTS): (
        released_then("load", REJECTED),
        {"restore": ("released", "serving", {"a"}), "hold": ("weights_restored", "serving", {"a"})},
    ),
    ("onload", Phase.BETWEEN): (
        released,
        {
            "restore": ("weights_restored", "weights_restored", {"a", "b"}),
            "hold": ("weights_restored", "weights_restored", {"a", "b"}),
        },
    ),
    ("onload", Phase.RESTORE_KV): (
        released_then("flush", REJECTED),
        {"restore": ("released", "serving", {"a"}), "hold": ("drained", "serving", {"a"})},
    ),
    ("onload", Phase.RESTORE): (
        released_then("load", REJECTED),
        {"restore": ("released", "serving", {"a"}), "hold": ("weights_restored", "serving", {"a"})},
    ),
    ("onload", Phase.RESUME): (
        mute,
        {"restore": ("paused", "serving", {"a"}), "hold": ("paused", "serving", {"a"})},
    ),
}
for _, _ends in CELLS.values():
    _ends["quarantine"] = _ends["restore"]  # both are on one device: test_quarantine.py has those that are not


class StepFailed(Exception):
    """The caller's step between weights and KV went wrong."""


def step_fails() -> None:
    raise StepFailed("the trainer ran out of memory")


@pytest.mark.parametrize("on_failure", get_args(OnFailure))
@pytest.mark.parametrize("step", CELLS, ids="-".join)
async def test_a_cell(step: Step, on_failure: OnFailure) -> None:
    fleet, _ = await fleet_of("a", "b", router=True, policy=replace(QUICK, on_failure=on_failure))
    prepare, ends = CELLS[step]
    await prepare(fleet)
    move, phase = step
    with pytest.raises((FleetError, OSError, StepFailed)) as failed:
        if move == "offload":
            await fleet.offload(weights=V1, deadline_s=0.3)
        else:
            between, overlap = step_fails if phase is Phase.BETWEEN else None, phase is Phase.RESTORE
            await fleet.onload(between=between, overlap=overlap, deadline_s=0.3)
    a, b, closed = ends[on_failure]
    assert states(fleet) == {"a": a, "b": b}
    assert fleet.router.closed == closed
    if isinstance(failed.value, FleetError):
        assert "a: " in str(failed.value)
    else:
        assert (phase is Phase.BETWEEN) == isinstance(failed.value, StepFailed)


def test_every_cell_of_the_table_is_tested_and_documented() -> None:
    for on_failure in get_args(OnFailure):
        assert set(FAILURE_POLICY[on_failure]) == set(CELLS)
        assert [row[:2] for row in rows(on_failure)] == [(move, str(phase)) for move, phase in CELLS]


async def test_the_table_decides_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another row for a failed release, the others stay released."""
    step: Step = ("offload", Phase.RELEASE)
    other = {**FAILURE_POLICY["restore"], step: Consequence(Others.STAY, Failed.STAY)}
    monkeypatch.setitem(FAILURE_POLICY, "restore", other)  # type: ignore[arg-type]
    fleet, _ = await fleet_of("a", "b")
    await release_fails(fleet)
    with pytest.raises(FleetError):
        await fleet.offload(weights=V1, deadline_s=0.3)
    assert states(fleet) == {"a": "released", "b": "released"}


@pytest.mark.parametrize("opens", [True, False])
async def test_routed_is_refuted_where_the_router_can_neither_be_closed_nor_opened(opens: bool) -> None:
    fleet, _ = await fleet_of("a", "b", router=True)
    await router_fails(fleet)
    fleet.router.open_fails = None if opens else OSError("still away")
    with pytest.raises(OSError, match="the router is away"):
        await fleet.offload(weights=V1)
    assert {engine.facts.routed for engine in fleet} == {True if opens else None}
    refuted = {isinstance(engine.conditions["routed"].verdict, Refuted) for engine in fleet}
    assert refuted == {not opens}


async def test_the_step_between_runs_once_after_all_weights_and_before_any_kv() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    seen: list[dict[str, str]] = []
    journal.clear()

    async def frees_its_weights() -> None:
        seen.append(states(fleet))

    await fleet.onload(between=frees_its_weights)
    assert seen == [{"a": "weights_restored", "b": "weights_restored"}]
    assert {engine.state for engine in fleet} == {State.SERVING}


async def test_after_a_step_that_failed_another_onload_goes_on() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    with pytest.raises(StepFailed) as failed:
        await fleet.onload(between=step_fails)
    notes = "\n".join(failed.value.__notes__)
    assert "stay where they are" in notes
    assert "a weights_restored, b weights_restored" in notes
    await fleet.onload()
    assert states(fleet) == {"a": "serving", "b": "serving"}


async def test_waves_behind_one_that_failed_on_the_way_home_are_drained_and_serve() -> None:
    groups = {"prefill": Group(), "decode": Group(drain_after=("prefill",))}
    fleet, _ = await fleet_of("prefill/a", "decode/b", groups=groups)
    await stale_and_stubborn(fleet)
    with pytest.raises(FleetError) as failed:
        await fleet.onload(deadline_s=0.3)
    assert [error.engine for error in failed.value.exceptions] == ["a"]
    assert states(fleet) == {"a": "paused", "b": "serving"}


async def test_a_step_that_does_not_end_in_time_fails_the_move() -> None:
    fleet, _ = await fleet_of("a")
    await fleet.offload(weights=V1)

    async def hangs() -> None:
        import asyncio

        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await fleet.onload(between=hangs, between_deadline_s=0.02)
    assert states(fleet) == {"a": "weights_restored"}
    await serve_again(fleet["a"])


async def test_the_step_between_is_not_called_where_no_engine_has_its_weights_back() -> None:
    fleet, _ = await fleet_of("a")
    await fleet.offload(weights=V1)
    fleet["a"].adapter.script("load", REJECTED)
    called: list[str] = []
    with pytest.raises(FleetError, match="a: update_weights failed"):
        await fleet.onload(between=lambda: called.append("between"), deadline_s=0.3)
    assert called == []


@pytest.mark.parametrize("deadline_s", [0, -1.0, float("nan"), float("inf")])
async def test_a_bad_deadline_of_the_step_between_is_refused_before_anything_is_sent(deadline_s: float) -> None:
    fleet, journal = await fleet_of("a")
    await fleet.offload(weights=V1)
    journal.clear()
    with pytest.raises(ConfigurationError, match="between_deadline_s must be a finite number > 0"):
        await fleet.onload(between=step_fails, between_deadline_s=deadline_s)
    assert journal.calls() == []
