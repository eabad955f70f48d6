"""The conformance suite: subclass one class, say how to start an engine and what it can do, and its adapter is asked
everything that this library relies on.

    class TestMine(EngineConformance):
        engine = "mine"
        home = FromDisk("/models/a", "a")

        def start(self) -> Subject:
            return MyEngineProcess(model=self.home.path)

The cases are ordinary pytest tests; they need pytest and nothing else. A case that leaves the engine as it was lets the
next one have it; after any other a new one is started. `docs/adapters.md` tells what each group of cases proves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from ..core.facts import PauseMode
from ..core.policy import Policy
from ..core.sources import FromDisk
from .conformance_bench import Bench, Meddled, Subject, meddled
from .conformance_calls import CallCases
from .conformance_flight import FlightCases
from .conformance_rows import RowCases
from .conformance_sight import SightCases
from .conformance_trouble import DeathCases, TroubleCases

__all__ = [
    "Bench",
    "CallCases",
    "DeathCases",
    "EngineBench",
    "EngineConformance",
    "FlightCases",
    "Meddled",
    "RowCases",
    "SightCases",
    "Subject",
    "TroubleCases",
    "meddled",
]


class EngineBench:
    """How an engine is started and what it can do; the groups of cases take their engines from here."""

    #: The column of the table.
    engine: ClassVar[str] = ""
    #: The checkpoint that it is launched with, under a label of the author's.
    home: ClassVar[FromDisk]
    #: Another checkpoint, whose answers differ; None where the engine cannot load weights.
    other: ClassVar[FromDisk | None] = None
    #: Whether a release keeps the weights' contents by the engine's own backup.
    keeps: ClassVar[bool] = False
    #: The pause modes that it must have.
    modes: ClassVar[frozenset[PauseMode]] = frozenset({"abort"})
    #: The tags that it must have.
    tags: ClassVar[frozenset[str]] = frozenset({"weights", "kv_cache"})
    policy: ClassVar[Policy] = Policy()
    #: Prompts whose greedy answers differ, and how many tokens of each are compared.
    prompts: ClassVar[tuple[str, ...]] = ("hello", "zebra", "once upon a time")
    tokens: ClassVar[int] = 12
    #: Tokens of a request that is still running when a pause comes, and ends within its deadline if left alone.
    long: ClassVar[int] = 200

    def start(self) -> Subject:
        """A running engine that serves `home`."""
        raise NotImplementedError(f"{type(self).__name__}.start() says how an engine is started")

    @pytest.fixture(scope="class")
    @classmethod
    def _running(cls) -> Iterator[list[Bench]]:
        """The engine that the last case left as it was, if any."""
        kept: list[Bench] = []
        yield kept
        while kept:
            kept.pop().subject.stop()

    @pytest.fixture
    def bench(self, _running: list[Bench], request: pytest.FixtureRequest) -> Iterator[Bench]:
        """A running engine, new or left as it was by the last case."""
        request.node.user_properties.append(("conformance", (self.engine, request.node.name)))
        if not _running:
            _running.append(self._begin())
        bench = _running[0]
        bench.clean = False
        yield bench
        if not bench.clean:
            _running.pop().subject.stop()

    def _begin(self) -> Bench:
        bench = Bench(self.start(), self.home, self.keeps, self.policy, self.prompts, self.tokens)
        bench.well = bench.answers_now()
        return bench


class EngineConformance(RowCases, CallCases, FlightCases, TroubleCases, DeathCases, SightCases, EngineBench):
    """The whole suite. A class that wants some groups only inherits those, and `EngineBench` last."""
