"""What an error of many engines says: each reason once, with how many have it."""

from __future__ import annotations

from typing import Any

import pytest
from rig import fleet_of

from lifecycle import ConfigurationError, Engine, Fleet, FleetError, State
from lifecycle.core.calls import Call
from lifecycle.core.errors import EngineBusy, InvalidTransition
from lifecycle.testing import QUICK, ScriptedAdapter, capabilities, scripted


def refused(name: str, command: str = "release") -> InvalidTransition:
    return InvalidTransition(engine=name, command=command, state=State.SERVING, allowed=["pause"])


def test_a_hundred_equal_reasons_are_one_line_with_their_number() -> None:
    error = FleetError.of("100 of 100 engines", [refused(f"e{number}") for number in range(100)])
    assert error.message == (
        "100 of 100 engines: e0, e1, e2 and 97 more (100 engines): release refused in state serving: "
        "allowed here: pause"
    )
    assert len(error.exceptions) == 100


def test_different_reasons_are_all_said() -> None:
    busy = EngineBusy("a drain", engine="d", command="release", state=State.SERVING)
    error = FleetError.of("x", [refused("a"), busy, refused("b"), OSError("router"), OSError("router")])
    assert error.message == (
        "x: a, b: release refused in state serving: allowed here: pause; "
        "d: release refused in state serving: a drain is under way; wait for it or cancel it; router (2 times)"
    )
    assert error.derive([refused("a")]).message == "x: a: release refused in state serving: allowed here: pause"


async def test_a_fleet_names_what_many_lack_once() -> None:
    fleet, _ = await fleet_of(*(f"e{number}" for number in range(12)))
    with pytest.raises(FleetError) as failed:
        await fleet.release()
    assert failed.value.message.count("allowed here: pause") == 1
    assert "e0, e1, e2 and 9 more (12 engines)" in failed.value.message


class Refusing(ScriptedAdapter):
    async def connect(self, *, deadline_s: float):
        raise ConfigurationError(f"{self.url}: nothing listens there")


async def test_many_that_cannot_be_connected_to_are_one_line() -> None:
    engines = [scripted(Refusing(f"e{number}", capabilities()), policy=QUICK) for number in range(12)]
    with pytest.raises(ConfigurationError) as failed:
        await Fleet(engines).__aenter__()
    names = [engine.adapter.url for engine in engines[:3]]
    assert str(failed.value) == f"{', '.join(names)} and 9 more (12 engines): nothing listens there"


@pytest.mark.parametrize("url", [None, 3, b"loopback://127.0.0.1:1", ""])
async def test_an_adapter_whose_url_is_no_string_is_refused_at_connect(url: Any) -> None:
    class Odd(ScriptedAdapter):
        @property
        def url(self) -> Any:
            return url

    with pytest.raises(ConfigurationError, match=r"Odd.url must be a string .* got "):
        await Engine(Odd("e", capabilities()), policy=QUICK).connect()


def test_a_call_is_written_with_its_arguments_and_not_with_the_weights_that_a_push_carries() -> None:
    assert str(Call("release", {"tags": ["weights"], "force": True})) == "release(tags=['weights'], force=True)"
    pushed = str(Call("push_tensor", {"tensors": ["x" * 10**6] * 100, "load_format": "safetensors"}))
    assert len(pushed) < 200_000
    assert "load_format='safetensors'" in pushed
