"""The three cycles of the demo. Each one prints its measurements and checks what must hold."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ..core.errors import FleetError, GuardRefused, LifecycleError
from ..core.readings import Reading
from ..core.sources import FromDisk, Kept
from ..core.states import State
from ..core.transition import Transition
from ..core.units import mib
from ..engine.engine import Engine
from .clients import Lost
from .engines import StartFailed
from .report import Report, mib_or_unknown, returned
from .stage import DECODE, REWARD, Probed, Settings, Stage, stage
from .trainer import TrainerFailed, training

_LIMIT_S = 150.0
_READ_S = 10.0
_MEANWHILE_S = 10.0
_MEANWHILE = 3  # how many requests the reward model completes, at least, while the others are released
_WARM_UP = 2  # how many requests each engine completes before the first cycle
_PARITY_CHECKS = 5

#: Failures that end the cycles early; any other exception is a bug of the demo.
_FAILURES = (LifecycleError, FleetError, TrainerFailed, Lost, TimeoutError)

Resident = Mapping[str, int | None]  # by engine, in bytes


async def play(settings: Settings) -> int:
    """Runs the demo and returns its exit code. No process and no file is left, even after Ctrl-C or SIGTERM."""
    report, began_s = Report(), time.monotonic()
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    report.heading(
        f"Four engines start, each with {settings.weights_mib} MiB of weights and {settings.kv_mib} MiB of KV cache; "
        f"each may keep {settings.threshold_gib:g} GiB after a release"
    )
    try:
        async with asyncio.timeout(_LIMIT_S), stage(settings) as built:
            story = Story(built, report)
            await story.run()
            report.heading("Result")
            story.sum_up()
            return report.end(
                lost=built.clients.tally.lost,
                parity_checks=_PARITY_CHECKS,
                duration_s=time.monotonic() - began_s,
            )
    except (StartFailed, TimeoutError) as error:
        report.check("the demo runs to its end", False, str(error) or f"it has not ended after {_LIMIT_S:.0f} s")
        return 1


@dataclass(slots=True)
class Story:
    """Runs the cycles one after the other; the first that fails ends them."""

    stage: Stage
    report: Report
    at_launch: Probed = field(default_factory=dict)
    trained: Probed = field(default_factory=dict)
    released: Resident = field(default_factory=dict)
    releases: list[Transition] = field(default_factory=list)

    async def run(self) -> None:
        """Runs the cycles until one fails, and checks the count of the requests."""
        self._introduce()
        try:
            await self._warm_up()
            await self._new_weights()
            await self._kept_weights()
            await self._refused_restore()
        except _FAILURES as error:
            self.report.check("this part goes as it should", False, _message(error))
            await self._onload_all()
        await self._check_requests()

    def _introduce(self) -> None:
        rows = [("engine", "group", "pid", "weights", "takes part")]
        for engine in self.stage.engines:
            held = "lost on release" if engine.name != REWARD else "never released"
            held = "backed up on release" if engine.name in DECODE else held
            part = "no (offload=false)" if engine.name == REWARD else "yes"
            rows.append((engine.name, engine.plan.group, str(engine.pid), held, part))
        self.report.table(rows)
        self.report.line(self.stage.clients.describe())

    # the cycles

    async def _warm_up(self) -> None:
        self.report.heading("Before: all engines serve the weights that they were launched with")
        for engine in self.stage.engines:
            await self.stage.clients.wait_for(engine.name, _WARM_UP, deadline_s=_MEANWHILE_S)
        served = self.stage.clients.served
        held = all(served[engine.name] >= _WARM_UP for engine in self.stage.engines)
        self.report.check("every engine answers its clients", held)
        self.at_launch = await self.stage.probe()
        same = len(set(self.at_launch.values())) == 1
        self.report.parity("engines of the same weights give the same tokens", same, self._probed())

    async def _new_weights(self) -> None:
        self._begin("Cycle 1: offload; a trainer process takes the memory; new weights from disk; onload")
        fleet, serving = self.stage.fleet, await self._resident()
        source = FromDisk(str(self.stage.checkpoints.trained), "step-1")
        async with fleet.offloaded(weights=source) as records, self._window(records):
            await self._train(records, serving)
        await self._finish(serving, records)
        self._check_waves()
        self.trained = await self.stage.probe()
        same = len(set(self.trained.values())) == 1
        fresh = all(
            new != old
            for name, tokens in self.trained.items()
            for new, old in zip(tokens, self.at_launch[name], strict=True)
        )
        self.report.parity("new weights: other tokens than before, on every engine the same", same and fresh)

    async def _kept_weights(self) -> None:
        names = " and ".join(DECODE)
        self._begin(f"Cycle 2: offload and onload of {names}, which keep a backup of their weights; no update")
        fleet, serving = self.stage.fleet, await self._resident()
        async with fleet.offloaded(weights=Kept(), engines=DECODE) as records, self._window(records):
            pass
        await self._finish(serving, records)
        same = await self.stage.probe() == self.trained
        self.report.parity("kept weights: the same tokens as before the cycle", same)

    async def _refused_restore(self) -> None:
        """Restores the weights without loading them: without the guard, the engines would serve garbage."""
        self._begin("Cycle 3, the control: weights are mapped again but not loaded, and the guard has to refuse")
        fleet, serving = self.stage.fleet, await self._resident()
        records = await fleet.offload(weights=FromDisk(str(self.stage.checkpoints.launch), "step-2"))
        async with self._window(records):
            await fleet.restore_weights()
            await self._check_refused()
        await fleet.onload()
        await self._finish(serving, records)
        same = await self.stage.probe() == self.at_launch
        self.report.parity("the launch weights again, loaded: the same tokens as at launch", same)

    # parts of a cycle

    def _begin(self, title: str) -> None:
        self.report.heading(title)
        self.stage.phases.clear()

    @asynccontextmanager
    async def _window(self, records: Sequence[Transition]) -> AsyncIterator[None]:
        """Checks that the memory is returned; in the end, that the reward model went on serving."""
        fleet, clients = self.stage.fleet, self.stage.clients
        served = clients.served[REWARD]
        free = all(fleet[record.engine].memory_is_free for record in records)
        total = mib(sum(record.returned_bytes or 0 for record in records))
        self.report.check(f"all {len(records)} engines are released and their memory is proved returned", free, total)
        self.released = await self._resident()
        yield
        await clients.wait_for(REWARD, served + _MEANWHILE, deadline_s=_MEANWHILE_S)
        served = clients.served[REWARD] - served
        self.report.check(
            f"{REWARD} went on serving while the others were released", served >= _MEANWHILE, f"{served} requests"
        )

    async def _train(self, records: Sequence[Transition], serving: Resident) -> None:
        returned_bytes = sum(record.returned_bytes or 0 for record in records)
        async with training(returned_bytes >> 20) as trainer:
            self.report.check(
                f"the trainer (pid {trainer.pid}) holds all that was returned",
                trainer.pss_bytes >= returned_bytes >> 20 << 20,
                f"{mib(trainer.pss_bytes)} resident, {mib(returned_bytes)} returned",
            )
            now = _total(await self._resident()) + trainer.pss_bytes
            self.report.line(f"engines before: {mib(_total(serving))}; engines and trainer now: {mib(now)}")
            # The training step lasts until the reward model has completed some requests.
            goal = self.stage.clients.served[REWARD] + _MEANWHILE
            await self.stage.clients.wait_for(REWARD, goal, deadline_s=_MEANWHILE_S)

    async def _check_refused(self) -> None:
        """Every participant refuses to restore its KV cache because its weights are not valid."""
        refusals: dict[str, str] = {}
        sent = self.stage.phases.calls
        try:
            await self.stage.fleet.restore_kv()
        except FleetError as error:
            refused = [each for each in error.exceptions if isinstance(each, GuardRefused)]
            refusals = {each.engine: each.reasons.get("weights_valid", "") for each in refused}
        for name, reason in refusals.items():
            self.report.line(f"{name:<10}{reason}")
        participants = self.stage.fleet.participants()
        held = all(refusals.get(each.name) and each.state is State.WEIGHTS_RESTORED for each in participants)
        held &= self.stage.phases.calls == sent
        self.report.check(
            "a restore without a reload is refused by weights_valid, and no lifecycle call was sent", held
        )

    def _check_waves(self) -> None:
        first, then = (self.stage.phases.of("drain", group) for group in ("prefill", "decode"))
        held = first is not None and then is not None and first.end_s <= then.start_s
        self.report.check("decode engines were drained after prefill was idle", held)

    async def _finish(self, serving: Resident, records: Sequence[Transition]) -> None:
        restored = await self._resident()
        moved = {record.engine: returned(record) for record in records}
        self.releases += records
        rows = [["engine", "serving", "released", "restored", ""]]
        for name in serving:
            sizes = [mib_or_unknown(reading[name]) for reading in (serving, self.released, restored)]
            rows.append([name, *sizes, moved.get(name, "not part of this cycle")])
        self.report.table(rows)
        self.report.durations(self.stage.phases.durations_s())
        not_serving = [repr(engine) for engine in self.stage.fleet if engine.state is not State.SERVING]
        self.report.check("every engine serves again", not not_serving, ", ".join(not_serving))

    # measurements and results

    async def _resident(self) -> Resident:
        fleet = self.stage.fleet
        readings = await asyncio.gather(*(_resident_bytes(engine) for engine in fleet))
        return {engine.name: reading for engine, reading in zip(fleet, readings, strict=True)}

    async def _onload_all(self) -> None:
        """Brings every engine that can serve back to serving, so that the clients' open requests complete."""
        try:
            await self.stage.fleet.onload()
        except _FAILURES as error:
            self.report.line(f"not every engine serves: {_message(error)}")
        self.report.line(f"now: {', '.join(f'{engine.name} {engine.state}' for engine in self.stage.fleet)}")

    def sum_up(self) -> None:
        """Prints for each released engine the release that returned the least."""
        rows = []
        for name in dict.fromkeys(record.engine for record in self.releases):
            own = [record for record in self.releases if record.engine == name]
            least = min(own, key=lambda record: record.returned_bytes or 0)
            rows.append((name, f"{returned(least)}, the least of {len(own)} cycles"))
        if rows:
            self.report.table(rows)

    async def _check_requests(self) -> None:
        clients, tally = self.stage.clients, self.stage.clients.tally
        self.report.heading("Requests, as counted by the clients")
        await clients.finish(20.0 if not self.report.failed else 5.0)
        self.report.table(
            [
                ("sent", "completed", "aborted", "lost"),
                (str(tally.sent), str(tally.completed), f"{tally.aborted} (all sent again)", str(tally.lost)),
            ]
        )
        self.report.line("by engine: " + ", ".join(f"{name} {n}" for name, n in sorted(clients.served.items())))
        for reason, count in tally.reasons.most_common(5):
            self.report.line(f"lost {count}: {reason}")
        ended = tally.completed + tally.aborted + tally.lost
        self.report.check("every request is one of completed, aborted, lost", ended == tally.sent)
        self._check_fates()
        self.report.check("no request is lost", tally.lost == 0, f"{tally.lost} lost")
        ambiguous = [key for key, tokens in clients.answers.items() if len(tokens) > 1]
        self.report.parity(
            "clients were given one answer for each prompt, model and weights version",
            bool(clients.answers) and not ambiguous,
            f"{len(clients.answers)} different ones asked for, {len(ambiguous)} with several answers",
        )

    def _check_fates(self) -> None:
        """Compares what the engines report of each pause with what the clients got.

        SGLang does not tell which streams were aborted, nor, where some finished as well, always how many did.
        """
        tally, fates = self.stage.clients.tally, self.stage.phases.fates
        finished, refused = (sum(getattr(each, fate) or 0 for each in fates) for fate in ("finished", "refused"))
        unknown = sum(each.finished is None for each in fates)
        kept = max((each.kept or 0 for each in fates), default=0)
        known = bool(fates) and all(each.refused is not None for each in fates)
        agrees = finished <= tally.completed and refused <= tally.lost and kept <= len(self.stage.clients)
        self.report.check(
            "what the engines report of requests agrees with what their clients got",
            known and agrees,
            f"in {len(fates)} pauses {finished} finished ({unknown} not known), {refused} refused, at most {kept} kept",
        )

    def _probed(self) -> str:
        engines, tokens = len(self.at_launch), next(iter(self.at_launch.values()), ())
        return f"{len(tokens)} prompts on {engines} engines"


async def _resident_bytes(engine: Engine) -> int | None:
    reading = await engine.read_residual(deadline_s=_READ_S)
    return reading.resident_bytes if isinstance(reading, Reading) else None


def _total(resident: Resident) -> int:
    return sum(size or 0 for size in resident.values())


def _message(error: BaseException) -> str:
    return error.message if isinstance(error, FleetError) else str(error) or type(error).__name__
