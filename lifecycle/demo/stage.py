"""Starts checkpoints, engines, a fleet and streaming clients for the demo, and stops all of them in the end."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ConfigurationError
from ..core.policy import DEADLINES_S, Policy
from ..fleet.fleet import Fleet
from ..fleet.groups import Group
from .clients import PROMPTS, Clients, Target, Tokens, new_session, stream
from .engines import Plan, RunningEngine, make_checkpoint, running
from .phases import Phases

GROUPS: Mapping[str, Group] = {
    "prefill": Group(),
    "decode": Group(drain_after=("prefill",)),
    "reward": Group(offload=False),
}
PREFILL, DECODE, REWARD = "prefill-0", ("decode-0", "decode-1"), "reward-0"

_STEP_DELAY_S = "0.015"  # as slow as a larger model: requests are in flight when a pause comes
_PROBES = PROMPTS[::3]
_PROBE_S = 30.0

Probed = Mapping[str, tuple[Tokens, ...]]  # by engine: the continuation of each probe prompt


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of `lifecycle.demo.run`."""

    threshold_gib: float
    weights_mib: int
    kv_mib: int
    clients: int
    deadline_s: float
    fault: str | None

    def policy(self) -> Policy:
        """Returns the policy of the fleet. Raises ConfigurationError for fewer than 2 clients."""
        if self.clients < 2:
            raise ConfigurationError(f"the demo needs at least 2 clients, got {self.clients}")
        deadlines_s = dict.fromkeys(DEADLINES_S, self.deadline_s)
        return Policy(residual_threshold_gib=self.threshold_gib, deadlines_s=deadlines_s, settle_s=2.0)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Three checkpoint files: the launch weights of the fleet, the trained weights, and the reward model."""

    launch: Path
    trained: Path
    reward: Path


@dataclass(frozen=True, slots=True)
class Stage:
    """The running engines, fleet and clients, and the checkpoints."""

    engines: Sequence[RunningEngine]
    fleet: Fleet
    phases: Phases
    clients: Clients
    checkpoints: Checkpoints
    _targets: Sequence[Target]

    async def probe(self) -> Probed:
        """Returns the continuations of the probe prompts by each engine that offloads. Raises Lost, TimeoutError."""
        async with asyncio.timeout(_PROBE_S):
            found = await asyncio.gather(*(self._continuations(target) for target in self._targets))
        return {target.name: tokens for target, tokens in zip(self._targets, found, strict=True)}

    async def _continuations(self, target: Target) -> tuple[Tokens, ...]:
        session = self.clients.session
        answers = await asyncio.gather(*(stream(session, target, prompt, tokens=16) for prompt in _PROBES))
        return tuple(answer.tokens for answer in answers)


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Stage]:
    """Yields once all engines serve and all clients stream. Raises StartFailed, ConfigurationError."""
    policy, phases = settings.policy(), Phases()
    with tempfile.TemporaryDirectory(prefix="lifecycle-demo-") as folder:
        checkpoints = await _make_checkpoints(Path(folder), settings.weights_mib)
        async with running(_plans(settings, checkpoints)) as engines:
            urls = [engine.fleet_url for engine in engines]
            targets = {each.name: Target(each.name, each.url, each.plan.checkpoint.stem) for each in engines}
            async with (
                Fleet.connect(urls, groups=GROUPS, policy=policy, observers=[phases]) as fleet,
                new_session() as session,
            ):
                offloading = [targets[engine.name] for engine in fleet.participants()]
                async with Clients(session, offloading, targets[REWARD], settings.clients) as clients:
                    yield Stage(engines, fleet, phases, clients, checkpoints, offloading)


async def _make_checkpoints(folder: Path, weights_mib: int) -> Checkpoints:
    making = [
        make_checkpoint(folder / f"{name}.safetensors", seed=seed, weights_mib=weights_mib)
        for seed, name in enumerate(("launch", "trained", "reward"))
    ]
    made = await asyncio.gather(*making, return_exceptions=True)  # all processes end before the folder is removed
    for each in made:
        if isinstance(each, BaseException):
            raise each
    return Checkpoints(*(each for each in made if isinstance(each, Path)))


def _plans(settings: Settings, checkpoints: Checkpoints) -> list[Plan]:
    """Returns the engines to start. Only decode engines keep a backup of their weights, for the cycle with `Kept`."""
    sizes = ("--weights-mib", str(settings.weights_mib), "--kv-mib", str(settings.kv_mib))
    common = (*sizes, "--step-delay-s", _STEP_DELAY_S, "--enable-metrics")
    fault = ("--fault", settings.fault) if settings.fault else ()
    return [
        Plan(PREFILL, "prefill", checkpoints.launch, common),
        Plan(DECODE[0], "decode", checkpoints.launch, (*common, "--weights-backup")),
        Plan(DECODE[1], "decode", checkpoints.launch, (*common, "--weights-backup", *fault)),
        Plan(REWARD, "reward", checkpoints.reward, common),
    ]
