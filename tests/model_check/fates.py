"""How a question or a call may end, other than by its effect and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from truth import Act, TrueEngine

from lifecycle.core.calls import Call, Reply
from lifecycle.core.observation import Observation
from lifecycle.core.verdicts import Pending, Refuted

#: The answer of an engine that does not answer.
NOTHING = object()

LOST = Reply("lost", detail="the connection broke")


@dataclass(slots=True)
class Asked:
    """What waits for an engine: a call, or a question (`call` is None), of the driver `who`."""

    who: str
    engine: str
    what: str
    answer: asyncio.Future[Any]
    act: Act
    call: Call | None = None

    def __str__(self) -> str:
        return f"{self.who} {'sends' if self.call else 'asks'} {self.engine}: {self.call or self.what}"


class Ends(Protocol):
    """What a fate needs of the world."""

    def end(self, asked: Asked, answer: Any = ...) -> None:
        """Who asked goes on, with this answer."""

    def affect(self, who: str, engine: str, act: Act, words: str, *, call: Call | None) -> Any:
        """What a driver sent reaches the engine."""

    def comes_late(self, who: str, engine: str, boot: str, call: Call, act: Act) -> None:
        """What a call does may still come."""

    @property
    def truth(self) -> Any:
        """The engines."""


@dataclass(frozen=True, slots=True)
class Fate:
    """One way in which something ends."""

    words: str
    ends: Callable[[Any, Asked], None] = field(compare=False)

    def __str__(self) -> str:
        return self.words


def _answers(words: str, answer: Any) -> Fate:
    """Nothing comes of it, and this is answered."""
    return Fate(words, lambda world, asked: world.end(asked, answer))


def _lost_after(world: Ends, asked: Asked) -> None:
    world.affect(asked.who, asked.engine, asked.act, str(asked), call=asked.call)
    world.end(asked, LOST)


def _later(world: Ends, asked: Asked) -> None:
    assert asked.call is not None
    boot = world.truth.engines[asked.engine].boot
    world.comes_late(asked.who, asked.engine, boot, asked.call, asked.act)
    world.end(asked, LOST)


def _frees_nothing(world: Ends, asked: Asked) -> None:
    def released(model: TrueEngine) -> Any:
        model.frees = False
        reply = asked.act(model)
        model.frees = True
        return reply

    world.end(asked, world.affect(asked.who, asked.engine, released, str(asked), call=asked.call))


REFUSED = _answers("refused", Reply("lost", detail="connection refused", refused=True))
REJECTED = _answers("rejected", Reply("rejected", status=503, detail="not now"))
LOST_BEFORE = _answers("lost on the way", LOST)
LOST_AFTER = Fate("done, and the answer is lost", _lost_after)
LATER = Fate("no answer, and it comes later", _later)
FREES_NOTHING = Fate("answered, and nothing came back", _frees_nothing)
SILENT = _answers("no answer", NOTHING)

CALL: Sequence[Fate] = (REFUSED, REJECTED, LOST_BEFORE, LOST_AFTER, LATER)

FOREIGN = Observation(boot="another-boot", alive=True, admission="open", running=1, sampled_at=0.0)

#: By what is asked, or by the name of the call.
FATES: dict[str, Sequence[Fate]] = {
    "observe": (SILENT, _answers("another process answers", FOREIGN)),
    "boot": (SILENT, _answers("another process answers", Observation(boot="another-boot", alive=True))),
    "release": (*CALL, FREES_NOTHING),
    "prove_idle": (SILENT, _answers("a request still runs", Pending(reason="1 requests still run"))),
    "answers": (SILENT, _answers("no token", Refuted(reason="it generated nothing"))),
}


def fates(asked: Asked) -> Sequence[Fate]:
    """How this may end otherwise."""
    if asked.call is not None:
        return FATES.get(asked.call.name, CALL)
    return FATES.get(asked.what, (SILENT,))
