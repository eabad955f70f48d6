"""Everything that can be found out about an engine without moving it: one finding a check, with what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import psutil

from .core.errors import ConfigurationError
from .core.facts import Grade
from .core.units import MIB
from .core.verdicts import Proved, Refuted, Unmeasurable
from .engine.engine import Engine
from .nodes.locate import by_node
from .nodes.port import PROCESSES_UNKNOWN, ProcessEnv
from .nodes.process_env import NCCL_GRAPHS, PRELOAD, expandable, preloads_twice
from .nodes.processes import command_of, tree_pids

Level = Literal["ok", "warning", "failure"]

#: Seconds that one engine is given for all of its checks.
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it where it is not well."""

    check: str
    level: Level
    said: str
    remedy: str = ""

    def __str__(self) -> str:
        told = f"{self.level:<8} {self.check:<15} {self.said}"
        return f"{told}; {self.remedy}" if self.remedy else told


async def examine(engine: Engine, *, deadline_s: float = DEADLINE_S) -> list[Finding]:
    """The findings on one engine, in the order of the checks; one alone where it cannot be reached or driven."""
    try:
        await engine.connect(deadline_s=deadline_s)
    except ConfigurationError as error:
        return [Finding("connection", "failure", str(error))]
    return [await check(engine) for check in CHECKS]


def worst(findings: Iterable[Finding]) -> Level:
    """The least good level of these findings."""
    levels = {finding.level for finding in findings}
    return "failure" if "failure" in levels else "warning" if "warning" in levels else "ok"


async def connection(engine: Engine) -> Finding:
    """It answers, and takes the keys: connecting has asked a control endpoint."""
    return Finding("connection", "ok", f"{engine.capabilities.engine} answers, and takes the keys")


async def version(engine: Engine) -> Finding:
    """Its version is one that was driven for real."""
    own, known = engine.capabilities.version, tuple(getattr(engine.adapter, "measured_on", ()))
    if not known or own in known:
        return Finding("version", "ok", f"{engine.capabilities.engine} {own}, which this adapter was measured on")
    told = f"{own} is not among the versions that this adapter was measured on ({', '.join(known)})"
    return Finding("version", "warning", told, "run the conformance kit against it")


async def state(engine: Engine) -> Finding:
    """Where it is is known."""
    facts = engine.facts
    if facts.admission == "open" or not engine.capabilities.has_admission:
        return Finding("state", "ok", f"{engine.state}")
    if facts.admission == "closed":
        return Finding("state", "warning", f"{engine.state}: it admits no requests", "resume it, or recover()")
    poison = getattr(engine.adapter, "poisoned_by", None)
    remedy = f"somebody may have asked {poison} while it was paused; ask {poison} once" if poison else "look at its log"
    return Finding("state", "failure", "whether it admits requests cannot be told", remedy)


async def memory_saver(engine: Engine) -> Finding:
    """A release frees memory."""
    match engine.capabilities.memory_saver:
        case True:
            return Finding("memory saver", "ok", "on")
        case False:
            told = "off: a release would be answered and free nothing"
            return Finding("memory saver", "failure", told, "start it with its memory saver (--enable-memory-saver)")
    return Finding("memory saver", "warning", "it does not say whether it has one", "the first release will measure it")


async def hook_mode(engine: Engine) -> Finding:
    """torch_memory_saver's hook mode does not crash on this GPU."""
    verdict = await engine.read_hook_mode(deadline_s=DEADLINE_S)
    if isinstance(verdict, Proved) and verdict.grade is Grade.DECLARED:
        return Finding("hook mode", "warning", verdict.reason)
    if isinstance(verdict, Unmeasurable):
        return Finding("hook mode", "warning", verdict.reason, "a release is refused unless that is accepted")
    return Finding("hook mode", "failure" if isinstance(verdict, Refuted) else "ok", verdict.reason)


async def allocator(engine: Engine) -> Finding:
    """Its allocator settings, as its processes were started on their hosts, let memory be released."""
    if engine.capabilities.device != "cuda":
        return Finding("allocator", "ok", "it does not run on a GPU")
    processes = await engine.adapter.processes()
    if not processes:
        return _unseen(PROCESSES_UNKNOWN)
    problems: list[Finding] = []
    for node, there in by_node(processes):
        found = await node.process_env(there, deadline_s=DEADLINE_S)
        if isinstance(found, Unmeasurable):
            problems.append(_unseen(found.reason))
        else:
            problems += filter(None, (_launch_problem(engine, process, there[0].node) for process in found))
    worst_first = sorted(problems, key=lambda problem: problem.level != "failure")
    return worst_first[0] if worst_first else Finding("allocator", "ok", "no expandable segments")


def _unseen(reason: str) -> Finding:
    return Finding("allocator", "warning", reason, "see `lifecycle env` for what it must be started with")


def _launch_problem(engine: Engine, process: ProcessEnv, node: str) -> Finding | None:
    """What is wrong with how this process was started; None where nothing is."""
    who = f"pid {process.pid} on {node} was started with"
    setting = expandable(process.environ)
    if setting is not None:
        told = f"{who} {setting}, and cannot give such memory back"
        return Finding("allocator", "failure", told, "set expandable_segments:False under both names")
    if engine.capabilities.saver != "torch_memory_saver":
        return None
    if preloads_twice(process.environ):
        told = f"{who} two libraries of torch_memory_saver in {PRELOAD}"
        return Finding("allocator", "failure", told, "name exactly one; `lifecycle env` prints which")
    if engine.capabilities.ranks > 1 and process.environ.get(NCCL_GRAPHS) != "0":
        told = f"{who} {NCCL_GRAPHS}={process.environ.get(NCCL_GRAPHS, 'unset')}: CUDA graphs kept over a release hang"
        return Finding("allocator", "warning", told, f"set {NCCL_GRAPHS}=0 where graphs are kept")
    return None


async def tags(engine: Engine) -> Finding:
    """What can be released, and how much it is."""
    specs = engine.capabilities.tags
    sizes = {spec.name: spec.expected_bytes for spec in specs}
    told = ", ".join(f"{name} {'?' if size is None else f'{size // MIB} MiB'}" for name, size in sizes.items())
    if not specs:
        return Finding("tags", "failure", "it has nothing to release")
    if None in sizes.values():
        return Finding("tags", "warning", told, "an unknown size is learned in the first proved cycle")
    return Finding("tags", "ok", f"{told} per rank, {engine.capabilities.ranks} ranks")


async def processes(engine: Engine) -> Finding:
    """The processes whose memory counts are known."""
    found = await engine.adapter.processes()
    if not found:
        remedy = "run on its host, or give ?pid=N or ?agent=HOST:PORT"
        return Finding("processes", "failure", "none was found", remedy)
    local = {pid for process in found if process.agent is None for pid in tree_pids(process)}
    roots = ", ".join(f"pid {process.pid} on {process.node}" for process in found)
    return Finding("processes", "ok", f"{roots}, {len(local)} in the tree" if local else roots)


async def residual_memory(engine: Engine) -> Finding:
    """Its memory can be measured, and well enough."""
    reading = await engine.read_residual(deadline_s=DEADLINE_S)
    if isinstance(reading, Unmeasurable):
        remedy = "without it a release is not believed (or accept memory_returned=acknowledged)"
        return Finding("residual", "failure", reading.reason, remedy)
    per_device = ", ".join(f"{size // MIB} MiB of {device}" for device, size in reading.devices.items())
    told = f"measured by {reading.probe}: {per_device}; threshold {engine.policy.threshold_bytes // MIB} MiB"
    visible = max(engine.policy.visible_bytes, engine.policy.visible_fraction * reading.resident_bytes)
    tiny = [spec.name for spec in engine.capabilities.tags if (spec.expected_bytes or visible) < visible]
    if tiny:
        return Finding("residual", "warning", told, f"too little to be seen when released alone: {', '.join(tiny)}")
    return Finding("residual", "ok", told)


async def device_idle(engine: Engine) -> Finding:
    """Idle means that nothing runs on the device either."""
    if engine.capabilities.idle_covers_device:
        return Finding("device idle", "ok", "its idle proof covers the device")
    told = "its idle proof does not cover the device: a kernel may run on while memory goes"
    return Finding("device idle", "warning", told, "release only after the engine has synchronised")


async def router(engine: Engine) -> Finding:
    """What stands in front of it."""
    if engine.has_router:
        return Finding("router", "ok", "there is one, and moves close it first")
    waiting = [name for name, traits in engine.capabilities.pause.items() if traits.needs_router]
    missing = f" (needed for {', '.join(waiting)})" if waiting else ""
    told = f"none is given{missing}: the engine itself holds or refuses requests while it is paused"
    return Finding("router", "ok", told)


async def weights(engine: Engine) -> Finding:
    """Released weights can come back."""
    ways: list[str] = sorted(engine.capabilities.update)
    kept = [spec.name for spec in engine.capabilities.tags if spec.stage == "weights" and spec.on_release == "kept"]
    if kept:
        ways.insert(0, f"its own backup of {', '.join(kept)}")
    if not ways:
        return Finding(
            "weights", "failure", "they cannot come back after a release", "give it a backup or an update call"
        )
    return Finding("weights", "ok", f"they come back by {', '.join(ways)}")


async def health_monitors(engine: Engine) -> Finding:
    """Nobody asks it, while it is paused, what makes it look dead."""
    poison = getattr(engine.adapter, "poisoned_by", None)
    if poison is None:
        return Finding("health monitors", "ok", "none of its reads does harm")
    told = f"a {poison} asked while it is paused makes it look unwell until the next one succeeds"
    peers = await asyncio.to_thread(_connected_to, urlsplit(engine.adapter.url).port or 0)
    if peers:
        who = ", ".join(f"pid {pid} ({command_of(pid)})" for pid in peers[:3])
        return Finding(
            "health monitors", "warning", f"{told}; connected now: {who}", "let monitors ask /ping and /ready"
        )
    return Finding("health monitors", "ok", f"{told}; nobody else on this host is connected to it now")


Check = Callable[[Engine], Awaitable[Finding]]

CHECKS: Sequence[Check] = (
    connection,
    version,
    state,
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


def _connected_to(port: int) -> list[int]:
    """The processes of this host, but not this one, that hold a connection to this port."""
    mine = psutil.Process().pid
    found = set()
    for each in psutil.net_connections(kind="tcp"):
        if each.raddr and each.raddr.port == port and each.status == psutil.CONN_ESTABLISHED:
            found.add(each.pid)
    return sorted(pid for pid in found if pid not in (None, mine))
