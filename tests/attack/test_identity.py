"""Whose answer is it? Answers that are not of the engine never make it another process, and never kill it."""

from __future__ import annotations

import time
import tracemalloc
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hostile import INFO, agent_that_hangs, always, front, next_only, reads
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle import ConfigurationError, Fleet, FleetError, FromDisk, LifecycleError, Policy, Refuted, State
from lifecycle.core.facts import Fact
from lifecycle.core.observation import Probe
from lifecycle.engine.gather import EVERYTHING

pytestmark = pytest.mark.slow

WEIGHTS_MIB, KV_MIB = 96, 96

Start = Callable[..., LoopbackProcess]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "step-2.safetensors"
    make_weights(path, seed=7, weights_mib=WEIGHTS_MIB)
    return path


@pytest.fixture
def start(start: Start) -> Start:
    """The fixture of this folder, with this module's sizes."""
    return partial(start, weights_mib=WEIGHTS_MIB, kv_mib=KV_MIB)


@pytest.fixture
def policy() -> Policy:
    commands = ("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume")
    return Policy(residual_threshold_gib=0.08, deadlines_s=dict.fromkeys(commands, 5), settle_s=1.0, poll_s=0.05)


def info_of(process: LoopbackProcess) -> bytes:
    with urllib.request.urlopen(process.url + INFO, timeout=10) as response:
        return response.read()


async def drive_on(fleet: Fleet, checkpoint: Path) -> None:
    """What a caller does who does not read the errors: everything, whatever it raises."""
    source = FromDisk(str(checkpoint), "step-2")
    for act in (
        lambda: fleet["e"].recover(deadline_s=0.5),
        lambda: fleet.onload(deadline_s=2),
        lambda: fleet.offload(weights=source, deadline_s=2),
    ):
        with suppress(LifecycleError, FleetError):
            await act()


NO_ANSWER = (
    b"<html><body>502</body></html>",
    b"{}",
    b"null",
    b"[]",
    b'{"internal_states": [{}], "version": "0.5.23"}',
)


async def test_an_answer_that_is_none_is_silence(start: Start, checkpoint: Path, policy: Policy) -> None:
    process, source = start(), FromDisk(str(checkpoint), "step-2")
    async with (
        front([process.url]) as proxy,
        Fleet.connect([proxy.url(name="e", pid=process.pid)], policy=policy) as fleet,
    ):
        engine, boot = fleet["e"], fleet["e"].facts.boot
        await fleet.offload(weights=source)
        for body in NO_ANSWER:
            proxy.instead = next_only(INFO, body)
            assert await engine.verify(deadline_s=0.8) is State.RELEASED, "one answer that is none was asked again"
            proxy.instead = reads(body)
            assert await engine.verify(deadline_s=0.3) is State.FAILED
            assert engine.facts.boot == boot
            proxy.instead = always(INFO, body)
            await drive_on(fleet, checkpoint)
            proxy.honest()
            assert (await engine.recover()).state is State.RELEASED, "nothing was done to it meanwhile"
            assert process.returncode is None, process.stderr_tail()
        await fleet.onload()
        proxy.instead = reads(NO_ANSWER[0])
        assert await engine.verify(deadline_s=0.3) is State.FAILED
        proxy.honest()
        assert (await engine.recover()).state is State.SERVING
        await fleet.offload(weights=source)
        await fleet.onload()
        assert process.returncode is None


@pytest.mark.parametrize("when", ["released", "serving"])
async def test_another_engines_answer_that_comes_and_goes(
    start: Start, checkpoint: Path, policy: Policy, when: str
) -> None:
    process, other, source = start(), start(weights_mib=16, kv_mib=16), FromDisk(str(checkpoint), "step-2")
    foreign = info_of(other)
    async with (
        front([process.url]) as proxy,
        Fleet.connect([proxy.url(name="e", pid=process.pid)], policy=policy) as fleet,
    ):
        engine = fleet["e"]
        await fleet.offload(weights=source)
        if when == "serving":
            await fleet.onload()
        proxy.instead = next_only(INFO, foreign)
        assert await engine.verify(deadline_s=5) is State.FAILED
        assert "two processes answer at this address" in str(engine.conditions["identity"].verdict)
        proxy.instead, proxy.reads = (lambda path: None), other.url
        await engine.recover()
        proxy.instead, proxy.reads = always(INFO, foreign), None
        await drive_on(fleet, checkpoint)
        proxy.honest()
        await drive_on(fleet, checkpoint)
        assert process.returncode is None
        await engine.recover()
        await fleet.onload()
        assert engine.state is State.SERVING


async def test_a_driver_that_attaches_while_others_answer(start: Start, checkpoint: Path, policy: Policy) -> None:
    """The engine is released by another driver. From the first observation on, what reads is answered by others."""
    process, other, source = start(), start(weights_mib=16, kv_mib=16), FromDisk(str(checkpoint), "step-2")
    async with front([process.url]) as proxy:
        url = proxy.url(name="e", pid=process.pid)
        async with Fleet.connect([url], policy=policy) as first:
            await first.offload(weights=source)
        for body in (b"<html></html>", None):
            proxy.honest()
            proxy.after_connect(reads(body) if body else None, reads_of=None if body else other.url)
            with suppress(ConfigurationError):
                async with Fleet.connect([url], policy=policy) as fleet:
                    proxy.honest()
                    proxy.instead = always(INFO, body or info_of(other))
                    await drive_on(fleet, checkpoint)
        assert process.returncode is None, process.stderr_tail()


async def test_one_address_over_two_replicas_is_refused(start: Start, policy: Policy) -> None:
    one, two = start(), start()
    async with front([one.url, two.url]) as balancer:
        with pytest.raises(ConfigurationError, match="two processes answer at this address"):
            async with Fleet.connect([balancer.url(pid=one.pid)], policy=policy):
                pass


@pytest.mark.parametrize("when", ["released", "serving"])
async def test_a_second_replica_that_joins_later(start: Start, checkpoint: Path, policy: Policy, when: str) -> None:
    one, two = start(), start()
    source = FromDisk(str(checkpoint), "step-2")
    async with (
        front([one.url]) as balancer,
        Fleet.connect([balancer.url(name="e", pid=one.pid)], policy=policy) as fleet,
    ):
        engine = fleet["e"]
        if when == "released":
            await fleet.offload(weights=source)
        balancer.upstreams = [one.url, two.url]
        await drive_on(fleet, checkpoint)
        assert (await engine.recover(deadline_s=10)).state is State.FAILED
        assert "two processes answer at this address" in str(engine.conditions["identity"].verdict)
        await drive_on(fleet, checkpoint)
        assert (one.returncode, two.returncode) == (None, None)


async def test_a_restarted_engine_is_another_process_and_one_that_is_the_same_is_not(
    start: Start, checkpoint: Path, policy: Policy
) -> None:
    process = start()
    url = f"sglang://127.0.0.1:{process.port}?name=e"
    async with (
        Fleet.connect([url], policy=policy) as fleet,
        Fleet.connect([f"{url}&pid={process.pid}"], policy=policy) as same,
    ):
        assert fleet["e"].facts.boot == same["e"].facts.boot
        assert f":{process.pid}:" in str(fleet["e"].facts.boot)
        await fleet.offload(weights=FromDisk(str(checkpoint), "step-2"))
        process.kill()
        again = start(port=process.port)
        await fleet["e"].recover()
        await drive_on(fleet, checkpoint)
        assert again.returncode is None
        assert f":{again.pid}:" in str(fleet["e"].facts.boot)


async def test_one_engine_under_two_names_is_refused(start: Start, policy: Policy) -> None:
    one, two = start(ranks=2), start()
    same = [f"loopback://127.0.0.1:{one.port}?name=a", f"sglang://localhost:{one.port}?name=b"]
    shared = [f"sglang://127.0.0.1:{each.port}?name=e{each.port}&pid={two.pid}" for each in (one, two)]
    tree = [f"sglang://127.0.0.1:{one.port}?name=a", f"sglang://127.0.0.1:{two.port}?name=b&pid={one.rank_pids[1]}"]
    for urls, said in (
        (same, r"a \(loopback.*b \(sglang.*they share the boot"),
        (shared, f"they share the process {two.pid}"),
        (tree, "they share a process tree"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            async with Fleet.connect(urls, policy=policy):
                pass


async def test_a_dead_engine_whose_agent_hangs_takes_no_longer_than_it_was_given(start: Start, policy: Policy) -> None:
    process = start()
    async with agent_that_hangs() as agent:
        url = f"sglang://127.0.0.1:{process.port}?name=e&agent=127.0.0.1:{agent.port}"
        async with Fleet.connect([url], policy=policy) as fleet:
            engine = fleet["e"]
            process.kill()
            agent.hangs.set()
            for act in (engine.verify, engine.recover):
                begun = time.monotonic()
                found = await act(deadline_s=1.0)
                state = found if isinstance(found, State) else found.state
                assert state is State.FAILED, "nothing tells that its process has ended"
                assert time.monotonic() - begun < 1.5


#: Bodies of which no part is what was asked for.
ODD = {
    "list": b"[1, [2], null]",
    "number": b"7",
    "huge number": b"[" + b"9" * 10_000 + b"]",
    "NaN": b"NaN",
    "deep": b"[" * 40_000 + b"]" * 40_000,
    "deep objects": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
    "rows that are none": b'{"loads": [1, null, []], "meta_info": 3, "weight_version": {}, "ranks": [null, {"a": 1}]}',
    "odd rows": b'{"loads": [{"num_running_reqs": "x", "timestamp": NaN}], "meta_info": {"completion_tokens": [1]}}',
    "no text": bytes(range(256)),
}


async def test_odd_answers_are_values(start: Start, policy: Policy, tmp_path: Path) -> None:
    """Nothing but the library's errors and states comes out, and the engine lives."""
    process = start()
    policy = replace(policy, deadlines_s=dict.fromkeys(policy.deadlines_s, 0.3), settle_s=0.1)
    async with (
        front([process.url]) as proxy,
        Fleet.connect([proxy.url(name="e", pid=process.pid, checksum="true")], policy=policy) as fleet,
    ):
        adapter = fleet["e"].adapter
        for body in ODD.values():
            proxy.instead = always(INFO, body)
            assert (await adapter.observe(frozenset(), deadline_s=0.5)).boot is None
            proxy.instead = lambda path, body=body: None if path == INFO else body
            seen = await adapter.observe(EVERYTHING | {Fact.CHECKSUM}, deadline_s=0.5)
            assert seen.boot is not None
            assert (seen.admission, seen.running, seen.weights_label) == (None, None, None)
            assert (seen.checksum, seen.checksums) == (None, {})
            assert isinstance(await adapter.answers(Probe(), deadline_s=0.2), Refuted)
        for body in (ODD["rows that are none"], ODD["deep"]):
            proxy.instead = lambda path, body=body: None if path == INFO else body
            for act in (fleet.pause, fleet.drain, fleet.resume):
                with suppress(FleetError, LifecycleError):
                    await act()
        proxy.honest()
        await fleet["e"].recover()
        # A pause that something else acknowledged looks as if somebody had opened the engine since.
        make_weights(tmp_path / "others.safetensors", seed=9, weights_mib=WEIGHTS_MIB)
        fleet["e"].set_desired(FromDisk(str(tmp_path / "others.safetensors"), "others"))
        await fleet.onload(deadline_s=5)
        assert fleet["e"].state is State.SERVING
        assert process.returncode is None


async def test_an_answer_of_any_size_takes_little_memory(start: Start, policy: Policy) -> None:
    process, much = start(), b"[" + b"{}," * 5_000_000 + b"{}]"
    async with front([process.url]) as proxy:
        tracemalloc.start()
        try:
            for instead in (always(INFO, much), lambda path: None if path == INFO else much):
                proxy.instead = instead
                with suppress(ConfigurationError):
                    async with Fleet.connect([proxy.url(name="e", pid=process.pid)], policy=policy):
                        pass
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()
