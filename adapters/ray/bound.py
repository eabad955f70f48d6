"""From a map of methods and the handles of actors to the verbs of an engine."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from lifecycle.core.errors import ConfigurationError

from ..declared.declaration import DEADLINE, OFFERED, Verbs
from ..declared.verbs import Verb
from .failures import Unanswered
from .handles import Handles
from .methods import Method, Methods, method

#: What Ray adds to the signatures of an actor's methods.
_OF_RAY = "_ray_trace_ctx"

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def verbs_of(methods: Methods, handles: Handles, *, asks_url: bool, **others: Verb) -> Verbs:
    """The verbs that these methods are; `others` stand in places for which there is no method.

    `asks_url`: the actor is to say where its server listens. Raises ConfigurationError that names every method that the
    actor lacks, or an argument that one does not take.
    """
    signatures = handles.signatures()
    _check_there(methods, handles.url, signatures, asks_url=asks_url)
    placed: dict[str, Any] = dict(others)
    for place, value in methods.places():
        if isinstance(value, Mapping):
            placed[place] = {word: _verb(place, each, handles, signatures) for word, each in value.items()}
        elif isinstance(value, Sequence) and not isinstance(value, str):
            placed[place] = [_verb(place, each, handles, signatures) for each in value]
        else:
            placed[place] = _verb(place, value, handles, signatures)
    return Verbs(**placed)


def url_methods(methods: Methods, signatures: Mapping[str, Any]) -> tuple[str, ...]:
    """The method, or the two, by which the actor says where its server listens; none where it has none of them."""
    ways = [(way,) if isinstance(way, str) else way for way in methods.url]
    return next((way for way in ways if all(name in signatures for name in way)), ())


def takes(parameters: Sequence[inspect.Parameter], name: str) -> bool:
    """Whether a method of these parameters takes an argument of this name."""
    return any(each.name == name or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _check_there(methods: Methods, url: str, signatures: Mapping[str, Any], *, asks_url: bool) -> None:
    wanted: dict[str, str] = {}
    for place, value in methods.places():
        several = (
            value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        )
        wanted |= {method(each).name: place for each in several}
    missing = [f"{name} ({place})" for name, place in wanted.items() if name not in signatures]
    if asks_url and not url_methods(methods, signatures):
        missing += [" or ".join(way if isinstance(way, str) else " with ".join(way) for way in methods.url) + " (url)"]
    if missing:
        raise ConfigurationError(
            f"{url}: its actor has no method {', '.join(missing)}; it has {', '.join(sorted(signatures))}. Name them "
            "by a map of its own (Methods), or take out what it cannot do (dataclasses.replace(SLIME, ...))"
        )


def _verb(place: str, asked: Method | str, handles: Handles, signatures: Mapping[str, Any]) -> Verb:
    """The verb of this method; it takes what it is offered there and has a parameter for."""
    own = method(asked)
    parameters = signatures[own.name]
    for name in own.given:
        if not takes(parameters, name):
            raise ConfigurationError(
                f"{handles.url}: {own.name}() takes no {name!r}, which it is to be given ({place})"
            )
    offered = (*OFFERED.get(place, ()), DEADLINE)
    taken = tuple(name for name in offered if _named(parameters, own.renamed.get(name, name)) and name not in own.given)
    filled = {own.renamed.get(name, name) for name in taken} | set(own.given)
    _check_filled(place, own.name, parameters, filled, offered, handles.url)
    return Verb(
        call=_caller(handles, own),
        effects=own.effects,
        repeatable=own.repeatable,
        refusal_is_untouched=own.refusal_is_untouched,
        drops_cache=own.drops_cache,
        deadline_s=own.deadline_s,
        succeeded=own.succeeded,
        unanswered=(Unanswered,),
        takes=taken,
        name=own.name,
    )


def _named(parameters: Sequence[inspect.Parameter], name: str) -> bool:
    """Whether there is a parameter of this name; `**` may be for something else."""
    return any(each.name == name and each.kind not in _VARIADIC for each in parameters)


def _check_filled(
    place: str,
    name: str,
    parameters: Sequence[inspect.Parameter],
    filled: set[str],
    offered: Sequence[str],
    url: str,
) -> None:
    """Raises ConfigurationError where the method needs more than it would be given. Who pushes gives all there is."""
    needed = [
        each.name
        for each in parameters
        if each.default is inspect.Parameter.empty and each.kind not in _VARIADIC and each.name != _OF_RAY
    ]
    lacking = [each for each in needed if each not in filled] if place != "push" else []
    if lacking:
        raise ConfigurationError(
            f"{url}: {name}() needs {lacking[0]!r} ({place}), which is offered {', '.join(offered)}; give it "
            f"(Method(name={name!r}, given={{{lacking[0]!r}: ...}})), or say which of those it is (renamed=)"
        )


def _caller(handles: Handles, own: Method) -> Callable[..., Awaitable[Any]]:
    async def call(**arguments: Any) -> Any:
        named = {own.renamed.get(name, name): value for name, value in arguments.items()}
        return await handles.call(own.name, {**named, **own.given})

    return call
