"""The port: what this library asks of an engine, and the values that cross it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from .facts import Admission, Fact, Facts, Grade, PauseMode, Tag, TagSpec
from .verdicts import Verdict

if TYPE_CHECKING:
    from .commands import Command, Release


@dataclass(frozen=True, slots=True)
class Call:
    """One remote call, as planned. `effect` is what is known once it has been acknowledged.

    `repeatable`: sending it again when it may have run already does no harm. `refusal_is_untouched`: an error answer
    means that nothing changed; otherwise the facts in `effect` are unknown after one.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    effect: Mapping[Fact, Any] = field(default_factory=dict)
    repeatable: bool = False
    refusal_is_untouched: bool = False

    def __str__(self) -> str:
        args = ", ".join(f"{key}={value!r}" for key, value in self.args.items())
        return f"{self.name}({args})"


#: In a plan, the place where the trainer's collective push happens. The engine is not called.
PUSH = Call("push")


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one call: `done`, `rejected` (it answered with an error), or `lost` (no answer: it may have run).

    `refused` marks a lost call that was never sent, since nobody listened.
    """

    outcome: Literal["done", "rejected", "lost"]
    status: int | None = None
    detail: str = ""
    value: Any = None
    refused: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class PauseTraits:
    """What a pause mode does on this engine.

    `unsafe_from` are the modes from which this one must not be entered directly.
    """

    drains: bool
    keeps_requests: bool = False
    keeps_kv: bool = False
    needs_router: bool = False
    live_update: bool = False
    unsafe_from: frozenset[PauseMode] = frozenset()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine is and can do, read once at connect.

    `ranks` is the number of processes among which the tags are spread. `cancellable` is False where a call that was
    begun must be waited for (in process, a cancelled one shifts later replies to the wrong caller). `evidence` is the
    best grade this engine can give for a claim, where that is less than any claim could need. `memory_saver` is None
    where nothing tells; `saver` names what releases its GPU memory, where that is known. `hook_mode` is
    torch_memory_saver's, of an engine in this process that has chosen it; of others it is read from their processes.
    """

    engine: str
    version: str
    tags: tuple[TagSpec, ...]
    pause: Mapping[PauseMode, PauseTraits]
    releasable: Literal["any"] | frozenset[frozenset[Tag]] = "any"
    memory_saver: bool | None = None
    saver: Literal["torch_memory_saver", "cumem"] | None = None
    hook_mode: Literal["torch", "preload"] | None = None
    update: frozenset[Literal["disk", "push", "live"]] = frozenset()
    idle_covers_device: bool = True
    last_restore_resumes: bool = False
    has_admission: bool = True
    cancellable: bool = True
    device: Literal["cuda", "cpu"] | None = None
    ranks: int = 1
    evidence: Mapping[str, Grade] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def stage(self, stage: Literal["weights", "kv"]) -> frozenset[Tag]:
        """The tags of this stage."""
        return frozenset(spec.name for spec in self.tags if spec.stage == stage)

    def spec(self, tag: Tag) -> TagSpec:
        """The specification of one tag; KeyError if the engine has none of that name."""
        return {spec.name: spec for spec in self.tags}[tag]


@dataclass(frozen=True, slots=True)
class Observation:
    """What reads alone told; None is unknown. `alive` is False only where the process is known not to exist.

    `checksum` is of all weights together; `checksums` are of each owner (target, draft) where the engine tells them
    apart. `weights_label` is one for all of them: no engine known here has a label for each.
    """

    boot: str | None = None
    alive: bool | None = None
    admission: Admission | None = None
    running: int | None = None
    parked: int | None = None
    released_tags: frozenset[Tag] | None = None
    weights_label: str | None = None
    checksum: str | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""
    sampled_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Process:
    """One process of an engine. `start_time` (seconds since the epoch) tells it from a later one of the same pid.

    `agent` is where the agent of its node listens ("host:port"); None where it runs on this host.
    """

    node: str
    pid: int
    start_time: float
    rank: int | None = None
    devices: tuple[str, ...] = ()
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A question whose answer is real tokens: greedy, `tokens` of them."""

    text: str = "The capital of France is"
    tokens: int = 1


class EngineAdapter(Protocol):
    """One engine, as this library drives it. No method changes the lifecycle's state; only `send` changes the engine.

    Methods other than `plan` must return within `deadline_s`; an engine that does not answer is a value
    (`Reply.lost`, `Observation.alive`, a verdict), never an exception.
    """

    @property
    def url(self) -> str:
        """Where the engine is, without keys."""

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Reads what the engine can do. Raises ConfigurationError, with the remedy, where it cannot be driven."""

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The remote calls of a command, in order. Pure; empty where nothing needs to be sent."""

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push of weights; ValueError names the ways that the engine has."""

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Makes exactly one remote call, once."""

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Reads what is wanted; never generates, never changes anything."""

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Whether no request can run a step or hold device memory; may drop the prefix cache, and then says so."""

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once everything sent before has taken effect or never will; False where that cannot be known."""

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Whether the engine generates real tokens."""

    async def processes(self) -> tuple[Process, ...] | None:
        """The processes that the engine's tree hangs from; None where they cannot be found."""

    async def aclose(self) -> None:
        """Lets go of connections. The engine is left as it is."""


@runtime_checkable
class KeepsOnHost(Protocol):
    """What an adapter may have beside the port: it knows what a release takes of its host's memory."""

    def host_bytes(self, command: Release, facts: Facts) -> int:
        """Host memory that this release would take, beyond what is kept from the last one to be used again."""
