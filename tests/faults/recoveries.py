"""What happens at a point, the recovery by another driver, and what must be so then."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drivers import Driver, in_another_process
from points import Case, Trace
from three_engines import NAMES, ThreeEngines

from lifecycle import EngineHeld, Fleet, LifecycleError, Policy, State
from lifecycle.core.journal import CallSent
from lifecycle.core.sources import Source
from lifecycle.rules.violations import violations
from lifecycle.store.journal import read_file

#: Seconds after which an engine that is still held by a driver which has ended stays so.
HELD_S = 30.0

#: What is said of an engine whose weights only the trainer can bring.
TRAINER = "only the trainer can make that"

#: The reason of one that is refused: two states, and what would decide.
TWO_TRUTHS = re.compile(r"\b(\w+) or (\w+)\b.*: .*what would decide: ")


@dataclass(slots=True)
class Outcome:
    """What came of one case. `found` is where another driver found the engines, `problem` what must not be so."""

    case: Case
    found: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    pushed: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    wanted: dict[str, str | None] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    problem: str = ""

    def __str__(self) -> str:
        told = {"refused": self.refused, "pushed": self.pushed, "killed": self.killed, "problem": self.problem}
        more = "".join(f", {name} {what}" for name, what in told.items() if what)
        return f"{self.case}: found {', '.join(self.found.values())}{more}; serve {', '.join(self.versions)}"

    def row(self, of: str) -> str:
        """It as a line of the page of the long lane: `of` are source and sizes, and then columns."""
        point = self.case.point
        way = [self.found.get(NAMES[point.effect.engine], "nowhere")]
        way += [word for word, some in (("restarted", self.restarted), ("pushed", self.pushed)) if some]
        came = "FAILED" if self.problem else "refused" if self.refused else "home"
        return " | ".join(("fault", of, str(point.effect), point.boundary, self.case.hit, " + ".join(way), came))


class Matrix:
    """The engines, and one source of weights, of which cases are tried one after the other."""

    def __init__(self, engines: ThreeEngines, source: str, policy: Policy) -> None:
        self.engines = engines
        self.kind = source
        self.policy = policy
        self._serving = "a"

    def tried(self, case: Case, trace: Trace, journal: Path) -> Outcome:
        """The case, to its end: all engines serve what is right again, and none of the others was harmed."""
        outcome, before = Outcome(case), list(self.engines.processes)
        hit = case.point.effect.engine if "engine" in case.hit else None
        try:
            self._try(outcome, trace, journal, hit)
        except AssertionError as error:
            outcome.problem = str(error)
        for name, process in zip(NAMES, before, strict=True):
            if process.returncode is not None and (hit is None or name != NAMES[hit]):
                outcome.killed.append(name)
                outcome.problem += f"\n{name} was killed: {process.returncode}"
        if outcome.problem or outcome.refused or len(set(outcome.versions)) > 1:
            self._begin_anew()
        return outcome

    def _try(self, outcome: Outcome, trace: Trace, journal: Path, hit: int | None) -> None:
        case, target = outcome.case, "a" if self.kind == "Kept" or self._serving == "b" else "b"
        source = self.engines.source(self.kind, target)
        with Driver(case, self.engines.urls, source, self.policy, trace) as driver:
            if hit is not None:
                self.engines.kill(hit)
            if case.hit in ("driver", "driver and engine"):
                driver.kill()
            if case.hit == "second driver":
                in_another_process(lambda: self._kept_away(driver, journal))
            if case.hit in ("second driver", "engine"):
                self._went_on(driver.goes_on(), hit)
        self._recovered(outcome, source, hit)
        self._judge(outcome, target)
        broken = [f"{each.rule}: {each.why}" for each in violations(read_file(journal))]
        assert broken == [], "\n".join(broken)

    def _begin_anew(self) -> None:
        """The next case begins with other processes, whatever came of this one."""
        for index in range(len(NAMES)):
            self.engines.start_again(index)
        self._serving = "a"

    # while the first driver lives

    async def _kept_away(self, first: Driver, journal: Path) -> None:
        """A second driver is told who has the engines, and sends nothing."""
        refusals = list[str]()
        fleet = Fleet.connect(self.engines.urls, policy=self.policy)
        drivers = {engine._session.owner.driver.token for engine in fleet}
        source = self.engines.source("FromDisk", "a")
        try:
            await fleet.__aenter__()
            for attempt in (fleet.offload(weights=source), fleet.onload(), fleet.pause()):
                try:
                    await attempt
                    raise AssertionError("a second driver was let in")
                except (LifecycleError, ExceptionGroup) as error:
                    refusals.append(str(error))
            for found in (await fleet.recover(to="serving")).values():
                refusals += [] if found.state is State.SERVING else [found.reason]
        except EngineHeld as held:
            refusals.append(str(held))
        finally:
            await fleet.aclose()
        assert refusals, "a second driver was not refused"
        assert all(f"pid {first.pid} on " in each for each in refusals), refusals
        sent = [each for each in read_file(journal) if isinstance(each.event, CallSent) and each.driver in drivers]
        assert sent == [], "a second driver sent something"

    def _went_on(self, said: Mapping[str, Any], hit: int | None) -> None:
        """The driver that lives has found its engine gone, if one was killed, and the others are home."""
        lost, states = said["lost"], said["states"]
        if hit is None:
            assert said["ended"] == "well", said
        else:
            assert states[NAMES[hit]][0] == "gone", said
        for name, (state, reason) in states.items():
            if hit is None or name != NAMES[hit]:
                self._is_home(name, state, reason, str(lost))

    def _is_home(self, name: str, state: str, reason: str, more: str) -> None:
        if self.kind == "Pushed" and state != "serving":
            assert TRAINER in reason, f"{name} is {state}: {reason} {more}"
        else:
            assert state == "serving", f"{name} is {state}: {reason} {more}"

    # the recovery

    def _recovered(self, outcome: Outcome, source: Source, hit: int | None) -> None:
        """Another driver has brought home what lives; then, with one that was started again, all."""
        if hit is not None:
            if outcome.case.hit == "driver and engine":
                self._brought(outcome, source, gone=NAMES[hit])
            self.engines.start_again(hit)
            outcome.restarted.append(NAMES[hit])
        self._brought(outcome, source)

    def _brought(self, outcome: Outcome, source: Source, gone: str | None = None) -> None:
        home = in_another_process(lambda: self._home(source, outcome.case.through_released, gone))
        found, refused, pushed, outcome.wanted = home
        outcome.found |= found
        outcome.refused |= refused
        outcome.pushed += pushed

    async def _home(
        self, source: Source, through_released: bool, gone: str | None
    ) -> tuple[dict[str, str], dict[str, str], list[str], dict[str, str | None]]:
        """All but the one that is gone serve, by recover(to=) alone, and by a push where only that is left.

        Returns where they were found, which were refused and why, which were pushed to, and the versions that they are
        to serve.
        """
        fleet = await attached(self.engines.urls, self.policy)
        refused, pushed = dict[str, str](), list[str]()
        try:
            states = {engine.name: str(engine.state) for engine in fleet}
            if through_released:
                for name, each in (await fleet.recover(to="released", weights=source)).items():
                    assert fleet[name].memory_is_free, f"{name} is not released: {each}"
            recovered = await fleet.recover(to="serving")
            why = "; ".join(f"{name}: {each}" for name, each in recovered.items())
            for name, each in recovered.items():
                if name == gone:
                    assert each.state is State.GONE, f"{name} was killed, and is {each}"
                elif each.state is State.FAILED:
                    refused[name] = each.reason
                elif self.kind == "Pushed" and each.state is not State.SERVING:
                    assert TRAINER in each.reason, f"{name} is {each}"
                    assert each.state is State.RELEASED, f"{name} is not released ({why})"
                    pushed.append(name)
                else:
                    assert each.state is State.SERVING, f"{name} is {each}"
            for version in {fleet[name].desired.version or "" for name in pushed}:
                waiting = [name for name in pushed if fleet[name].desired.version == version]
                await fleet.onload(weights=self.engines.source("Pushed", version), engines=waiting)
            for engine in fleet:
                if engine.name not in (*refused, gone):
                    assert engine.state is State.SERVING
                    assert engine.weights_refusal() is None, f"{engine.name}: {engine.weights_refusal()}"
        finally:
            await fleet.aclose()
        return states, refused, pushed, {engine.name: engine.desired.version for engine in fleet}

    # what must be so

    def _judge(self, outcome: Outcome, target: str) -> None:
        """Who is refused is so between two possible truths, and never with weights on disk; the others serve right.

        All serve one version: where a driver ends in the middle, its fleet is to serve one.
        """
        for name, reason in outcome.refused.items():
            assert self.kind != "FromDisk", f"{name} was refused: {reason}"
            assert TWO_TRUTHS.search(reason), f"{name} was refused, and not with two possible truths: {reason}"
        serving = {name: self.engines.serves(index) for index, name in enumerate(NAMES) if name not in outcome.refused}
        outcome.versions = list(serving.values())
        wanted = {outcome.wanted[name] for name in serving}
        # Where nobody has named a version yet, one that was started again serves what it was launched with.
        alike = {name for name in serving if wanted != {None} or name not in outcome.restarted}
        (version, *others) = dict.fromkeys(serving[name] for name in alike)
        assert others == [], f"they serve {serving}, and are to serve {outcome.wanted}"
        assert version in (self._serving, target), f"they serve {serving}"
        if self.kind != "Kept":  # that names no version
            assert wanted <= {None, version}, f"they are to serve {outcome.wanted}, and serve {serving}"
        self._serving = version


async def attached(urls: Sequence[str], policy: Policy) -> Fleet:
    """A fleet of these engines, once no call of a driver that has ended may run any more."""
    fleet = Fleet.connect(urls, policy=policy)
    await _entered(fleet)
    return fleet


async def _entered(fleet: Fleet) -> None:
    async with asyncio.timeout(HELD_S):
        while True:
            try:
                await fleet.__aenter__()
                return
            except EngineHeld:
                await asyncio.sleep(0.1)
