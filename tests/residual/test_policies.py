"""Threshold, waiting, slope, headroom, canary: the rules on figures, with figures made by hand."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifecycle import (
    ConfigurationError,
    Contents,
    Fact,
    Facts,
    FromDisk,
    Grade,
    NotApplicable,
    NotProved,
    Policy,
    Process,
    Proved,
    Refuted,
    Unmeasurable,
    Verdict,
)
from lifecycle.core.readings import Holder, Reading
from lifecycle.core.record import Record
from lifecycle.core.verdicts import worst
from lifecycle.engine.canary import compared, forgotten
from lifecycle.engine.headroom import judge
from lifecycle.nodes import this_host
from lifecycle.nodes.host_memory import available_bytes, biggest_holders
from lifecycle.nodes.port import FreeMemory
from lifecycle.nodes.probes import NodeProbe, NoProbe, StableReadingProbe, joined, probe_for
from lifecycle.nodes.processes import by_pid
from lifecycle.rules.evidence import Evidence
from lifecycle.rules.guards import device_has_room, hook_mode_safe, host_has_room
from lifecycle.rules.trend import Series, after_release, slope
from lifecycle.testing import QUICK, ScriptedAdapter, capabilities, scripted

GIB, MIB = 1 << 30, 1 << 20


class Falling:
    """A probe whose figure falls with time: (seconds since the first reading, bytes)."""

    def __init__(self, *steps: tuple[float, int]) -> None:
        self.steps = steps
        self.begun: float | None = None

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        self.begun = self.begun or time.monotonic()
        passed = time.monotonic() - self.begun
        size = [bytes_ for at, bytes_ in self.steps if at <= passed][-1]
        return Reading({"gpu": size}, (), "a test")


async def test_a_reading_is_returned_once_it_is_stable() -> None:
    probe = StableReadingProbe(Falling((0, 3 * GIB), (0.15, 2 * GIB), (0.3, 1 * GIB)), 0.25)
    reading = await probe.read([], deadline_s=5)
    assert isinstance(reading, Reading)
    assert reading.resident_bytes == 1 * GIB


async def test_a_reading_that_never_becomes_stable_ends_at_the_deadline() -> None:
    probe = StableReadingProbe(Falling(*[(step / 10, (90 - step) * GIB) for step in range(60)]), 1.0)
    begun = time.monotonic()
    await probe.read([], deadline_s=0.5)
    assert time.monotonic() - begun < 0.8


async def test_an_unmeasurable_reading_is_returned_at_once() -> None:
    probe = StableReadingProbe(NoProbe("no"), 30.0)
    assert isinstance(await asyncio.wait_for(probe.read([], deadline_s=30), 1), Unmeasurable)


@pytest.mark.parametrize(
    ("device", "stable_s", "kind"),
    [("cuda", 0, NodeProbe), ("cpu", 0, NodeProbe), (None, 0, NoProbe), ("cuda", 1, StableReadingProbe)],
)
def test_which_probe_measures_what(device: Any, stable_s: float, kind: type) -> None:
    from lifecycle import Capabilities

    capabilities = Capabilities("e", "1", (), {}, device=device)
    assert isinstance(probe_for(capabilities, Policy(residual_stable_s=stable_s)), kind)


def test_readings_of_several_nodes_are_one() -> None:
    both = joined([Reading({"a": 1}, (), "NVML", {"a": 5}), Reading({"b": 2}, (), "NVML", {"b": 4})])
    assert (both.devices, both.probe, both.resident_bytes, both.others_bytes) == ({"a": 1, "b": 2}, "NVML", 2, 4)


# slope


@pytest.mark.parametrize(
    ("gib", "grows"),
    [
        ([4.1, 11.6, 25.0], True),
        ([25.0, 4.1, 11.6, 25.0], True),
        ([1.8, 1.81, 1.79, 1.82], False),
        ([1.8, 1.81, 1.82], False),
        ([4.1, 11.6], False),
        ([4.1, 11.6, 11.6], False),
        ([4.1, 11.6, 25.0, 4.0], False),
        ([2.0, 2.04, 2.08, 2.12], False),
        ([2.0, 2.04, 2.08, 2.12, 2.16], True),
        ([1.0, 1.5, 1.502], False),
        ([1.0, 1.5, 1.51, 1.512, 1.513, 1.515], False),
        ([1.0, 1.001, 1.5], False),
        ([1.0, 1.5, 1.6], True),
        ([20.0, 20.3, 20.6], False),
        ([], False),
        ([1.0], False),
    ],
)
def test_growth_from_cycle_to_cycle(gib: list[float], grows: bool) -> None:
    verdict = slope([round(size * GIB) for size in gib], "it")
    assert isinstance(verdict, Refuted) is grows


def test_the_warning_has_the_numbers_and_how_long_it_will_last() -> None:
    series: Series = {}
    tags, conditions = frozenset({"weights", "kv_cache"}), {}
    for size in (1.0, 1.5, 2.0):
        figures = {"resident_bytes": round(size * GIB), "others_bytes": round(4 * size * GIB)}
        verdict = Proved(grade=Grade.MEASURED, figures=figures)
        series, conditions = after_release(series, tags, verdict, Policy(residual_threshold_gib=3.0))
    own, others = conditions["residual_slope"].verdict, conditions["cotenant_slope"].verdict
    assert isinstance(own, Refuted)
    assert "1.00 -> 1.50 -> 2.00 GiB" in own.reason
    assert "threshold of 3.00 GiB is passed in 3 more" in own.reason
    assert isinstance(others, Refuted)
    assert "4.00 -> 6.00 -> 8.00 GiB" in others.reason


async def test_a_residual_that_grows_is_logged_with_the_engines_name(caplog: pytest.LogCaptureFixture) -> None:
    adapter = ScriptedAdapter("decode-3", capabilities())
    engine = await scripted(adapter).connect()
    source = FromDisk("/models/step-1", "v1")
    for leak in (0.5, 1.0, 1.5):
        adapter.engine.leak_bytes = round(leak * GIB)
        await engine.pause()
        await engine.drain()
        await engine.release(weights=source)
        await engine.restore_weights()
        await engine.update_weights(source, force=True)
        await engine.restore_kv()
        await engine.resume()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].getMessage().startswith("decode-3: what it keeps after a release grows from cycle to cycle")
    assert isinstance(engine.conditions["residual_slope"].verdict, Refuted)


def test_the_fields_case_is_warned_of_at_its_third_figure_and_before_the_threshold() -> None:
    series: Series = {}
    found = []
    for size in (4.1, 11.6, 25.0):
        verdict = Proved(grade=Grade.MEASURED, figures={"resident_bytes": round(size * GIB)})
        policy = Policy(residual_threshold_gib=40.0)
        series, conditions = after_release(series, frozenset({"weights"}), verdict, policy)
        found.append(conditions["residual_slope"].verdict)
    assert [type(verdict) for verdict in found] == [Proved, Proved, Refuted]
    assert "4.10 -> 11.60 -> 25.00 GiB; at this rate the threshold of 40.00 GiB is passed in 2 more" in found[2].reason


def test_releases_of_other_tags_are_another_series() -> None:
    series: Series = {}
    for tags, size in (({"kv_cache"}, 1), ({"weights"}, 2), ({"kv_cache", "weights"}, 3)):
        verdict = Proved(grade=Grade.MEASURED, figures={"resident_bytes": size * GIB})
        series, found = after_release(series, frozenset(tags), verdict, Policy())
        assert isinstance(found["residual_slope"].verdict, Proved)
        assert "cotenant_slope" not in found


# headroom


def test_a_shortage_names_the_largest_holders() -> None:
    trainer = Holder(4242, "GPU-1", 60 * GIB, "python train.py")
    verdict = judge(10 * GIB, {"GPU-0": FreeMemory(20 * GIB), "GPU-1": FreeMemory(4 * GIB, (trainer,))}, "weights")
    assert isinstance(verdict, Refuted)
    assert verdict.reason == (
        "GPU-1 has 4096 MiB free, and weights need 10240 MiB; pid 4242 (python train.py) holds 61440 MiB of GPU-1"
    )


def test_memory_that_just_suffices() -> None:
    assert isinstance(judge(10, {"a": FreeMemory(10)}, "x"), Proved)
    assert isinstance(judge(10, {"a": FreeMemory(9)}, "x"), Refuted)
    assert "is listed there" in judge(10, {"a": FreeMemory(9)}, "x").reason


def test_the_worst_of_several_nodes_counts() -> None:
    good, none = Proved(grade=Grade.MEASURED), NotApplicable()
    assert worst([good, Refuted(reason="b"), Unmeasurable()]) == Refuted(reason="b")
    assert worst([good, Unmeasurable(reason="u")]) == Unmeasurable(reason="u")
    assert worst([none, good]) == good
    assert worst([none]) == none
    assert isinstance(worst([]), Unmeasurable)


def refusal(check: Any, part: str, verdict: Verdict, **accept: Grade) -> str | None:
    context = SimpleNamespace(evidence=Evidence(**{part: verdict}), policy=Policy(accept=accept))
    return check(context)


UNSEEN = Unmeasurable(reason="no figure")


@pytest.mark.parametrize(
    ("check", "part", "claim"),
    [
        (hook_mode_safe, "hook_mode", "hook_mode_safe"),
        (device_has_room, "device_room", "device_has_room"),
        (host_has_room, "host_room", "host_has_room"),
    ],
)
def test_an_unmeasurable_guard_passes_only_where_that_is_accepted(check: Any, part: str, claim: str) -> None:
    reason = refusal(check, part, UNSEEN, **{claim: Grade.MEASURED})
    assert reason is not None
    assert claim in reason
    assert refusal(check, part, UNSEEN, **{claim: Grade.ACKNOWLEDGED}) is None
    assert refusal(check, part, Refuted(reason="short"), **{claim: Grade.ACKNOWLEDGED}) == "refuted: short"
    assert refusal(check, part, NotApplicable()) is None


def test_an_unmeasurable_hook_mode_is_refused_and_unmeasurable_headroom_is_not() -> None:
    assert refusal(hook_mode_safe, "hook_mode", UNSEEN) is not None
    assert refusal(device_has_room, "device_room", UNSEEN) is None


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        (root / name.replace("_", ".", 1)).write_text(text)
    return root


def test_a_container_has_no_more_than_its_limit(tmp_path: Path) -> None:
    root = write(
        tmp_path, memory_max=f"{256 * MIB}\n", memory_current=f"{200 * MIB}\n", memory_stat="inactive_file 1048576\n"
    )
    assert available_bytes(root) == 57 * MIB


@pytest.mark.parametrize("limit", ["max\n", None])
def test_without_a_limit_the_host_counts(tmp_path: Path, limit: str | None) -> None:
    if limit is not None:
        write(tmp_path, memory_max=limit, memory_current="1\n")
    assert available_bytes(tmp_path) > 256 * MIB


def test_the_biggest_of_this_host_are_named() -> None:
    named = biggest_holders("host:x", frozenset({1}))
    assert 0 < len(named) <= 3
    assert named[0].resident_bytes >= named[-1].resident_bytes
    assert all(holder.pid != 1 for holder in named)


async def test_the_engines_own_processes_are_not_among_the_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    excluded: list[frozenset[int]] = []
    monkeypatch.setattr(this_host, "biggest_holders", lambda device, without, among: excluded.append(without) or ())
    engine = by_pid(os.getpid())
    free = await this_host.ThisHost().free_memory(["host:x"], [engine], need_bytes=1 << 62, deadline_s=5)
    assert not isinstance(free, Unmeasurable)
    assert engine.pid in excluded[0]


# canary


def facts(version: str | None, boot: str = "b1") -> Facts:
    return Facts().learn({Fact.BOOT: boot, Fact.CONTENTS: {"weights": Contents("loaded", version)}}, Grade.REPORTED)


def answer(*ids: int) -> Proved:
    return Proved(grade=Grade.MEASURED, figures={"output_ids": ids})


class Watched:
    """An engine's answers, one after the other, by what is known of its weights."""

    def __init__(self) -> None:
        self.record = Record()

    def answers(self, known: Facts, *ids: int) -> Verdict:
        self.record, verdict = compared(replace(self.record, facts=known), answer(*ids))
        return verdict


def test_other_tokens_under_the_same_version_are_refuted() -> None:
    engine = Watched()
    assert isinstance(engine.answers(facts("v7"), 1, 2, 3, 4), Proved)
    assert isinstance(engine.answers(facts("v8"), 1, 2, 9, 9), Proved)
    verdict = engine.answers(facts("v7"), 1, 2, 9, 9)
    assert isinstance(verdict, Refuted)
    assert "v7" in verdict.reason
    assert "[1, 2, 9, 9], not [1, 2, 3, 4]" in verdict.reason
    engine.record = forgotten(engine.record, "v7")
    assert isinstance(engine.answers(facts("v7"), 1, 2, 9, 9), Proved)


def test_launched_weights_are_remembered_by_their_boot() -> None:
    engine = Watched()
    engine.answers(facts(None, "b1"), 1, 2)
    assert isinstance(engine.answers(facts(None, "b2"), 3, 4), Proved)
    assert isinstance(engine.answers(facts(None, "b1"), 3, 4), Refuted)


@pytest.mark.parametrize("tokens", [0, 4])
async def test_without_a_canary_nothing_is_compared(tokens: int) -> None:
    adapter = ScriptedAdapter("e", capabilities())
    engine = await scripted(adapter, policy=replace(QUICK, canary_tokens=tokens)).connect()
    adapter.script("answers", answer(1), answer(2))
    await engine.pause()
    await engine.drain()
    if tokens:
        with pytest.raises(NotProved, match=r"\[2\], not \[1\]"):
            await engine.resume()
    else:
        await engine.resume()
        await engine.pause()
        await engine.drain()
        await engine.resume()
    assert bool(engine.record.calibration.canary_answers) == bool(tokens)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("residual_threshold_gib", value) for value in (float("nan"), float("inf"), 0, -1, "3GB", "", None)],
        ("room_wait_s", 0),
        ("residual_stable_s", -1),
        ("residual_stable_s", float("nan")),
        ("residual_scope", "gpu"),
        ("canary_tokens", -1),
    ],
)
def test_a_policy_that_means_nothing_names_its_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=key) as refused:
        Policy(**{key: value})
    assert repr(value) in str(refused.value)
