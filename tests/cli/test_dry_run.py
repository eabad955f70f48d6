"""A dry run: its calls are those that are sent afterwards, and nothing is sent while it is made."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lifecycle import Fleet, FromDisk, Kept
from lifecycle.cli import moving
from lifecycle.cli.options import Options
from lifecycle.core.calls import Call, Reply
from lifecycle.core.commands import Drain, Pause
from lifecycle.core.facts import Fact, Facts, Grade, TagSpec
from lifecycle.rules.dry_run import dry_run, expected_after
from lifecycle.testing import KEPT_WEIGHTS, KV_CACHE, ScriptedAdapter, capabilities, scripted

pytestmark = pytest.mark.usefixtures("bare_environment")

URL = ["scripted://e"]
KEPT = Options(URL, weights="kept")
LOADED = Options(URL, weights="/checkpoint", version="v1")
PLAIN = Options(URL)

Given = tuple[moving.Verb, Options]
ROUND: list[Given] = [
    (moving.pause, PLAIN),
    (moving.drain, PLAIN),
    (moving.release, LOADED),
    (moving.restore, LOADED),
    (moving.resume, PLAIN),
]
CASES: dict[str, list[Given]] = {
    "step by step": ROUND,
    "pause by another mode": [(moving.pause, Options(URL, mode="keep")), (moving.drain, PLAIN)],
    "one stage, then the other": [
        *ROUND[:3],
        (moving.restore, Options(URL, only="weights")),
        (moving.restore, Options(URL, only="weights", weights="/checkpoint", version="v1")),
        (moving.restore, Options(URL, only="kv")),
    ],
    "there and back": [
        (moving.offload, LOADED),
        (moving.onload, PLAIN),
        (moving.offload, PLAIN),
        (moving.onload, PLAIN),
    ],
    "offload from half-way": [(moving.pause, PLAIN), (moving.offload, LOADED), (moving.onload, PLAIN)],
    "what is there sends nothing": [(moving.offload, LOADED), (moving.release, LOADED), (moving.offload, LOADED)],
    "a cycle": [(moving.cycle, LOADED), (moving.cycle, PLAIN)],
    "a cycle of some tags": [(moving.cycle, Options(URL, tags="kv_cache", mode="keep"))],
}


class Recording(ScriptedAdapter):
    """A scripted engine whose calls are kept as they were planned."""

    sent: list[str]

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        self.sent.append(str(call))
        return await super().send(call, deadline_s=deadline_s)


async def planned_and_sent(verbs: Sequence[Given], *tags: TagSpec) -> list[tuple[list[str], list[str]]]:
    """Of each verb, the calls of its dry run, and those that were sent when it was run after it."""
    adapter = Recording(capabilities_=capabilities(*tags))
    adapter.sent = []
    engine = scripted(adapter)
    found = []
    async with Fleet([engine]) as fleet:
        for verb, options in verbs:
            action = verb(options)
            planned = dry_run(engine.facts, action.commands(engine), adapter.plan)
            assert adapter.sent == []
            await action.run(fleet, [engine], None)
            found.append(([str(call) for _, calls in planned for call in calls], adapter.sent))
            adapter.sent = []
    return found


@pytest.mark.parametrize("case", CASES)
async def test_what_a_dry_run_prints_is_what_is_sent(case: str) -> None:
    for planned, sent in await planned_and_sent(CASES[case]):
        assert planned == sent


async def test_weights_that_the_engine_keeps_are_not_loaded() -> None:
    ((planned, sent),) = await planned_and_sent([(moving.cycle, KEPT)], KEPT_WEIGHTS, KV_CACHE)
    assert planned == sent
    assert not any(call.startswith("load") for call in sent)


async def test_a_source_that_is_not_named_is_the_one_that_the_fleet_takes() -> None:
    engine = scripted(ScriptedAdapter())
    async with Fleet([engine]) as fleet:
        await fleet.offload(weights=FromDisk("/a", "v1"))
        assert [str(each) for each in moving.onload(PLAIN).commands(engine)][1] == "update_weights"
        await fleet.onload()
        (*_, release) = moving.offload(PLAIN).commands(engine)
        assert release.weights == FromDisk("/a", "v1")
        (*_, release) = moving.offload(KEPT).commands(engine)
        assert release.weights == Kept()


def test_what_is_expected_after_a_command_is_what_its_calls_say() -> None:
    before = Facts().learn({Fact.ADMISSION: "open", Fact.RUNNING: 3, Fact.MAPPED: {"kv": True}}, Grade.MEASURED)
    closing = Call("pause", effect={Fact.ADMISSION: "closed", Fact.RUNNING: None})
    after = expected_after(before, Pause(), (closing, Call("read")))
    assert (after.admission, after.running, after.mapped["kv"]) == ("closed", None, True)
    assert after.grades[Fact.ADMISSION] is Grade.ACKNOWLEDGED
    assert expected_after(after, Drain(), ()).running == 0
    assert before.running == 3


def test_each_command_is_planned_on_what_is_expected_by_then() -> None:
    seen = []

    def plan(command: object, facts: Facts) -> tuple[Call, ...]:
        seen.append(facts.running)
        return (Call("pause", effect={Fact.RUNNING: None}),) if isinstance(command, Pause) else ()

    start = Facts().learn({Fact.RUNNING: 5}, Grade.REPORTED)
    planned = dry_run(start, [Pause(), Drain(), Drain()], plan)
    assert seen == [5, None, 0]
    assert [len(calls) for _, calls in planned] == [1, 0, 0]
