"""Checks of an engine that need no transition. Each check makes one finding, with a remedy where it is not ok."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from .core.errors import ConfigurationError, EngineHeld, RouterError
from .core.facts import Grade, SizeGrade, TagSpec
from .core.policy import SET_THRESHOLD
from .core.ports import Router, RoutesToWorkers
from .core.readings import Reading
from .core.states import State
from .core.units import mib
from .core.verdicts import Proved, Refuted, Unmeasurable
from .engine.engine import Engine
from .nodes.locate import by_node
from .nodes.port import PROCESSES_UNKNOWN, ProcessEnv
from .nodes.process_env import NCCL_GRAPHS, PRELOAD, expandable, preloads_twice
from .nodes.processes import clients, command_of
from .nodes.shared_scan import SharedScan
from .nodes.trees import pids_below
from .rules.threshold import can_be_exceeded

Level = Literal["ok", "warning", "failure"]

#: Seconds that connecting, and each slow check, may take.
DEADLINE_S = 30.0

_CLIENTS = SharedScan(clients)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `remedy` says what to do where it is not ok."""

    check: str
    level: Level
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:<8} {self.check:<15} {self.said}"
        return f"{line}; {self.remedy}" if self.remedy else line


async def examine(engine: Engine, *, deadline_s: float = DEADLINE_S) -> list[Finding]:
    """The findings on one engine, in the order of `CHECKS`; one alone where it cannot be reached or driven."""
    try:
        await engine.connect(deadline_s=deadline_s)
    except (ConfigurationError, EngineHeld) as error:
        return [Finding("connection", "failure", str(error))]
    if engine.state is State.GONE:
        return [Finding("connection", "failure", f"{engine.name} is gone: {engine.reason}", "start it anew")]
    return [await check(engine) for check in CHECKS]


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among these findings; `ok` where there are none."""
    levels = {finding.level for finding in findings}
    return "failure" if "failure" in levels else "warning" if "warning" in levels else "ok"


async def connection(engine: Engine) -> Finding:
    """It answers, and accepts the keys that are given. Connecting has called a control endpoint with them.

    Of a key that it does not ask for nothing can be said: any other would be taken as well.
    """
    answers, asks = f"{engine.capabilities.engine} answers", getattr(engine.adapter, "keys_needed", None)
    if asks is None:
        return Finding("connection", "ok", answers)
    needed = await asks(deadline_s=DEADLINE_S)
    unneeded = [name for name, each in needed.items() if not each]
    if unneeded:
        said = f"{answers}, and needs no {' and no '.join(unneeded)}: what was given was compared with nothing"
        return Finding("connection", "warning", said, "leave it out, or start the engine with its key")
    return Finding("connection", "ok", f"{answers}, and accepts the keys" if needed else f"{answers} without a key")


async def version(engine: Engine) -> Finding:
    """Its version is one on which the adapter was measured. Says in which range of versions it is, of which there are.

    Of an adapter whose `measured_on` is empty every version is, and of one without `version_ranges` none is named.
    """
    own, measured = engine.capabilities.version, tuple(getattr(engine.adapter, "measured_on", ()))
    known_by = getattr(engine.adapter, "version_known_by", "")
    ranges = getattr(engine.adapter, "version_ranges", "")
    driven = f"; driven as one of {known_by}" if known_by else ""
    driven += f"; it knows {ranges}" if ranges else ""
    if not measured or own in measured:
        said = f"{engine.capabilities.engine} {own}, which this adapter was measured on{driven}"
        return Finding("version", "ok", said)
    message = f"{own} is not among the versions that this adapter was measured on ({', '.join(measured)}){driven}"
    return Finding("version", "warning", message, "run the conformance suite against it")


async def state(engine: Engine) -> Finding:
    """Its state is known, and it admits requests."""
    facts = engine.facts
    if facts.admission == "open" or not engine.capabilities.has_admission:
        return Finding("state", "ok", f"{engine.state}")
    if facts.admission == "closed":
        return Finding("state", "warning", f"{engine.state}: it admits no requests", str(engine.advice))
    harmful = getattr(engine.adapter, "poisoned_by", None)
    remedy = str(engine.advice)
    if harmful:
        remedy = f"a monitor may have called {harmful} while it was paused; call {harmful} once"
    because = f" ({engine.reason})" if engine.state is State.FAILED else ""
    return Finding("state", "failure", f"whether it admits requests is unknown{because}", remedy)


async def lease(engine: Engine) -> Finding:
    """Other drivers of it are kept away. Drivers of another host, user or pid namespace need one holder with this."""
    if engine.driven_by is not None:
        return Finding("lease", "warning", engine.driven_by, "wait for it, or end that process")
    if engine.keeps_away is not None:
        return Finding("lease", "ok", f"keeps away {engine.keeps_away}, and no others")
    if not engine.reachable:
        return Finding("lease", "ok", "it lives in the process that drives it")
    return Finding("lease", "warning", "none is taken: no other driver is kept away", "drive it with a lease")


async def memory_saver(engine: Engine) -> Finding:
    """It was started so that a release frees memory. How its kind is started that way, its adapter's notes say."""
    match engine.capabilities.memory_saver:
        case True:
            return Finding("memory saver", "ok", "on")
        case False:
            notes = "; ".join(engine.capabilities.notes) or "a release would be answered and free nothing"
            return Finding("memory saver", "failure", f"off ({notes})", "start it with its memory saver")
    return Finding("memory saver", "warning", "whether it has one is unknown", "the first release will measure it")


async def hook_mode(engine: Engine) -> Finding:
    """The hook mode of torch_memory_saver, where it is used, does not crash on this GPU."""
    verdict = await engine.read_hook_mode(deadline_s=DEADLINE_S)
    if isinstance(verdict, Proved) and verdict.grade is Grade.ASSERTED:
        return Finding("hook mode", "warning", verdict.reason)
    if isinstance(verdict, Unmeasurable):
        return Finding("hook mode", "warning", verdict.reason, "a release is refused unless that is accepted")
    return Finding("hook mode", "failure" if isinstance(verdict, Refuted) else "ok", verdict.reason)


async def allocator(engine: Engine) -> Finding:
    """The allocator settings with which its processes were started let memory be released."""
    if engine.capabilities.device != "cuda":
        return Finding("allocator", "ok", "it does not run on a GPU")
    processes = await engine.adapter.processes()
    if not processes:
        return _not_readable(PROCESSES_UNKNOWN)
    problems: list[Finding] = []
    for node, there in by_node(processes):
        found = await node.process_env(there, deadline_s=DEADLINE_S)
        if isinstance(found, Unmeasurable):
            problems.append(_not_readable(found.reason))
        else:
            problems += filter(None, (_launch_problem(engine, process, there[0].node) for process in found))
    worst_first = sorted(problems, key=lambda problem: problem.level != "failure")
    return worst_first[0] if worst_first else Finding("allocator", "ok", "no expandable segments")


def _not_readable(reason: str) -> Finding:
    return Finding("allocator", "warning", reason, "see `lifecycle env` for what it must be started with")


def _launch_problem(engine: Engine, process: ProcessEnv, node: str) -> Finding | None:
    """What is wrong with how this process was started; None where nothing is."""
    who = f"pid {process.pid} on {node} was started with"
    setting = expandable(process.environ)
    if setting is not None:
        message = f"{who} {setting}, and cannot release such memory"
        return Finding("allocator", "failure", message, "set expandable_segments:False under both names")
    if engine.capabilities.saver != "torch_memory_saver":
        return None
    if preloads_twice(process.environ):
        message = f"{who} two libraries of {engine.capabilities.saver} in {PRELOAD}"
        return Finding("allocator", "failure", message, "name exactly one; `lifecycle env` prints which")
    if engine.capabilities.ranks > 1 and process.environ.get(NCCL_GRAPHS) != "0":
        setting = f"{NCCL_GRAPHS}={process.environ.get(NCCL_GRAPHS, 'unset')}"
        message = f"{who} {setting}: CUDA graphs kept over a release hang"
        return Finding("allocator", "warning", message, f"set {NCCL_GRAPHS}=0 where graphs are kept")
    return None


async def tags(engine: Engine) -> Finding:
    """It has memory that can be released, of known size."""
    specs = engine.capabilities.tags
    sizes = {spec.name: spec.expected_bytes for spec in specs}
    listed = ", ".join(f"{spec.name} {_size(spec)}" for spec in specs)
    if not specs:
        return Finding("tags", "failure", "it has nothing to release")
    if None in sizes.values():
        return Finding("tags", "warning", listed, _sizes_remedy(engine))
    return Finding("tags", "ok", f"{listed} per rank, {engine.capabilities.ranks} ranks")


def _sizes_remedy(engine: Engine) -> str:
    """What to do about tags of unknown size."""
    remedy, option = (
        "an unknown size is learned in the first proved cycle",
        getattr(engine.adapter, "sizes_option", None),
    )
    if option is None:
        return remedy
    unknown = [spec.name for spec in engine.capabilities.tags if spec.expected_bytes is None]
    given = ",".join(f"{name}:BYTES" for name in unknown)
    return f"{remedy}, or is given by an option of its URL, in bytes for each rank: {option}={given}"


def _size(spec: TagSpec) -> str:
    if spec.expected_bytes is None:
        return "?"
    return mib(spec.expected_bytes) + (" (a hint)" if spec.size_grade is SizeGrade.REPORTED else "")


async def processes(engine: Engine) -> Finding:
    """The processes whose memory is measured are known."""
    found = await engine.adapter.processes()
    if not found:
        remedy = "run on its host, or give ?pid=N or ?agent=HOST:PORT"
        return Finding("processes", "failure", "none found", remedy)
    local = await pids_below([process for process in found if process.agent is None], deadline_s=DEADLINE_S)
    roots = ", ".join(f"pid {process.pid} on {process.node}" for process in found)
    return Finding("processes", "ok", f"{roots}, {len(local)} in the tree" if local else roots)


async def residual_memory(engine: Engine) -> Finding:
    """Its memory can be measured, the release of each tag alone would be visible, and its threshold can be exceeded."""
    reading = await engine.read_residual(deadline_s=DEADLINE_S)
    if isinstance(reading, Unmeasurable):
        remedy = "without it no release is proved (or set Policy.accept: memory_returned=acknowledged)"
        return Finding("residual", "failure", reading.reason, remedy)
    per_device = ", ".join(f"{mib(size)} of {device}" for device, size in reading.devices.items())
    message = f"measured by {reading.probe}: {per_device}; threshold {mib(engine.policy.threshold_bytes)}"
    visible = max(engine.policy.visible_bytes, engine.policy.visible_fraction * reading.resident_bytes)
    remedies: list[str] = []
    full = _with_every_tag_mapped(engine, reading)
    verdict = None if full is None else can_be_exceeded(full, engine.policy)
    if isinstance(verdict, Refuted):
        remedies.append(f"that is not below all it holds, and cannot be exceeded: set it by {SET_THRESHOLD}")
    tiny = [spec.name for spec in engine.capabilities.tags if (spec.expected_bytes or visible) < visible]
    if tiny:
        remedies.append(f"too small to be visible when released alone: {', '.join(tiny)}")
    return Finding("residual", "warning" if remedies else "ok", message, "; ".join(remedies))


def _with_every_tag_mapped(engine: Engine, now: Reading) -> Reading | None:
    """What it holds with every tag mapped: what was read now, where they are; else what was read when they were."""
    mapped = engine.facts.mapped.values()
    return now if all(each is True for each in mapped) else engine.record.calibration.reading_all_mapped


async def device_idle(engine: Engine) -> Finding:
    """Its proof of idleness covers the device: no kernel is still running."""
    if engine.capabilities.idle_covers_device:
        return Finding("device idle", "ok", "its idle proof covers the device")
    message = "its idle proof does not cover the device: a kernel may still run while memory is released"
    return Finding("device idle", "warning", message, "release only after the engine has synchronised")


async def router(engine: Engine) -> Finding:
    """Whether a router in front of it is closed before it is paused."""
    if engine.has_router:
        return Finding("router", "ok", "present; moves close it first")
    waiting = [name for name, traits in engine.capabilities.pause.items() if traits.needs_router]
    missing = f" (needed for {', '.join(waiting)})" if waiting else ""
    message = f"none is given{missing}: the engine itself holds or refuses requests while it is paused"
    return Finding("router", "ok", message)


async def examine_router(given: Router, engines: Sequence[Engine]) -> list[Finding]:
    """The findings on the router in front of these engines, which were examined before."""
    if isinstance(given, RoutesToWorkers):
        try:
            await given.check([engine.name for engine in engines])
        except RouterError as error:
            return [Finding("router", "failure", str(error))]
    return [await _sends_to(given, engine) for engine in engines]


async def _sends_to(given: Router, engine: Engine) -> Finding:
    """The router sends to an engine that serves, and to no other: its health checks would ask that one, too."""
    sends, harmful = await given.is_open(engine.name), getattr(engine.adapter, "poisoned_by", None)
    if sends is None:
        return Finding("router", "warning", f"it does not say whether it sends to {engine.name}", "see its log")
    if sends and engine.state is not State.SERVING:
        harm = f", and its health check may ask {harmful}, which makes it report itself unhealthy" if harmful else ""
        message = f"it sends to {engine.name}, which is {engine.state}{harm}"
        return Finding("router", "warning", message, "name the router to the command that pauses: --router")
    if not sends and engine.state is State.SERVING:
        message = f"it does not send to {engine.name}, which serves"
        return Finding("router", "warning", message, "lifecycle onload with --router adds it")
    return Finding("router", "ok", f"it sends {'' if sends else 'nothing '}to {engine.name}, which is {engine.state}")


async def weights(engine: Engine) -> Finding:
    """Released weights can be restored."""
    ways: list[str] = sorted(engine.capabilities.update)
    kept = [
        spec.name for spec in engine.capabilities.tags if spec.stage == "weights" and spec.on_release != "discarded"
    ]
    if kept:
        ways.insert(0, f"its own backup of {', '.join(kept)}")
    if not ways:
        return Finding(
            "weights", "failure", "they cannot be restored after a release", "start it with a backup of its weights"
        )
    return Finding("weights", "ok", f"they can be restored by {', '.join(ways)}")


async def health_monitors(engine: Engine) -> Finding:
    """No health monitor calls, while it is paused, the endpoint that makes it report itself unhealthy."""
    harmful = getattr(engine.adapter, "poisoned_by", None)
    if harmful is None:
        return Finding("health monitors", "ok", "none of its endpoints does harm while it is paused")
    message = f"a call of {harmful} while it is paused makes it report itself unhealthy until the next one succeeds"
    try:
        connected = await _CLIENTS.result(deadline_s=DEADLINE_S)
    except TimeoutError:
        return Finding(
            "health monitors", "warning", f"{message}; who is connected now took too long to find", "see ss -tp"
        )
    peers = sorted(connected.get(urlsplit(engine.adapter.url).port or 0, frozenset()) - {os.getpid()})
    if peers:
        who = ", ".join(f"pid {pid} ({command_of(pid)})" for pid in peers[:3])
        return Finding(
            "health monitors", "warning", f"{message}; connected now: {who}", "let monitors call /ping and /ready"
        )
    return Finding("health monitors", "ok", f"{message}; no other process of this host is connected now")


Check = Callable[[Engine], Awaitable[Finding]]

CHECKS: Sequence[Check] = (
    connection,
    version,
    state,
    lease,
    memory_saver,
    hook_mode,
    allocator,
    tags,
    processes,
    residual_memory,
    device_idle,
    router,
    weights,
    health_monitors,
)
