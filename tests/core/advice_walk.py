"""Follows the advice of a message to the letter, in Python or on the command line, until the engine serves.

What a message says is read out of its text alone. Where a person has to do something first, it is done to the model of
the engine as the words say, and counted. The same choice of the same message in the same state twice is a circle.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import typer
from advice_text import Way, ways_in, ways_recovered
from rig import V1
from virtual_time import VirtualTime

from lifecycle import Engine, Fleet, FromDisk, Kept, Pushed, Recovery, State
from lifecycle.cli import app, main, options
from lifecycle.rules.table import row

#: What a person fills in for the words in capitals.
FILLED = {"PATH": V1.path, "VERSION": V1.version, "NAME": "me", "WHY": "I saw it"}

#: The command line's parser, made once: typer makes it anew for every command.
PARSER = typer.main.get_command(app.app)

#: The command of the table that each verb of the command line gives, where it gives one alone.
VERBS = {"pause": "pause", "drain": "drain", "release": "release", "update": "update_weights", "resume": "resume"}


@dataclass
class Walk:
    """One engine of a fleet, and what a person may do to it."""

    world: VirtualTime
    fleet: Fleet
    engine: Engine
    #: What makes the fault go away, where a person is asked to change what the message names.
    heal: Callable[[], object] = lambda: None
    on_command_line: bool = False
    message: str = ""
    decisions: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def follow(self, message: str) -> None:
        """The engine serves in the end; AssertionError shows the way that was taken otherwise."""
        seen: set[tuple[State, str, Way]] = set()
        for _ in range(16):
            self.steps.append(f"{self.engine.state}: {message}")
            ways = ways_in(message) or ways_recovered(message)
            assert ways, self.told("a message without advice")
            ways = [way for way in ways if way.command or not (way.call and self.on_command_line)]
            ways = [way for way in ways if (self.engine.state, message, way) not in seen and self._is_so(way)]
            assert ways, self.told("a circle")
            way = ways[0]
            seen.add((self.engine.state, message, way))
            self._decide(way.first)
            if not way.call:
                assert self.engine.state is State.SERVING or "wait" in way.first, self.told("nothing leads on")
            said = self._typed(way.command) if self.on_command_line else self._called(way.call)
            if self.engine.state is State.SERVING and not said:
                break
            message = said or str(self.engine.advice)
        model = self.engine.adapter.engine
        assert self.engine.state is State.SERVING, self.told("it does not serve")
        assert model.alive, self.told(f"it ended: {model.deaths}")
        assert model.admission == "open", self.told("it admits nothing")
        assert not model.unmapped, self.told("it is called serving, and its memory is not mapped")
        assert model.violations == [], self.told(str(model.violations))

    def told(self, why: str) -> str:
        """The way that was taken."""
        return "\n  ".join([f"{why}:", *self.steps])

    def _is_so(self, way: Way) -> bool:
        """What a person would choose: a state is asserted only where it is the true one."""
        _, _, state = way.first.partition("if you know that it is ")
        model = self.engine.adapter.engine
        if not state:
            return True
        weights = self.engine.capabilities.stage("weights")
        if model.admission == "open":
            return state == "serving" and not model.unmapped
        true = {"paused", "drained"} if not model.unmapped else {"weights_restored"}
        return state in ({"released"} if model.unmapped & weights else true)

    def _decide(self, first: str) -> None:
        if not first:
            return
        self.decisions.append(first)
        model = self.engine.adapter.engine
        if "start it anew" in first:
            self.engine.adapter.as_modelled()
            self.heal()
            model.reachable = True
            model.stubborn = 0
            model.restart()
        elif first.startswith(("change what", "make its store", "wait until", "accept ")):
            self.heal()
            self.world.run(asyncio.sleep(1.0))

    def _called(self, call: str) -> str:
        """What the call raised, or found; empty where it went well."""
        if not call:
            return ""
        if "preempt" not in call:  # that one has no row while the drain that it gives up is under way
            self._in_the_table(call.partition(".")[2].partition("(")[0])
        names = {"fleet": self.fleet, "engine": self.engine, "FromDisk": FromDisk, "Kept": Kept, "Pushed": Pushed}
        names |= {
            "State": State,
            "PATH": V1.path,
            "VERSION": V1.version,
            "PUSH": _push,
            "NAME": "me",
            "WHY": "I saw it",
        }

        async def make() -> Any:
            made = eval(call, {}, names)
            return await made if asyncio.iscoroutine(made) else made

        self.steps.append(f"  {call}")
        try:
            found = self.world.run(make())
        except Exception as error:
            return str(error)
        recovered = found.get(self.engine.name) if isinstance(found, dict) else None
        return str(recovered) if isinstance(recovered, Recovery) and recovered.state is not State.SERVING else ""

    def _typed(self, command: str) -> str:
        """What the command line printed where it went wrong, or found."""
        if not command:
            return ""
        program, verb, *arguments = shlex.split(command)
        assert program == "lifecycle"
        self._in_the_table(VERBS.get(verb, ""))
        arguments = [FILLED.get(argument, argument) for argument in arguments]
        self.steps.append(f"  {shlex.join([program, verb, *arguments])}")
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.object(options.Options, "fleet", lambda given, *_, **__: _Entered(self, given)),
            mock.patch("asyncio.run", self.world.run),
            mock.patch.object(app, "app", PARSER.main),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main([verb, *arguments])
        assert code in (0, 1, 3), self.told(f"exit code {code}: {err.getvalue()}")
        if verb == "recover":
            return "" if self.engine.state is State.SERVING else out.getvalue()
        return err.getvalue() if code else ""

    def _in_the_table(self, command: str) -> None:
        """The table has a row for a command that is advised."""
        if command in set(VERBS.values()) | {"restore_weights", "restore_kv"}:
            assert row(command, self.engine.state), self.told(f"{command} is not allowed in {self.engine.state}")


class _Entered:
    """The fleet of the walk, in place of one that the command line would connect."""

    def __init__(self, walk: Walk, given: options.Options) -> None:
        named = [engine for engine in walk.fleet if engine.address in given.urls]
        assert len(named) == len(given.urls), walk.told(f"{given.urls}: no such engine")
        self.fleet = Fleet(named, router=walk.fleet.router, policy=walk.fleet.policy)

    async def __aenter__(self) -> Fleet:
        return self.fleet

    async def __aexit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.fleet)

    async def aclose(self) -> None:
        pass


async def _push(engines: Any) -> None:
    for engine in engines:
        await engine.push("tensor")
