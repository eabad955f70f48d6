"""Verbs: what a user declares of one call to an engine, and how its answer is read. Pure.

A verb is a function: a method of an object, a request that the user writes. What a verb does cannot be read from it, so
it is declared. What it takes is read from its signature when it is declared. The methods of Ray actors are declared by
name (`lifecycle.adapters.ray.RayActors`): of `actor.method.remote` as a verb, the death of the actor would count as a
refusal, since `ActorDiedError` is no OSError.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Tag
from lifecycle.core.frozen import EMPTY, FrozenMap
from lifecycle.core.policy import positive

#: What a tag is once a verb was acknowledged. `resident`: mapped. The others are unmapped, and their contents are lost;
#: kept where that takes no memory of the engine's host; kept in its memory; or kept where a release wants them back.
TagEffect = Literal["discarded", "kept", "kept_on_host", "as_wanted", "resident"]

#: Whether one rank did what it was asked. A text is why it did not.
Succeeded = Callable[[Any], "bool | str"]


class InWords(Exception):
    """What a verb raises whose message says what happened; of any other exception its kind is said too."""


class NotCalled(InWords):
    """A verb raises it where its call did not reach the engine, and never will: nothing there has changed."""


def did(answer: Any) -> bool | str:
    """How an answer is read unless the verb says otherwise: False, and a mapping that says so, are failures.

    A mapping says so by `success` or `ok` that is False, or `status` or `error` that names an error, as the control
    endpoints of inference servers do.
    """
    if answer is False:
        return "it answered False"
    if not isinstance(answer, Mapping):
        return True
    if answer.get("success") is False or answer.get("ok") is False:
        return str(answer.get("message") or answer.get("error") or dict(answer))
    failed = answer.get("error") or (answer.get("status") if answer.get("status") in ("error", "failed") else None)
    return f"{dict(answer)}" if failed else True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One verb of an engine.

    - `call`: a function, or a coroutine function; what it returns may be awaited too, or be a list, one answer a rank.
      It is given what it takes of what its place in `Verbs` offers, by name.
    - `effects`: what each tag is after it, of verbs that release or restore memory.
    - `repeatable`: making it again when it may have run already does no harm.
    - `refusal_is_untouched`: where it says that it did not do it, nothing has changed.
    - `drops_cache`: after it the prefix cache is empty.
    - `deadline_s`: the most seconds that it is given, whatever its command is.
    - `succeeded`: how its answer is read, rank by rank; `did` unless given. A rank that answers None says nothing.
    - `unanswered`: the exceptions by which the call, or a rank, says that it got no answer: it may have run, or run
      still. After any other one the engine refused; after `NotCalled` it was not asked.
    - `takes`: the names that it takes, where its signature cannot be read, or has `**` for them.
    - `name`: what it is called in messages and journals; the function's own name unless given.
    """

    call: Callable[..., Any]
    effects: Mapping[Tag, TagEffect] = EMPTY
    repeatable: bool = False
    refusal_is_untouched: bool = False
    drops_cache: bool = False
    deadline_s: float | None = None
    succeeded: Succeeded = did
    unanswered: tuple[type[Exception], ...] = (OSError,)
    takes: tuple[str, ...] | None = None
    name: str = ""
    _named: str = field(init=False, default="", repr=False)

    def __post_init__(self) -> None:
        inner = self.call
        while isinstance(inner, functools.partial):
            inner = inner.func
        own = self.name or getattr(inner, "__name__", "") or type(inner).__name__
        object.__setattr__(self, "_named", own if own.isidentifier() else "")
        object.__setattr__(self, "effects", FrozenMap(self.effects))
        if not callable(self.call):
            raise ConfigurationError(f"verb {own}: its call must be a function, got {self.call!r}")
        for tag, effect in self.effects.items():
            if effect not in get_args(TagEffect):
                known = ", ".join(get_args(TagEffect))
                raise ConfigurationError(f"verb {own}: {tag} is {effect!r} after it; one of {known}")
        if self.deadline_s is not None:
            positive(f"verb {own}: deadline_s", self.deadline_s)

    @property
    def own_name(self) -> str:
        """What it is called; empty where that is no name (a lambda)."""
        return self._named

    @property
    def unmaps(self) -> frozenset[Tag]:
        """The tags that are unmapped after it."""
        return frozenset(tag for tag, effect in self.effects.items() if effect != "resident")

    @property
    def maps(self) -> frozenset[Tag]:
        """The tags that are mapped after it."""
        return frozenset(tag for tag, effect in self.effects.items() if effect == "resident")


def accepted(verb: Verb, place: str, offered: Sequence[str]) -> frozenset[str]:
    """Those of the offered names that the verb takes.

    Raises ConfigurationError that names the verb where it needs more than it is offered, or cannot be read.
    """
    if verb.takes is not None:
        unknown = [name for name in verb.takes if name not in offered]
        if unknown:
            raise ConfigurationError(f"{place}: takes={unknown[0]!r}, and it is offered {_names(offered)}")
        return frozenset(verb.takes)
    try:
        parameters = inspect.signature(verb.call).parameters.values()
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"{place}: what {verb.call!r} takes cannot be read; name it: Verb(takes=(...)), of {_names(offered)}"
        ) from None
    named = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    for each in parameters:
        given = each.kind in named and each.name in offered
        optional = each.default is not inspect.Parameter.empty
        if not (given or optional or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)):
            raise ConfigurationError(
                f"{place}: it needs {each.name!r}, and is offered {_names(offered)}; bind the rest (functools.partial)"
            )
    return frozenset(each.name for each in parameters if each.kind in named and each.name in offered)


@dataclass(frozen=True, slots=True)
class Judged:
    """What all ranks said: whether each that answered did it, and why not.

    `unclear`: some did and others did not, or what they said cannot be read. `unanswered`: of some there is no answer.
    """

    done: bool
    why: str = ""
    unclear: bool = False
    unanswered: bool = False


def judged(verb: Verb, answer: Any) -> Judged:
    """The answer of a verb, which may be a list: one answer a rank. A rank that raised counts as one that did not."""
    ranks = list(answer) if isinstance(answer, list | tuple) else [answer]
    try:
        said = [(rank, _of_rank(verb, each)) for rank, each in enumerate(ranks) if each is not None]
    except Exception as error:
        return Judged(
            False, f"{answer!r:.200}, of which succeeded= raised {type(error).__name__}: {error}", unclear=True
        )
    failed = [(rank, why) for rank, why in said if why]
    if not failed:
        return Judged(True)
    why = failed[0][1] if len(ranks) == 1 else "; ".join(f"rank {rank}: {why}" for rank, why in failed)
    silent = any(isinstance(each, (asyncio.CancelledError, *verb.unanswered)) for each in ranks)
    return Judged(False, why, unclear=silent or len(failed) < len(said), unanswered=silent)


def _of_rank(verb: Verb, answer: Any) -> str:
    """Why this rank did not do it; empty where it did."""
    if isinstance(answer, BaseException):
        return words(answer)
    said = verb.succeeded(answer)
    if isinstance(said, str):
        return said
    return "" if said else f"it answered {answer!r:.200}"


def words(error: BaseException) -> str:
    """What this exception says: its message, and its kind unless that is told by the message."""
    return str(error) if isinstance(error, InWords) else f"{type(error).__name__}: {error}"


def _names(offered: Iterable[str]) -> str:
    return ", ".join(offered) or "nothing"
