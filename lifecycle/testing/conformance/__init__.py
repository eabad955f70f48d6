"""The conformance suite: everything that this library relies on, asked of an adapter on a running engine.

Subclass one class, start the engine in it and declare what the engine can do:

    class TestMine(EngineConformance):
        engine = "mine"
        home = FromDisk("/models/a", "a")

        def start(self) -> Subject:
            return MyEngineProcess(model=self.home.path)

The cases are ordinary pytest tests and need no plugin. A case that leaves the engine as it found it passes it on to the
next case; after any other case a new engine is started. `docs/adapters.md` says what each group of cases proves.

suite            EngineBench, EngineConformance: how an engine is started, and the whole suite
bench            Subject, Bench: the running engine of a case, and how it is driven
fault_injector   FaultInjector: an adapter that loses, delays or cancels calls
coroutine_case   runs a case that is a coroutine
steps            the steps of the ring that send a call
rows             every row of the table
calls            calls that are refused
in_flight        requests that run during a pause
failures         lost replies, deadlines, cancellation, processes that end
observation      observation, recovery and attaching in every state
table            a pytest plugin that prints the results
"""

from .bench import Bench, Subject
from .calls import CallCases
from .failures import DeathCases, TroubleCases
from .fault_injector import FaultInjector, fault_injector
from .in_flight import FlightCases
from .observation import ObservationCases
from .rows import RowCases
from .suite import EngineBench, EngineConformance

# Former names, kept for one release.
Meddled = FaultInjector
meddled = fault_injector
SightCases = ObservationCases

__all__ = [
    "Bench",
    "CallCases",
    "DeathCases",
    "EngineBench",
    "EngineConformance",
    "FaultInjector",
    "FlightCases",
    "Meddled",
    "ObservationCases",
    "RowCases",
    "SightCases",
    "Subject",
    "TroubleCases",
    "fault_injector",
    "meddled",
]
