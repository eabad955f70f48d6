"""Who may import whom, what importing costs, how files are named and how large they are."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rig import imported

import lifecycle
from lifecycle import (
    ConfigurationError,
    DeadlineExceeded,
    EngineBusy,
    EngineHeld,
    FleetError,
    GuardRefused,
    InvalidTransition,
    NotProved,
    OperationFailed,
    Preempted,
    Refuted,
    Rejected,
    State,
    Transition,
    Unreachable,
)
from lifecycle.core import errors

CORE = Path(lifecycle.__file__).parent
TESTS = CORE.parent / "tests"
BESIDE = [CORE.parent / name for name in ("adapters", "tests", "examples")]
ENGINES = {"torch", "ray", "sglang", "vllm", "torch_memory_saver"}
#: What is imported only on first use: aiohttp alone takes 0.24 s.
LAZY = [
    *sorted(ENGINES),
    *("aiohttp", "fastapi", "importlib.metadata", "numpy", "pydantic", "pydantic_settings", "rich", "structlog"),
    *("typer", "uvicorn"),
]
#: What `lifecycle --help` has no use for either.
LAZY_OF_HELP = [each for each in LAZY if each != "typer"]


def sources(*roots: Path) -> list[Path]:
    return [path for root in roots for path in root.rglob("*.py")]


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: path.relative_to(CORE).as_posix())
def test_the_core_imports_no_engine_and_no_adapter(path: Path) -> None:
    assert not imported(path) & (ENGINES | {"adapters"})
    text = path.read_text()
    assert "from lifecycle.adapters" not in text
    assert "import lifecycle.adapters" not in text
    assert "from .adapters" not in text
    assert "from ..adapters" not in text


def test_the_adapter_over_actors_alone_imports_ray() -> None:
    adapters = CORE.parent / "adapters"
    asks = {path for path in sources(adapters) if "ray" in imported(path) or 'import_module("ray' in path.read_text()}
    assert {path.relative_to(adapters).parts[0] for path in asks} == {"ray"}


def imported_by(statement: str, modules: list[str]) -> list[str]:
    """Those of these modules that are imported in a process of its own once this was run."""
    code = f"import json, sys\n{statement}\nprint(json.dumps([m for m in {modules!r} if m in sys.modules]))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    found: list[str] = json.loads(printed.stdout.splitlines()[-1])
    return found


def test_importing_the_package_imports_nothing_that_is_slow() -> None:
    assert imported_by("from lifecycle import Fleet", LAZY) == []


def test_the_package_alone_imports_no_part_of_itself() -> None:
    code = "import lifecycle, sys; print([m for m in sys.modules if m.startswith('lifecycle.')])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout.strip() == "[]"


def test_help_imports_nothing_that_is_slow() -> None:
    assert imported_by("import lifecycle.cli; assert lifecycle.cli.main(['--help']) == 0", LAZY_OF_HELP) == []


@pytest.mark.parametrize("path", sources(CORE, *BESIDE), ids=lambda path: path.relative_to(CORE.parent).as_posix())
def test_a_file_over_400_lines_is_two_files(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}
    assert len(path.read_text().splitlines()) <= 400


def test_no_two_test_modules_share_a_name() -> None:
    """Test folders are no packages: of two modules of one name, whichever is imported first stands for both."""
    names = Counter(path.name for path in sources(TESTS) if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_every_public_name_exists_and_stands_once() -> None:
    names = lifecycle.__all__
    assert [name for name in names if not hasattr(lifecycle, name)] == []
    assert len(set(names)) == len(names)


def test_the_testing_package_keeps_its_promises() -> None:
    from lifecycle import testing

    assert [name for name in testing.__all__ if not hasattr(testing, name)] == []


WHO = {"engine": "e", "command": "drain", "state": State.PAUSED}
EDGE = Transition("e", "default", "succeeded", State.RELEASING, State.RELEASED, "release")
EVERY_ERROR = [
    ConfigurationError("mend it"),
    errors.NothingListens("start it"),
    errors.RouterError("start it"),
    errors.RouterNotClosed("start it"),
    InvalidTransition(**WHO, allowed=("pause", "drain")),
    GuardRefused({"still_idle": "1 runs"}, **WHO),
    EngineBusy("offload", **WHO),
    EngineHeld("pid 7", "offload", "12:00", "12:01", **WHO),
    OperationFailed("it broke", **WHO).settle(State.FAILED, " (unknown)"),
    Unreachable("no answer", **WHO).settle(State.GONE),
    DeadlineExceeded("late", deadline_s=3.0, **WHO),
    Rejected("no", status=503, detail="\ufffd", **WHO),
    NotProved({"idle": Refuted(reason="1 runs", figures={"count": 1})}, **WHO).settle(State.PAUSED),
    Preempted("resume(preempt=True)", **WHO).settle(State.PAUSED),
    errors.AgreementError(2, "offload: begin", "it broke"),
    errors.RankFailed(2, "offload: drain", "e2: 1 runs", gave_up=True),
    errors.RankMissing(2, "offload: release", late=True),
    errors.PlansDiffer(2, "offload: begin", "the tags differ"),
    errors.AgreementLost(2, "offload: release", "no route"),
    FleetError.of("1 of 2 engines", [Unreachable("no answer", **WHO).settle(State.GONE)], [EDGE]),
]


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: type(error).__name__)
def test_every_error_survives_a_pickle_with_its_attributes(error: BaseException) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name, value in vars(error).items():
        found = getattr(again, name)
        assert str(found) == str(value) if isinstance(value, tuple | list) else found == value
    if isinstance(error, FleetError):
        assert [str(each) for each in again.exceptions] == [str(each) for each in error.exceptions]
        assert again.exceptions[0].settled is State.GONE
        assert again.succeeded == (EDGE,)


def test_every_error_class_is_tested_here() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }
    assert classes - {type(error) for error in EVERY_ERROR} == {errors.LifecycleError, errors.CommandRefused}


def test_an_error_says_who_what_where_and_what_next() -> None:
    message = str(InvalidTransition(**WHO, allowed=("pause", "drain"), hint="; recover() looks where it is"))
    assert message == "e: drain refused in state paused: allowed here: pause, drain; recover() looks where it is"
    failed = NotProved({"idle": Refuted(reason="1 runs")}, **WHO)
    assert str(failed) == "e: drain failed in state paused: idle is refuted: 1 runs"
    failed.settle(State.PAUSED)
    assert str(failed).endswith("1 runs. It settled to paused")
    assert failed.settled is State.PAUSED
