"""Points are what a cycle was seen to do; those that are drawn are spread, and the whole matrix has them all."""

from __future__ import annotations

from points import BOUNDARIES, DRIVES, HITS, Effect, Trace, cases, hooked, spread, whole

from lifecycle import Fleet
from lifecycle.testing import QUICK, ScriptedAdapter, scripted

COMMANDS = ("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume")
TRACES = {
    drive: Trace([Effect(engine, command, what, 1) for engine in range(3) for command in COMMANDS for what in "ab"])
    for drive in DRIVES
}


def test_the_points_that_are_drawn_are_spread_over_commands_boundaries_and_who_is_hit() -> None:
    every = cases(TRACES, 0)
    drawn = [case for part in range(9) for case in spread(every, 4, seed=5, part=part)]
    assert {case.hit for case in drawn} == set(HITS)
    assert {case.point.boundary for case in drawn} == set(BOUNDARIES)
    assert {case.point.effect.command for case in drawn} == set(COMMANDS)
    assert {case.point.effect.engine for case in drawn} == {0, 1, 2}
    assert drawn == [case for part in range(9) for case in spread(every, 4, seed=5, part=part)], "a seed repeats them"
    assert drawn != [case for part in range(9) for case in spread(every, 4, seed=6, part=part)]


def test_the_whole_matrix_kills_the_driver_at_every_point_and_hits_the_others_at_each_effect() -> None:
    every = cases(TRACES, 0)
    tried = whole(every, 0)
    points = {point for trace in TRACES.values() for point in trace.points()}
    assert {case.point for case in tried if case.hit == "driver"} == points
    effects = {(str(point.effect), point.boundary) for point in points}
    for hit in HITS:
        assert {(str(case.point.effect), case.point.boundary) for case in tried if case.hit == hit} == effects
    assert {case.through_released for case in tried} == {case.drive == "moves" for case in tried} == {True, False}


async def test_what_acts_on_an_engine_is_a_point_and_a_proof_that_is_asked_until_it_holds_is_one() -> None:
    trace, fleet = Trace(), Fleet([await scripted(ScriptedAdapter(name), policy=QUICK).connect() for name in "ab"])

    async def within(effect: Effect, act: object) -> object:
        trace.effects.append(effect)
        return await act()  # type: ignore[operator]

    hooked(fleet, within)
    await fleet.pause()
    await fleet.drain()
    await fleet.resume()
    assert [effect for effect in trace.effects if effect.engine == 1] == [
        Effect(1, "pause", "pause", 1),
        Effect(1, "drain", "proof that it is idle", 1),
        Effect(1, "resume", "resume", 1),
        Effect(1, "resume", "proof that it answers", 1),
    ]
