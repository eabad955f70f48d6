"""Maps of methods: what an actor calls each verb of its engine, and what that does. Pure.

A map says which methods there are; which arguments each takes is read from its signature. So slime's release, which
takes no tags, releases all of them, and miles' releases those that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from lifecycle.core.facts import PauseMode, Tag
from lifecycle.core.frozen import EMPTY

from ..declared.verbs import Succeeded, TagEffect, did


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of an actor; the fields from `effects` on are those of `Verb`.

    - `given`: arguments that it is always given.
    - `renamed`: what it calls what its place is offered (`{"path": "model_path"}`), unless that has the same name.
    """

    name: str
    given: Mapping[str, Any] = EMPTY
    renamed: Mapping[str, str] = EMPTY
    effects: Mapping[Tag, TagEffect] = EMPTY
    repeatable: bool = False
    refusal_is_untouched: bool = False
    drops_cache: bool = False
    deadline_s: float | None = None
    succeeded: Succeeded = did


#: A name alone stands for `Method(name=...)`.
Asked = Method | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """The methods of an actor, by the places of `Verbs`, which has what each is offered.

    - `url`: the methods that say where the engine's server listens; the first that the actor has is called. It answers
      with a URL, or with a mapping that has `url`. A pair of them answers with its host and its port.
    - `server`: which server listens there. It is observed and asked for tokens over HTTP, beside whatever its actor is
      busy with. None: everything is asked of the actor, by the questions of this map.
    - `tags`: the tags of that server that a release without tags releases.
    """

    pause: Mapping[PauseMode, Asked]
    resume: Asked
    release: Method | Sequence[Method]
    restore: Method | Sequence[Method]
    load: Asked | None = None
    push: Mapping[str, Asked] = EMPTY
    push_begins: Asked | None = None
    push_ends: Asked | None = None
    drop_cache: Asked | None = None
    idle: Asked | None = None
    admission: Asked | None = None
    running: Asked | None = None
    released: Asked | None = None
    boot: Asked | None = None
    label: Asked | None = None
    checksum: Asked | None = None
    answer: Asked | None = None
    barrier: Asked | None = None
    url: Sequence[str | tuple[str, str]] = ()
    server: Literal["sglang", "vllm"] | None = None

    @property
    def tags(self) -> tuple[Tag, ...]:
        """The tags that its releases unmap."""
        releases = [self.release] if isinstance(self.release, Method) else self.release
        return tuple(dict.fromkeys(tag for each in releases for tag in each.effects))

    def places(self) -> Iterator[tuple[str, Any]]:
        """Each place of `Verbs` for which there is a method, and what stands in it."""
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("url", "server") and value not in (None, EMPTY):
                yield each.name, value


def method(asked: Asked) -> Method:
    """The method that a name alone stands for."""
    return Method(name=asked) if isinstance(asked, str) else asked


_BOTH: tuple[Tag, ...] = ("weights", "kv_cache")

#: SGLangEngine of slime. Its pause posts an empty body, which is an abort. Its release takes no tags and flushes first.
#: Its flush asks for up to a minute until the server is idle. No call has a timeout. It has no load: the server does
#: that. Source: slime, backends/sglang_utils/sglang_engine.py, August 2026.
SLIME = Methods(
    pause={"abort": Method(name="pause_generation", repeatable=True, refusal_is_untouched=True)},
    resume=Method(name="continue_generation", repeatable=True),
    release=Method(name="release_memory_occupation", effects=dict.fromkeys((*_BOTH, "cuda_graph"), "discarded")),
    restore=Method(name="resume_memory_occupation", effects=dict.fromkeys((*_BOTH, "cuda_graph"), "resident")),
    push={"tensor": "update_weights_from_tensor", "distributed": "update_weights_from_distributed"},
    drop_cache=Method(name="flush_cache", repeatable=True, refusal_is_untouched=True),
    idle=Method(name="flush_cache", drops_cache=True),
    url=("get_url", ("get_server_host", "get_server_port")),
    server="sglang",
)

_MODES: Mapping[PauseMode, str] = {"abort": "abort", "keep": "retract", "freeze": "in_place"}


def _pause(own_mode: str) -> Method:
    return Method(name="pause_generation", given={"mode": own_mode}, repeatable=True, refusal_is_untouched=True)


#: SGLangEngine of miles: as slime's, with tags and modes, a load, and sessions of a push. Its pause without a mode is a
#: retract. Source: miles, backends/sglang_utils/sglang_engine.py, August 2026.
MILES = replace(
    SLIME,
    pause={mode: _pause(own) for mode, own in _MODES.items()},
    load=Method(
        name="update_weights_from_disk",
        renamed={"path": "model_path", "version": "weight_version"},
        repeatable=True,
    ),
    push_begins="begin_weight_update",
    push_ends="end_weight_update",
    url=("get_url", "get_topology_info", ("get_server_host", "get_server_port")),
)
