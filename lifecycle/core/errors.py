"""Errors, split first by whether a lifecycle call was sent.

LifecycleError              .engine .command .state
  CommandRefused            no lifecycle call was sent
    InvalidTransition       .allowed
    GuardRefused            .reasons
    EngineBusy              .busy_with
      EngineHeld            .who .since .until
  OperationFailed           a lifecycle call was sent, or the engine is not what it was; .settled
    Unreachable
    DeadlineExceeded        .deadline_s
    Rejected                .status .detail
    NotProved               .verdicts
    Preempted               .by
FleetError                  an ExceptionGroup; .succeeded
RouterError                 a router did not confirm what it was asked
  RouterNotClosed           it may still send to engines, so that nothing was sent to any of them
AgreementError              why a rank does not go on, though none of its own engines failed; .rank .phase
  RankFailed                another rank refused or failed; .gave_up
  RankMissing               a rank did not vote in time; .late
  PlansDiffer               another rank is about to do something else
  AgreementLost             what the ranks decided is not known
ConfigurationError          a setting, a URL or an engine that cannot give the evidence asked for
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .advice import Advice
    from .states import State
    from .transition import Transition
    from .verdicts import Verdict

#: Bytes of an engine's error body that are kept.
DETAIL_LIMIT = 500

#: Engines that are named where many have the same reason.
NAMED = 3


class ConfigurationError(ValueError, RuntimeError):
    """A setting is wrong, or an engine cannot do what is asked of it; the message says what to do."""


class RouterError(Exception):
    """A router did not confirm what it was asked; the message says why, and what to do."""


class RouterNotClosed(RouterError):
    """A router did not confirm that it sends no more to some engines: no lifecycle call was sent to any of them."""


class NothingListens(ConfigurationError):
    """Nothing listens at an engine's address: it was not started, or its process has ended."""


def _rebuild(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class LifecycleError(Exception):
    """A command did not do what it says; `engine` is a name, `state` the state in which it was asked.

    `advice` names the calls that lead on, in Python and on the command line.
    """

    advice: Advice | None = None
    #: What is to be said beside why it failed, in words.
    remark: str = ""

    def __init__(self, why: str, *, engine: str, command: str, state: State) -> None:
        self.why = why
        self.engine = engine
        self.command = command
        self.state = state
        super().__init__(self._message())

    def _message(self) -> str:
        return f"{self.engine}: {self.command} in state {self.state}: {self.why}"

    def advise(self, advice: Advice) -> None:
        """The message ends with what leads on."""
        self.advice = advice
        self.args = (self._with_advice(self.without_advice),)

    def add_remark(self, remark: str) -> None:
        """The message says this too."""
        self.remark = remark
        self.args = (self._with_advice(self.without_advice),)

    @property
    def without_advice(self) -> str:
        """The message as it is without what leads on."""
        return f"{self._message()}. {self.remark}" if self.remark else self._message()

    def _with_advice(self, message: str) -> str:
        return message if self.advice is None else f"{message}. {self.advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class CommandRefused(LifecycleError):
    """No lifecycle call was sent (a guard may have flushed or generated), and the state is what it was."""

    def _message(self) -> str:
        return f"{self.engine}: {self.command} refused in state {self.state}: {self.why}"


class InvalidTransition(CommandRefused):
    """The table has no row for this command in this state; `allowed` are those it has."""

    def __init__(self, *, engine: str, command: str, state: State, allowed: Sequence[str], hint: str = "") -> None:
        self.allowed = tuple(allowed)
        here = f"allowed here: {', '.join(allowed)}" if allowed else "no command is allowed here"
        super().__init__(f"{here}{hint}", engine=engine, command=command, state=state)


class GuardRefused(CommandRefused):
    """A guard said no; `reasons` maps the name of each that did to its words."""

    def __init__(self, reasons: Mapping[str, str], *, engine: str, command: str, state: State) -> None:
        self.reasons = dict(reasons)
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        super().__init__(why, engine=engine, command=command, state=state)


class EngineBusy(CommandRefused):
    """Another command is under way on this engine."""

    def __init__(self, busy_with: str, *, engine: str, command: str, state: State) -> None:
        self.busy_with = busy_with
        why = f"{busy_with} is under way; wait for it or cancel it"
        super().__init__(why, engine=engine, command=command, state=state)


class EngineHeld(EngineBusy):
    """Another driver has the engine: `who` it is, `since` when and `until` when, in words."""

    def __init__(self, who: str, what: str, since: str, until: str, *, engine: str, command: str, state: State) -> None:
        self.busy_with = what
        self.who = who
        self.since = since
        self.until = until
        why = f"{who} has it for {what}, since {since}; wait until {until}, and try again"
        LifecycleError.__init__(self, why, engine=engine, command=command, state=state)


class OperationFailed(LifecycleError):
    """A lifecycle call was sent, or the engine is no longer what it was.

    `settled` is where it was found afterwards, and `note` what is to be said of that.
    """

    settled: State | None = None
    note: str = ""

    def settle(self, settled: State, note: str = "") -> OperationFailed:
        """This error, saying where the engine is now."""
        self.settled, self.note = settled, note
        self.args = (self._with_advice(self.without_advice),)
        return self

    def _message(self) -> str:
        settled = "" if self.settled is None else f". It settled to {self.settled}{self.note}"
        return f"{self.engine}: {self.command} failed in state {self.state}: {self.why}{settled}"


class Unreachable(OperationFailed):
    """The engine did not answer: nobody listens, the connection broke, or its process is gone."""


class DeadlineExceeded(OperationFailed):
    """A call was not answered in time, and whether it took effect is unknown; or, as it says then, none was sent."""

    def __init__(self, why: str, *, deadline_s: float, engine: str, command: str, state: State) -> None:
        self.deadline_s = deadline_s
        super().__init__(why, engine=engine, command=command, state=state)


class Rejected(OperationFailed):
    """The engine answered with an error; `detail` is the beginning of what it said."""

    def __init__(self, why: str, *, status: int | None, detail: str, engine: str, command: str, state: State) -> None:
        self.status = status
        self.detail = detail
        super().__init__(why, engine=engine, command=command, state=state)


class NotProved(OperationFailed):
    """Every call was answered, and the evidence did not come; `verdicts` maps each proof to what it said."""

    def __init__(self, verdicts: Mapping[str, Verdict], *, engine: str, command: str, state: State) -> None:
        self.verdicts = dict(verdicts)
        why = "; ".join(f"{name} is {verdict}" for name, verdict in verdicts.items())
        super().__init__(why, engine=engine, command=command, state=state)


def by_reason(said: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each reason among these (name, reason), with the names of all to whom it applies.

    A reason of many names the first three and their number. One without a name says how often it was given.
    """
    names: dict[str, list[str]] = {}
    for name, reason in said:
        names.setdefault(reason, []).append(name)
    return [_line(reason, who) for reason, who in names.items()]


def _line(reason: str, names: Sequence[str]) -> str:
    named, count = [name for name in names if name], len(names)
    if not named:
        return reason if count == 1 else f"{reason} ({count} times)"
    more = f" and {count - NAMED} more ({count} engines)" if count > NAMED else ""
    return f"{', '.join(named[:NAMED])}{more}: {reason}"


def _about(error: Exception) -> tuple[str, str]:
    """The engine that an error names first, and the rest of its message but for the advice."""
    if not isinstance(error, LifecycleError):
        return "", str(error)
    before, message = f"{error.engine}: ", error.without_advice
    return (error.engine, message.removeprefix(before)) if message.startswith(before) else ("", message)


def _advice_on(failed: Sequence[Exception]) -> str:
    """What leads on, a line an engine; of engines with the same reason, that of the first."""
    first: dict[str, LifecycleError] = {}
    for error in failed:
        if isinstance(error, LifecycleError) and error.advice is not None:
            first.setdefault(_about(error)[1], error)
    if len(first) < len(failed) or len(first) > 1:
        return "".join(f"\n{error.engine}: {error.advice}" for error in first.values())
    return "".join(f". {error.advice}" for error in first.values())


class Preempted(OperationFailed):
    """Another task gave this drain up, in favour of what `by` names; nothing was sent that cannot be repeated."""

    def __init__(self, by: str, *, engine: str, command: str, state: State) -> None:
        self.by = by
        super().__init__(f"it was given up for {by}", engine=engine, command=command, state=state)


class AgreementError(Exception):
    """A rank does not go on after a phase, though its own engines could; `rank` is the one that this is about."""

    def __init__(self, rank: int, phase: str, why: str) -> None:
        self.rank = rank
        self.phase = phase
        self.why = why
        super().__init__(f"rank {rank}: {why}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class RankFailed(AgreementError):
    """Another rank refused or failed. `gave_up`: its caller left in the middle."""

    def __init__(self, rank: int, phase: str, why: str, *, gave_up: bool = False) -> None:
        self.gave_up = gave_up
        super().__init__(rank, phase, f"{'gave up' if gave_up else 'failed'} in {phase}: {why}")


class RankMissing(AgreementError):
    """A rank did not vote in time. `late`: it is this one, and the others have decided without it."""

    def __init__(self, rank: int, phase: str, *, late: bool = False) -> None:
        self.late = late
        why = f"it did not vote in time on {phase}; see whether its process lives, and call this again on all ranks"
        if late:
            why = f"the others decided on {phase} without this rank, which voted too late; call this again on all ranks"
        super().__init__(rank, phase, why)


class PlansDiffer(AgreementError):
    """Another rank is about to do something else; nothing was agreed."""

    def __init__(self, rank: int, phase: str, why: str) -> None:
        super().__init__(rank, phase, f"{why}; make the same calls with the same arguments on all ranks")


class AgreementLost(AgreementError):
    """What the ranks decided on a phase is not known to this one: they may have gone on or not."""

    def __init__(self, rank: int, phase: str, why: str) -> None:
        super().__init__(rank, phase, f"whether the others go on after {phase} is not known here: {why}")


class FleetError(ExceptionGroup[Exception]):
    """Some engines of a move failed; `succeeded` are the transitions of the others, `exceptions` what failed."""

    succeeded: tuple[Transition, ...] = ()

    @classmethod
    def of(cls, what: str, failed: Sequence[Exception], succeeded: Sequence[Transition] = ()) -> FleetError:
        """One error that names everything that failed, where each engine settled, and what leads on from there."""
        said = "; ".join(by_reason(_about(each) for each in failed))
        error = cls(f"{what}: {said}{_advice_on(failed)}", failed)
        error.succeeded = tuple(succeeded)
        return error

    def derive(self, excs: Sequence[Exception]) -> FleetError:  # type: ignore[override]
        """The same error about some of the failures (`split`, `subgroup`)."""
        return FleetError.of(self.message.partition(":")[0], excs, self.succeeded)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), (self.message, list(self.exceptions)), self.__dict__)
