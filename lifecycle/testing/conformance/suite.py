"""How the suite starts an engine and passes it from case to case, and the class that has all groups of cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from ...core.facts import PauseMode
from ...core.policy import Policy
from ...core.ports import EngineAdapter
from ...core.sources import FromDisk
from .bench import Bench, Subject, adapter_by_url
from .calls import CallCases
from .failures import DeathCases, TroubleCases
from .in_flight import FlightCases
from .observation import ObservationCases
from .rows import RowCases


class EngineBench:
    """Starts the engine and declares what it can do. The groups of cases take their engines from here."""

    #: The heading of the engine's column in the table of results.
    engine: ClassVar[str] = ""
    #: The checkpoint that the engine is launched with, and its version.
    home: ClassVar[FromDisk]
    #: A checkpoint whose answers differ; None where the engine cannot load weights.
    other: ClassVar[FromDisk | None] = None
    #: Whether the engine keeps a backup of its weights during a release.
    keeps: ClassVar[bool] = False
    #: The pause modes that the engine must have.
    modes: ClassVar[frozenset[PauseMode]] = frozenset({"abort"})
    #: The tags that the engine must have.
    tags: ClassVar[frozenset[str]] = frozenset({"weights", "kv_cache"})
    policy: ClassVar[Policy] = Policy()
    #: Prompts with different greedy answers.
    prompts: ClassVar[tuple[str, ...]] = ("hello", "zebra", "once upon a time")
    #: How many tokens of each answer are compared.
    tokens: ClassVar[int] = 12
    #: Tokens of a request that is still running when a pause comes, and would end before the pause's deadline.
    long: ClassVar[int] = 200

    def start(self) -> Subject:
        """Starts an engine that serves `home`."""
        raise NotImplementedError(f"{type(self).__name__}.start() says how an engine is started")

    def adapter(self, subject: Subject) -> EngineAdapter:
        """Makes an adapter for the engine; for one without a URL scheme of its own."""
        return adapter_by_url(subject)

    @pytest.fixture(scope="class")
    @classmethod
    def _running(cls) -> Iterator[list[Bench]]:
        """Holds the engine that the last case left as it found it, if any."""
        kept: list[Bench] = []
        yield kept
        while kept:
            kept.pop().subject.stop()

    @pytest.fixture
    def bench(self, _running: list[Bench], request: pytest.FixtureRequest) -> Iterator[Bench]:
        """A running engine: the one of the last case where that is reusable, else a new one."""
        request.node.user_properties.append(("conformance", (self.engine, request.node.name)))
        if not _running:
            _running.append(self._new_bench())
        bench = _running[0]
        bench.reusable = False
        yield bench
        if not bench.reusable:
            _running.pop().subject.stop()

    def _new_bench(self) -> Bench:
        settings = (self.home, self.keeps, self.policy, self.prompts, self.tokens, self.adapter)
        bench = Bench(self.start(), *settings)
        bench.launch_answers = bench.answers_blocking()
        return bench


class EngineConformance(RowCases, CallCases, FlightCases, TroubleCases, DeathCases, ObservationCases, EngineBench):
    """The whole suite. A class that wants some groups only inherits those, and `EngineBench` last."""
