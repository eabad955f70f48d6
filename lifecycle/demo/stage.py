"""The demo's stage: checkpoints, engines, a fleet over them and clients that stream; leaving it undoes all of it."""

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

_STEP_DELAY_S = "0.015"  # a token takes as long as a larger model's: requests are caught in flight
_PROBES = PROMPTS[::3]
_PROBE_S = 30.0

Probed = Mapping[str, tuple[Tokens, ...]]  # by engine: its continuation of each probe prompt


@dataclass(frozen=True, slots=True)
class Settings:
    """What was chosen; see `lifecycle.demo.run`."""

    threshold_gib: float
    weights_mib: int
    kv_mib: int
    clients: int
    deadline_s: float
    fault: str | None

    def policy(self) -> Policy:
        """What the fleet is held to; ConfigurationError where the settings make no sense."""
        if self.clients < 2:
            raise ConfigurationError(f"the demo needs at least 2 clients, got {self.clients}")
        deadlines_s = dict.fromkeys(DEADLINES_S, self.deadline_s)
        return Policy(residual_threshold_gib=self.threshold_gib, deadlines_s=deadlines_s, settle_s=2.0)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Three sets of weights in files: what the fleet launches with, what training makes of it, the reward model."""

    launch: Path
    trained: Path
    reward: Path


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that the story needs, running."""

    engines: Sequence[RunningEngine]
    fleet: Fleet
    phases: Phases
    clients: Clients
    checkpoints: Checkpoints
    _targets: Sequence[Target]

    async def probe(self) -> Probed:
        """What every engine that offloads makes of the probe prompts. Raises Lost, TimeoutError."""
        async with asyncio.timeout(_PROBE_S):
            found = await asyncio.gather(*(self._continuations(target) for target in self._targets))
        return {target.name: tokens for target, tokens in zip(self._targets, found, strict=True)}

    async def _continuations(self, target: Target) -> tuple[Tokens, ...]:
        session = self.clients.session
        answers = await asyncio.gather(*(stream(session, target, prompt, tokens=16) for prompt in _PROBES))
        return tuple(answer.tokens for answer in answers)


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Stage]:
    """Inside, all engines serve and all clients stream. Raises StartFailed, ConfigurationError."""
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
    made = await asyncio.gather(*making, return_exceptions=True)  # all have ended before the folder goes
    for each in made:
        if isinstance(each, BaseException):
            raise each
    return Checkpoints(*(each for each in made if isinstance(each, Path)))


def _plans(settings: Settings, checkpoints: Checkpoints) -> list[Plan]:
    """Decode engines keep a backup of their weights, so a cycle by `Kept` is theirs; prefill loses its weights."""
    sizes = ("--weights-mib", str(settings.weights_mib), "--kv-mib", str(settings.kv_mib))
    common = (*sizes, "--step-delay-s", _STEP_DELAY_S)
    fault = ("--fault", settings.fault) if settings.fault else ()
    return [
        Plan(PREFILL, "prefill", checkpoints.launch, common),
        Plan(DECODE[0], "decode", checkpoints.launch, (*common, "--weights-backup")),
        Plan(DECODE[1], "decode", checkpoints.launch, (*common, "--weights-backup", *fault)),
        Plan(REWARD, "reward", checkpoints.reward, common),
    ]
