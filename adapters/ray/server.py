"""The server in an actor, as its own adapter observes it over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from lifecycle.core.calls import Call
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Grade, Tag
from lifecycle.nodes.address import Address, parse

from ..declared.declaration import Declaration
from ..declared.verbs import NotCalled, Verb
from .failures import Refused, Unanswered

if TYPE_CHECKING:
    from ..sglang.adapter import SGLangAdapter
    from ..vllm.adapter import VLLMAdapter

    Server = SGLangAdapter | VLLMAdapter
else:
    Server = Any

#: The request that loads a checkpoint where no method of the actor does.
LOAD = "update_weights_from_disk"

_ADAPTERS = {"sglang": ("..sglang", "SGLangAdapter"), "vllm": ("..vllm", "VLLMAdapter")}


def server_of(kind: Literal["sglang", "vllm"], address: str, tags: Sequence[Tag], options: Mapping[str, str]) -> Server:
    """The adapter of the server that listens at HOST:PORT."""
    module, name = _ADAPTERS[kind]
    parts = parse(f"{kind}://{address}")
    known = {"tags": ",".join(tags), **options} if kind == "sglang" else dict(options)
    server: Server = getattr(import_module(module, __package__), name)(Address(kind, parts.host, parts.port, known))
    return server


def merged(declared: Declaration, seen: Capabilities, who: str) -> Capabilities:
    """What the engine can do: by its methods, as its server does it.

    A pause that the server of this version does not have, or a tag whose bytes and contents the server tells, is the
    server's. What is declared in `About` counts before what the server says of itself.
    """
    own, about = declared.capabilities(), declared.about
    theirs = {spec.name: spec for spec in seen.tags}
    pause = {mode: seen.pause[mode] for mode in own.pause if mode in seen.pause}
    if not pause:
        raise ConfigurationError(
            f"{who}: none of its pauses ({', '.join(own.pause)}) is one of {seen.engine} {seen.version}, which has "
            f"{', '.join(seen.pause)}"
        )
    idle = {} if declared.has("idle") is None else {"idle": Grade.REPORTED}
    silent = [note for note in own.notes if "no barrier" not in note and "nothing reads" not in note]
    return replace(
        own,
        engine=f"{seen.engine} in actors",
        version=seen.version,
        tags=tuple(
            spec if spec.name not in theirs or spec.name in about.sizes else theirs[spec.name] for spec in own.tags
        ),
        pause=pause,
        memory_saver=seen.memory_saver if about.memory_saver is None else about.memory_saver,
        saver=seen.saver,
        saver_option=seen.saver_option,
        reports_released=seen.reports_released,
        observable=seen.observable,
        device=about.device or seen.device,
        ranks=max(about.ranks, seen.ranks),
        evidence={**seen.evidence, **idle},
        launch_source=seen.launch_source,
        notes=(
            *seen.notes,
            *silent,
            *(f"its server has no pause by {mode}" for mode in own.pause if mode not in pause),
        ),
    )


def load_by(current: Callable[[], Server | None]) -> Verb:
    """A verb that has the server load a checkpoint by itself, since the actor has no method for it."""

    async def load(path: str, version: str, options: Mapping[str, Any], deadline_s: float) -> Any:
        server = current()
        if server is None:
            raise NotCalled("it is not connected")
        body = {"model_path": path, "weight_version": version, "flush_cache": False, **options}
        reply = await server.send(Call(LOAD, body, repeatable=True), deadline_s=deadline_s)
        if reply.outcome == "done":
            return reply.value
        if reply.refused:
            raise NotCalled(reply.detail)
        raise (Unanswered if reply.outcome == "lost" else Refused)(reply.detail)

    return Verb(call=load, name=LOAD, repeatable=True, unanswered=(Unanswered,))
