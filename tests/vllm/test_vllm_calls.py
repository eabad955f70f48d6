"""What a vLLM server is sent, in every version range, and what counts as done."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lifecycle.adapters.vllm.plan import MODES
from lifecycle.adapters.vllm.versions import VERSIONS
from vllm_driving import after, call_of, carried_out, closed, driven, facts
from vllm_server import EMPTY, NOT_FOUND, Shape, error

from lifecycle import (
    Call,
    Drain,
    Fact,
    FromDisk,
    Kept,
    Pause,
    Pushed,
    Release,
    RestoreKV,
    RestoreWeights,
    Resume,
    UpdateWeights,
)
from lifecycle.core.facts import GARBAGE, Contents
from lifecycle.core.verdicts import REQUESTS_RUN, Pending, Proved

V1 = FromDisk("/models/step-1", "step-1")
#: One release of each range.
FIELD = ["0.24.0", "0.25.1", "0.26.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0"]
STATUSES = ["0.32.0", "0.33.0"]
ASLEEP = {"mapped": {"weights": False, "kv_cache": False}}


def test_every_range_is_replayed_here() -> None:
    assert {VERSIONS.find(version) for version in FIELD} == set(VERSIONS)


RING = (Pause(), Drain(), Release(None, V1), RestoreWeights(), UpdateWeights(V1), RestoreKV(), Resume())
SENT = {
    "0.24.0": [
        "POST /pause?mode=abort&clear_cache=true",
        "POST /sleep?level=2&mode=keep",
        "POST /wake_up?tags=weights",
        "POST /collective_rpc",
        "POST /wake_up?tags=kv_cache",
        "POST /pause?mode=keep&clear_cache=true",
        "POST /reset_prefix_cache",
        "POST /resume",
    ]
}
SENT["0.27.1"] = [*SENT["0.24.0"][:4], "POST /update_weight_version", *SENT["0.24.0"][4:]]


@pytest.mark.parametrize("version", FIELD)
async def test_the_ring(version: str) -> None:
    async with driven(version) as (server, adapter):
        known = facts()
        for command in (
            Pause(),
            Drain(),
            Release(None, V1),
            RestoreWeights(),
            UpdateWeights(V1),
            RestoreKV(),
            Resume(),
        ):
            replies = await carried_out(adapter, command, known)
            assert [reply.outcome for reply in replies] == ["done"] * len(adapter.plan(command, known)), replies
            known = after(adapter, command, known)
            asleep = {tag for tag, mapped in known.mapped.items() if not mapped}
            assert asleep == server.asleep
            assert known.admission == ("open" if server.paused is None else "closed")
        labels = adapter._effects.labels
        assert server.sent() == SENT["0.27.1" if labels else "0.24.0"]
        assert server.label == ("step-1" if labels else "default")
        assert known.contents == {"weights": Contents("loaded", "step-1")}
        assert known.cache_fresh


@pytest.mark.parametrize(
    ("source", "level"), [(None, "1"), (Kept(), "1"), (V1, "2"), (Pushed(None, "v"), "2")], ids=str
)
async def test_the_level_follows_from_where_the_weights_will_come_from(source: Any, level: str) -> None:
    async with driven() as (server, adapter):
        server.paused = "abort"
        await carried_out(adapter, Release(None, source), closed())
        assert server.sent() == [f"POST /sleep?level={level}&mode=keep"]
        held = Contents("kept", "default") if level == "1" else GARBAGE
        assert after(adapter, Release(None, source), closed()).contents == {"weights": held}


@pytest.mark.parametrize("mode", MODES)
async def test_a_sleep_after_any_pause_keeps_what_was_kept(mode: str) -> None:
    async with driven() as (server, adapter):
        await carried_out(adapter, Pause(mode), facts())
        await carried_out(adapter, Release(None, V1), closed(mode))
        own = {"freeze": "keep&clear_cache=false"}.get(mode, f"{mode}&clear_cache=true")
        assert server.sent() == [f"POST /pause?mode={own}", "POST /sleep?level=2&mode=keep"]


async def test_nothing_is_sent_where_nothing_is_to_be_done() -> None:
    async with driven() as (_, adapter):
        assert adapter.plan(Drain(), closed()) == ()
        assert adapter.plan(Release(None, V1), closed(**ASLEEP)) == ()
        assert adapter.plan(RestoreWeights(), closed()) == ()
        assert adapter.plan(RestoreKV(), closed()) == ()
        assert [call.name for call in adapter.plan(RestoreKV(), closed(cache_fresh=False))] == ["reset_prefix_cache"]


async def test_kv_alone_has_an_endpoint_of_its_own_and_needs_everything_else_mapped() -> None:
    async with driven() as (server, adapter):
        server.paused = "abort"
        kv = Release(frozenset({"kv_cache"}))
        assert [each.outcome for each in await carried_out(adapter, kv, closed())] == ["done"]
        assert server.sent() == ["POST /release_kv_cache_memory"]
        assert after(adapter, kv, closed()).unmapped() == {"kv_cache"}
        (refused,) = await carried_out(adapter, kv, closed(mapped={"weights": False, "kv_cache": True}))
        assert refused.outcome == "rejected"
        assert "restore the weights first" in refused.detail
        assert len(server.sent()) == 1


@pytest.mark.parametrize("version", FIELD)
async def test_which_tags_go_together(version: str) -> None:
    async with driven(version) as (_, adapter):
        alone = {frozenset({"kv_cache"})} if version in ("0.31.0", *STATUSES) else set()
        assert adapter._known().releasable == {frozenset({"weights", "kv_cache"})} | alone


@pytest.mark.parametrize("version", FIELD)
async def test_weights_that_were_restored_alone_go_back_to_sleep_only_where_a_sleep_acts_then(version: str) -> None:
    async with driven(version) as (server, adapter):
        server.paused, server.asleep = "abort", {"kv_cache"}
        half = closed(mapped={"weights": True, "kv_cache": False})
        (reply,) = await carried_out(adapter, Release(None, V1), half)
        if version in ("0.31.0", *STATUSES):
            assert reply.outcome == "done"
            assert server.asleep == {"weights", "kv_cache"}
        else:
            assert reply.outcome == "rejected"
            assert "does nothing" in reply.detail
            assert server.sent() == []


async def test_the_last_wake_opens_and_the_pause_after_it_closes() -> None:
    async with driven() as (_, adapter):
        wake, pause, reset = adapter.plan(RestoreKV(), closed(mapped={"weights": True, "kv_cache": False}))
        assert (wake.effect[Fact.ADMISSION], wake.effect[Fact.RUNNING]) == ("open", None)
        assert dict(pause.args) == {"mode": "keep", "clear_cache": "true"}
        assert (pause.effect[Fact.ADMISSION], pause.effect[Fact.RUNNING]) == ("closed", 0)
        assert reset.effect[Fact.CACHE_FRESH] is True
        (first,) = adapter.plan(RestoreWeights(), closed(**ASLEEP))
        assert set(first.effect) == {Fact.MAPPED}, "it stays closed"
        only = adapter.plan(RestoreWeights(), closed(mapped={"weights": False, "kv_cache": True}))
        assert [call.name for call in only] == ["wake_up", "pause"], "weights that wake last are never served unloaded"


@pytest.mark.parametrize("mapped", [False, None])
async def test_a_resume_of_what_may_be_asleep_is_never_sent(mapped: bool | None) -> None:
    async with driven() as (server, adapter):
        (reply,) = await carried_out(adapter, Resume(), closed(mapped={"weights": True, "kv_cache": mapped}))
        assert reply.outcome == "rejected"
        assert "kv_cache not known to be mapped" in reply.detail
        assert server.seen == []


@pytest.mark.parametrize("version", FIELD)
async def test_a_tag_that_there_is_not_is_a_200_and_is_not_done(version: str) -> None:
    async with driven(version) as (server, adapter):
        server.paused, server.asleep = "keep", {"weights", "kv_cache"}
        call = call_of(adapter, RestoreKV(), closed(mapped={"weights": True, "kv_cache": False}), "wake_up")
        reply = await adapter.send(call, deadline_s=5)  # the weights sleep still: nothing is awake
        assert reply.status == 200
        assert reply.outcome == ("rejected" if version in STATUSES else "done")
        first = call_of(adapter, RestoreWeights(), closed(**ASLEEP), "wake_up")
        server.asleep = {"weights"}
        reply = await adapter.send(first, deadline_s=5)  # and here it opens an engine that was to stay closed
        assert reply.outcome == ("rejected" if version in STATUSES else "done")


WRONG: list[tuple[str, Shape]] = [
    ("pause", (200, {"status": "pausing"})),
    ("pause", (200, {})),
    ("pause", (200, b"<html>")),
    ("pause", error(500, "Failed to pause generation")),
    ("sleep", (200, {"status": "awake", "level": 2})),
    ("sleep", (200, {"status": "sleeping", "level": 1})),
    ("sleep", (200, EMPTY)),
    ("sleep", NOT_FOUND),
    ("wake_up", (200, {"status": "sleeping", "tags": ["kv_cache"]})),
    ("wake_up", (200, {"status": "awake", "tags": None})),
    ("wake_up", error(500, "Call to wake_up method failed: 'weights'")),
    ("reset_prefix_cache", (200, {"success": False})),
    ("reset_prefix_cache", (200, EMPTY)),
    ("resume", (200, {"status": "paused"})),
    ("release_kv_cache_memory", (200, {"status": "sleeping"})),
    ("release_kv_cache_memory", error(500, "Selective discard is not supported on CPU.")),
    ("collective_rpc", (200, EMPTY)),
    ("collective_rpc", error(500, "Call to collective_rpc method failed: no such file")),
    ("update_weight_version", (200, {"success": False})),
]
COMMAND_OF = {
    "pause": (Pause(), facts()),
    "sleep": (Release(None, V1), closed()),
    "wake_up": (RestoreKV(), closed(mapped={"weights": True, "kv_cache": False})),
    "reset_prefix_cache": (RestoreKV(), closed(cache_fresh=False)),
    "resume": (Resume(), closed()),
    "release_kv_cache_memory": (Release(frozenset({"kv_cache"})), closed()),
    "collective_rpc": (UpdateWeights(V1), closed()),
    "update_weight_version": (UpdateWeights(V1), closed()),
}


@pytest.mark.parametrize(("name", "answer"), WRONG, ids=str)
async def test_an_answer_that_does_not_say_that_it_was_done_is_not_taken_for_it(name: str, answer: Shape) -> None:
    async with driven() as (server, adapter):
        server.script(f"POST /{name}", answer)
        reply = await adapter.send(call_of(adapter, *COMMAND_OF[name], name), deadline_s=5)
        assert (reply.outcome, reply.status) == ("rejected", answer[0])
        assert reply.detail


async def test_a_missing_endpoint_names_the_development_mode() -> None:
    async with driven() as (server, adapter):
        server.dev_mode = False
        (reply,) = await carried_out(adapter, Pause(), facts())
        assert "VLLM_SERVER_DEV_MODE=1" in reply.detail


async def test_an_old_version_that_suddenly_answers_is_another_server() -> None:
    async with driven("0.30.0") as (server, adapter):
        server.script("POST /sleep", (200, {"status": "sleeping", "level": 2}))
        (reply,) = await carried_out(adapter, Release(None, V1), closed())
        assert reply.outcome == "rejected"


# idle


async def test_a_pause_that_waits_is_left_and_the_drain_asks_again() -> None:
    async with driven() as (server, adapter):
        server.idle.clear()
        (reply,) = await carried_out(adapter, Pause("wait"), facts())
        assert reply.outcome == "done", "it is paused, and its requests run"
        known = closed("wait", running=None)
        verdict = await adapter.idle_within(known, wait_s=0.1, deadline_s=5)
        assert isinstance(verdict, Pending)
        assert verdict.figures[REQUESTS_RUN] is True
        asyncio.get_running_loop().call_later(0.2, server.idle.set)
        verdict = await adapter.idle_within(known, wait_s=2, deadline_s=5)
        assert isinstance(verdict, Proved)
        assert verdict.figures["cache_dropped"]
        assert server.sent() == ["POST /pause?mode=wait&clear_cache=true"] * 3


async def test_a_pause_that_waits_and_is_not_said_to_be_paused_is_lost() -> None:
    async with driven() as (server, adapter):
        server.idle.clear()
        server.script("GET /is_paused", (200, {"is_paused": False}))
        (reply,) = await carried_out(adapter, Pause("wait"), facts())
        assert (reply.outcome, reply.late) == ("lost", True)


@pytest.mark.parametrize(("mode", "asked"), [("abort", "wait"), ("wait", "wait"), ("keep", "keep"), (None, "wait")])
async def test_idle_is_a_second_pause_that_loses_no_request(mode: str | None, asked: str) -> None:
    async with driven() as (server, adapter):
        server.paused = mode or "abort"
        assert isinstance(await adapter.prove_idle(closed(mode), deadline_s=5), Proved)
        assert server.sent() == [f"POST /pause?mode={asked}&clear_cache=true"]


async def test_frozen_requests_are_not_drained_by_a_question() -> None:
    async with driven() as (server, adapter):
        server.paused = "keep"
        assert isinstance(await adapter.prove_idle(closed("freeze"), deadline_s=5), Pending)
        assert server.seen == []


async def test_an_open_engine_is_not_closed_by_the_question_whether_it_is_idle() -> None:
    async with driven() as (server, adapter):
        opened = await adapter.prove_idle(closed(), deadline_s=5)
        assert isinstance(opened, Pending)
        assert opened.figures[REQUESTS_RUN] is True, "we left it closed: somebody else opened it"
        ours = await adapter.prove_idle(facts(), deadline_s=5)
        assert ours.figures[REQUESTS_RUN] is False
        server.paused = "abort"
        assert isinstance(await adapter.prove_idle(facts(), deadline_s=5), Pending), "it is not known to be ours"
        assert server.sent() == []


async def test_a_transfer_of_kv_is_no_request() -> None:
    async with driven() as (server, adapter):
        server.config["kv_transfer_config"] = {"kv_role": "kv_producer"}
        await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)
        server.paused = "abort"
        server.idle.clear()
        verdict = await adapter.idle_within(closed(), wait_s=0.1, deadline_s=5)
        assert isinstance(verdict, Pending)
        assert verdict.figures[REQUESTS_RUN] is False


# weights


async def test_a_reload_drops_what_belongs_to_the_old_weights() -> None:
    async with driven() as (server, adapter):
        server.paused = "abort"
        await carried_out(adapter, UpdateWeights(V1), closed())
        names = [request.path[1:] for request in server.seen]
        assert names == ["collective_rpc", "update_weight_version", "reset_prefix_cache", "reset_encoder_cache"]
        body = {"method": "reload_weights", "kwargs": {"weights_path": "/models/step-1"}}
        assert server.seen[0].body == body
        assert server.label == "step-1"


async def test_a_live_update_keeps_the_cache_of_frozen_requests() -> None:
    async with driven() as (_, adapter):
        names = [call.name for call in adapter.plan(UpdateWeights(V1), closed("freeze"))]
        assert names == ["collective_rpc", "update_weight_version"]


async def test_a_failed_reload_leaves_weights_that_nobody_may_serve() -> None:
    async with driven() as (_, adapter):
        call = call_of(adapter, UpdateWeights(V1), closed(), "collective_rpc")
        assert not call.refusal_is_untouched
        assert closed().doubt(call.effect).contents == {"weights": None}


async def test_options_of_a_source_go_to_the_reload() -> None:
    async with driven() as (_, adapter):
        source = FromDisk("/m", "v", options={"is_checkpoint_format": False})
        call = call_of(adapter, UpdateWeights(source), closed(), "collective_rpc")
        assert call.args["kwargs"] == {"weights_path": "/m", "is_checkpoint_format": False}


TRANSFER = {"backend": "nccl"}


@pytest.mark.parametrize("version", FIELD)
async def test_a_push(version: str) -> None:
    async with driven(version) as (server, adapter):
        server.config["weight_transfer_config"] = TRANSFER
        assert "push" in (await adapter.connect(deadline_s=5)).update
        start, push, finish, *rest = adapter.plan(UpdateWeights(Pushed(None, "v7")), closed())
        assert (start.push, push.name, finish.push) == ("begins", "push", "ends")
        assert [call.name for call in rest] == ["reset_prefix_cache", "reset_encoder_cache"]
        pushed = [
            adapter.push_call("init", {"init_info": {}}, "v7"),
            adapter.push_call("update", {"update_info": {}}, ""),
        ]
        for call in (pushed[0], start, pushed[1], finish, *rest):
            assert (await adapter.send(call, deadline_s=5)).outcome == "done"
        assert server.label == ("v7" if adapter._effects.labels else "default")


async def test_a_push_needs_its_configuration() -> None:
    async with driven() as (_, adapter):
        assert adapter._known().update == {"disk", "live"}
        assert any("--weight-transfer-config" in note for note in adapter._known().notes)
        with pytest.raises(ValueError, match="'init', 'update', 'shutdown'"):
            adapter.push_call("tensor", {}, "v")


async def test_a_push_that_failed_is_ended_also_where_the_server_ended_it() -> None:
    async with driven() as (server, adapter):
        server.config["weight_transfer_config"] = TRANSFER
        start = call_of(adapter, UpdateWeights(Pushed(None, "v")), closed(), "start_weight_update")
        await adapter.send(start, deadline_s=5)
        again = await adapter.send(start, deadline_s=5)
        assert "never ended" in again.detail
        close = adapter.close_push_call()
        assert [(await adapter.send(close, deadline_s=5)).outcome for _ in range(2)] == ["done", "done"]
        assert closed().doubt(close.effect).contents == {"weights": None}
        server.script("POST /finish_weight_update", error(500, "half of the layers are missing"))
        assert (await adapter.send(close, deadline_s=5)).outcome == "rejected"


async def test_only_calls_that_are_marked_are_sent_again() -> None:
    async with driven() as (_, adapter):
        moves = [
            *adapter.plan(Release(None, V1), closed()),
            *adapter.plan(RestoreWeights(), closed(**ASLEEP)),
            *adapter.plan(UpdateWeights(Pushed(None, "v")), closed())[:1],
        ]
        assert [call.repeatable for call in moves] == [False] * 3
        assert isinstance(moves[0], Call)
