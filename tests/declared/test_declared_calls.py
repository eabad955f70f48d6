"""Verbs that answer falsely, raise, hang, or whose ranks disagree: no more is known than was said."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from lifecycle.adapters.declared import About, DeclaredAdapter, NotCalled, Verb, Verbs, did
from test_declaration import BACK, BOTH, LEAST

from lifecycle import ConfigurationError, Fact, Grade, Pending, Proved, Refuted, Reply, Unmeasurable
from lifecycle.core.calls import Call
from lifecycle.core.facts import Facts
from lifecycle.core.observation import Probe

EVERYTHING = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.RUNNING, Fact.MAPPED, Fact.CONTENTS, Fact.CHECKSUM})


def driven(verbs: Verbs = LEAST, *, processes: Any = None, **changes: Any) -> DeclaredAdapter:
    return DeclaredAdapter("e", replace(verbs, **changes), processes=processes, about=About(device="cpu"))


async def released_by(
    call: Callable[..., Any], *, deadline_s: float = 10.0, **declared: Any
) -> tuple[DeclaredAdapter, Reply]:
    """The adapter whose release is this function, and the reply to it."""
    adapter = driven(release=Verb(call=call, effects=BOTH, name="release", **declared))
    return adapter, await adapter.send(Call("release"), deadline_s=deadline_s)


def unanswered(name: str) -> Verb:
    """A verb of this name to which nothing answers."""
    return Verb(call=raising(ConnectionError("reset")), name=name)


def raising(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("answer", "outcome", "said"),
    [
        (None, "done", ""),
        (True, "done", ""),
        ({"success": True}, "done", ""),
        ({"status": "ok"}, "done", ""),
        (False, "rejected", "it answered False"),
        ({"success": False, "message": "no saver"}, "rejected", "no saver"),
        ({"ok": False, "error": "unknown tag"}, "rejected", "unknown tag"),
        ({"error": "unknown tag"}, "rejected", "unknown tag"),
        ({"status": "error"}, "rejected", "error"),
        ([None, None], "done", ""),
        ([True, None], "done", ""),
        ([{"success": False, "message": "no saver"}, None], "rejected", "rank 0: no saver"),
        ([False, False], "rejected", "rank 0: it answered False; rank 1: it answered False"),
        ([True, False], "lost", "none that is clear, and of all ranks: rank 1: it answered False"),
        ([True, ValueError("no such tag")], "lost", "rank 1: ValueError: no such tag"),
    ],
    ids=str,
)
async def test_how_an_answer_is_read(answer: Any, outcome: str, said: str) -> None:
    _, reply = await released_by(lambda: answer, refusal_is_untouched=True)
    assert reply.outcome == outcome
    assert said in reply.detail
    assert not reply.refused, "it was called"


async def test_a_call_that_never_reached_the_engine() -> None:
    """It changes nothing of what is known, and needs no barrier."""
    adapter, reply = await released_by(raising(NotCalled("its argument cannot be sent")))
    assert (reply.outcome, reply.refused) == ("lost", True)
    assert reply.detail == "it was not called: its argument cannot be sent"
    assert await adapter.barrier(deadline_s=1.0)


async def test_how_success_is_read_is_declared() -> None:
    async def code(value: int) -> Reply:
        return (await released_by(lambda: value, succeeded=lambda answer: answer == 0 or f"code {answer}"))[1]

    assert (await code(0)).outcome == "done"
    assert (await code(7)).detail == "code 7"
    _, flat = await released_by(lambda: 7, succeeded=lambda answer: answer == 0)
    assert (flat.outcome, flat.detail) == ("rejected", "it answered 7")
    assert did({"success": False, "message": ""}) != ""


async def test_what_raises_has_refused_unless_it_says_that_nothing_answered() -> None:
    adapter, refused = await released_by(raising(ValueError("no such tag")))
    assert (refused.outcome, refused.detail) == ("rejected", "ValueError: no such tag")
    assert await adapter.barrier(deadline_s=1.0)
    adapter, lost = await released_by(raising(TimeoutError("30 s")))
    assert lost.outcome == "lost"
    assert not await adapter.barrier(deadline_s=1.0), "nothing says that it does not run still"
    adapter, lost = await released_by(raising(KeyError("actor died")), unanswered=(KeyError,))
    assert lost.outcome == "lost"


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration("end")], ids=repr)
async def test_what_would_end_a_program_is_an_error_like_any_other(error: Any) -> None:
    _, refused = await released_by(raising(error))
    assert (refused.outcome, refused.detail.split("(")[0]) == (
        "rejected",
        f"RuntimeError: it raised {type(error).__name__}: {error}",
    )


async def test_an_answer_that_cannot_be_read_leaves_all_unknown() -> None:
    _, reply = await released_by(lambda: 7, succeeded=lambda answer: answer["code"] == 0, refusal_is_untouched=True)
    assert reply.outcome == "lost"
    assert "7, of which succeeded= raised TypeError" in reply.detail


async def test_a_call_that_waited_for_another_and_runs_now_is_before_the_barrier_too() -> None:
    first, second = asyncio.Event(), asyncio.Event()
    adapter = driven(resume=first.wait, drop_cache=second.wait)
    calls = [asyncio.create_task(adapter.send(Call(name), deadline_s=10.0)) for name in ("resume", "drop_cache")]
    await asyncio.sleep(0)
    barrier = asyncio.create_task(adapter.barrier(deadline_s=10.0))
    await asyncio.sleep(0)
    first.set()
    assert not await barrier
    second.set()
    assert [(await each).outcome for each in calls] == ["done", "done"]
    assert await adapter.barrier(deadline_s=10.0)


async def test_after_no_answer_a_barrier_that_is_declared_tells_that_nothing_runs() -> None:
    asked: list[str] = []
    adapter = driven(resume=unanswered("resume"), barrier=lambda: asked.append("asked"))
    assert (await adapter.send(Call("resume"), deadline_s=1.0)).outcome == "lost"
    assert await adapter.barrier(deadline_s=1.0)
    assert await adapter.barrier(deadline_s=1.0)
    assert asked == ["asked"], "what has ended once has ended"
    broken = driven(resume=unanswered("resume"), barrier=unanswered("barrier"))
    await broken.send(Call("resume"), deadline_s=1.0)
    assert not await broken.barrier(deadline_s=1.0)


@pytest.mark.parametrize("kind", ["function", "coroutine function", "function that returns a coroutine"])
async def test_a_call_that_hangs_is_not_cancelled_and_nothing_is_called_behind_it(kind: str) -> None:
    go, ended = threading.Event(), threading.Event()

    def hangs() -> None:
        go.wait(30)
        ended.set()

    async def hangs_awaited() -> None:
        await asyncio.to_thread(hangs)

    calls = {
        "function": hangs,
        "coroutine function": hangs_awaited,
        "function that returns a coroutine": lambda: hangs_awaited(),
    }
    resumed: list[str] = []
    verb = Verb(call=calls[kind], effects=BOTH, name="release")
    adapter = driven(release=verb, resume=lambda: resumed.append("resumed"))
    begun = time.monotonic()
    late = await adapter.send(Call("release"), deadline_s=0.2)
    assert (late.outcome, late.late, late.refused) == ("lost", True, False)
    assert time.monotonic() - begun < 10.0
    behind = await adapter.send(Call("resume"), deadline_s=0.2)
    assert (behind.outcome, behind.refused) == ("lost", True), "it was never called"
    assert behind.detail == "it was not called: release(), called before, still runs"
    assert not await adapter.barrier(deadline_s=0.2)
    seen = await adapter.observe(frozenset({Fact.BOOT}), deadline_s=0.4)
    assert (seen.alive, seen.boot) == (None, None)
    assert "still runs" in seen.detail
    go.set()
    assert await adapter.barrier(deadline_s=10.0)
    assert ended.is_set()
    assert (await adapter.send(Call("resume"), deadline_s=10.0)).outcome == "done"
    assert resumed == ["resumed"]


async def test_a_verb_has_a_deadline_of_its_own() -> None:
    go = threading.Event()
    begun = time.monotonic()
    adapter = driven(release=Verb(call=lambda: go.wait(30), effects=BOTH, name="release", deadline_s=0.2))
    reply = await adapter.send(Call("release"), deadline_s=25.0)
    assert (reply.outcome, reply.late) == ("lost", True)
    assert time.monotonic() - begun < 10.0
    go.set()
    assert await adapter.barrier(deadline_s=10.0)


async def test_a_verb_that_takes_its_deadline_ends_by_itself() -> None:
    async def sleeps(deadline_s: float) -> None:
        async with asyncio.timeout(deadline_s):
            await asyncio.sleep(60)

    adapter = driven(release=Verb(call=sleeps, effects=BOTH, name="release"), barrier=lambda: True)
    reply = await adapter.send(Call("release"), deadline_s=0.5)
    assert (reply.outcome, reply.late) == ("lost", False)
    assert await adapter.barrier(deadline_s=0.1), "it runs no more"


async def test_a_caller_that_gives_up_ends_no_call() -> None:
    go, ended = threading.Event(), threading.Event()

    def hangs() -> None:
        go.wait(30)
        ended.set()

    adapter = driven(release=Verb(call=hangs, effects=BOTH, name="release"))
    sending = asyncio.ensure_future(adapter.send(Call("release"), deadline_s=20.0))
    await asyncio.sleep(0.05)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not await adapter.barrier(deadline_s=0.1)
    go.set()
    assert await adapter.barrier(deadline_s=10.0)
    assert ended.is_set()


async def test_a_list_of_what_can_be_awaited_is_one_answer_a_rank() -> None:
    async def rank(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    _, both = await released_by(lambda: [rank(True), rank(None)])
    assert (both.outcome, both.value) == ("done", [True, None])
    _, one = await released_by(lambda: [rank(True), rank(ValueError("no such tag"))], refusal_is_untouched=True)
    assert one.outcome == "lost"
    _, neither = await released_by(lambda: [rank(ValueError("a")), rank(ValueError("b"))])
    assert neither.outcome == "rejected"


async def test_questions_tell_what_they_were_asked_and_nothing_else() -> None:
    adapter = driven(
        admission=lambda: "closed",
        running=lambda: 3,
        released=lambda: ["kv_cache", "nonsense"],
        label=lambda: "v7",
        checksum=lambda: {"target": "aa"},
    )
    await adapter.connect(deadline_s=5.0)
    seen = await adapter.observe(EVERYTHING, deadline_s=5.0)
    assert (seen.alive, seen.boot, seen.admission, seen.running) == (True, "b", "closed", 3)
    assert (seen.released_tags, seen.weights_label, dict(seen.checksums)) == ({"kv_cache"}, "v7", {"target": "aa"})
    boot = await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5.0)
    assert (boot.boot, boot.admission, boot.running) == ("b", None, None)
    odd = driven(
        admission=lambda: "ajar", running=lambda: True, label=lambda: 7, released=lambda: 7, checksum=lambda: 1
    )
    await odd.connect(deadline_s=5.0)
    seen = await odd.observe(EVERYTHING, deadline_s=5.0)
    assert (seen.admission, seen.running, seen.weights_label, seen.released_tags) == (None, None, None, None)
    assert seen.checksum == "1"


async def test_a_question_that_fails_is_silence() -> None:
    adapter = driven(admission=raising(ConnectionError("reset")))
    await adapter.connect(deadline_s=5.0)
    seen = await adapter.observe(EVERYTHING, deadline_s=5.0)
    assert (seen.alive, seen.boot) == (None, None)
    assert "ConnectionError: reset" in seen.detail
    with pytest.raises(ConfigurationError, match=r"does not say which process it is .*ValueError: no actor"):
        await driven(boot=raising(ValueError("no actor"))).connect(deadline_s=5.0)


async def test_by_its_processes_alone_it_is_known_which_it_is_and_whether_it_lives() -> None:
    for declared in (os.getpid(), [os.getpid()], lambda: [os.getpid()]):
        adapter = driven(boot=None, processes=declared)
        await adapter.connect(deadline_s=5.0)
        seen = await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5.0)
        assert seen.alive
        assert f":{os.getpid()}:" in (seen.boot or "")
    with pytest.raises(ConfigurationError, match="there is no process 4194305 on this host"):
        await driven(boot=None, processes=4194305).connect(deadline_s=5.0)
    with pytest.raises(ConfigurationError, match="must be pids, Processes or a URL, got 'x'"):
        await driven(boot=None, processes=["x"]).connect(deadline_s=5.0)
    with pytest.raises(ConfigurationError, match="no process of it was found"):
        await driven(boot=None, processes=[]).connect(deadline_s=5.0)
    with pytest.raises(ConfigurationError, match="could not be asked for: no actor"):
        await driven(processes=raising(ValueError("no actor"))).connect(deadline_s=5.0)


async def test_it_is_gone_once_all_of_its_processes_are_and_unknown_before() -> None:
    children = [await asyncio.create_subprocess_exec("sleep", "60") for _ in range(2)]
    adapter = driven(boot=None, processes=[child.pid for child in children])
    await adapter.connect(deadline_s=5.0)
    alive = []
    for child in [None, *children]:
        if child is not None:
            child.kill()
            await child.wait()
        alive.append((await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5.0)).alive)
    assert alive == [True, None, False]


async def test_how_well_it_is_known_that_it_is_idle() -> None:
    async def idle(admission: Any = "closed", **changes: Any) -> Any:
        return await driven(**changes).prove_idle(Facts(admission=admission), deadline_s=5.0)

    asked = await idle(idle=Verb(call=lambda: True, drops_cache=True), running=lambda: 3)
    assert isinstance(asked, Proved)
    assert asked.grade is Grade.REPORTED
    assert asked.figures["cache_dropped"]
    busy = await idle(idle=lambda: False, running=lambda: 3)
    assert isinstance(busy, Pending)
    assert busy.figures["requests_run"]
    assert not (await idle(idle=lambda: False)).figures["requests_run"]
    assert isinstance(await idle(idle=raising(TimeoutError("60 tries"))), Pending)
    assert (await idle(running=lambda: 0)).grade is Grade.REPORTED
    assert isinstance(await idle(running=lambda: 1), Pending)
    assert isinstance(await idle(running=raising(ValueError("x"))), Unmeasurable)
    assert (await idle()).grade is Grade.ACKNOWLEDGED
    assert isinstance(await idle("open"), Unmeasurable)


async def test_only_tokens_are_an_answer() -> None:
    async def answers(call: Any) -> Any:
        return await driven(answer=call).answers(Probe(), deadline_s=5.0)

    ids = await answers(lambda text, tokens: [1, 2])
    assert (ids.grade, ids.figures["output_ids"]) == (Grade.MEASURED, (1, 2))
    assert isinstance(await answers(lambda: "Paris"), Proved)
    for nothing in ([], "", None, 0, True):
        assert isinstance(await answers(lambda nothing=nothing: nothing), Refuted)
    assert isinstance(await answers(raising(ValueError("no tokenizer"))), Refuted)
    assert isinstance(await driven().answers(Probe(), deadline_s=5.0), Unmeasurable)


async def test_a_verb_is_given_what_it_takes() -> None:
    given: list[Any] = []
    adapter = driven(restore=Verb(call=lambda tags: given.append(tags), effects=BACK, name="restore"))
    call = Call("restore", {"tags": ["weights"]})
    assert (await adapter.send(call, deadline_s=5.0)).outcome == "done"
    assert given == [["weights"]]
