"""What engines answered stands on the transitions of the commands, in the order of the calls, and bounded."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from rig import V1, fleet_of, serving

from lifecycle import Call, CallReply, Rejected, Reply, Transition
from lifecycle.core.encoding import decode, encode
from lifecycle.core.replies import ANSWER_LIMIT
from lifecycle.testing import REJECTED, Act


def kept(value: Any, **how: Any) -> CallReply:
    return CallReply.of(Call("release"), Reply("done", value=value, **how))


async def test_replies_stand_on_the_transition_in_the_order_of_the_calls() -> None:
    engine = await serving()
    engine.adapter.script("release", Act(value={"freed": [1, 2]}, status=200), Act(value={"freed": [3]}))
    await engine.pause()
    assert (await engine.drain()).replies == (), "no call was sent"
    released = await engine.release(weights=V1)
    assert [each.call for each in released.replies] == ["release", "release"]
    assert [each.value for each in released.replies] == [{"freed": (1, 2)}, {"freed": (3,)}]
    assert [each.status for each in released.replies] == [200, None]
    assert (await engine.restore_weights()).replies == (CallReply("restore"),)


async def test_replies_of_a_fleet_come_in_the_order_of_its_groups() -> None:
    fleet, _ = await fleet_of("b/b1", "a/a1", "b/b2")
    for engine in fleet:
        engine.adapter.always("release", Act(value=engine.name))
    released = await fleet.offload(weights=V1)
    assert [each.replies[0].value for each in released] == ["b1", "b2", "a1"]


async def test_a_refusal_is_no_answer_of_the_command() -> None:
    engine = await serving()
    heard: list[Transition] = []
    engine._session.observers._observers = (type("Hears", (), {"transition": staticmethod(heard.append)}),)
    engine.adapter.script("pause", REJECTED)
    with pytest.raises(Rejected):
        await engine.pause()
    assert [each.replies for each in heard] == [()] * len(heard)
    assert heard


def test_plain_data_is_kept_as_it_is() -> None:
    value = {"success": True, "ranks": [{"freed": 1.5, "tags": ["kv_cache"]}, None], "count": 7}
    reply = kept(value, status=200)
    assert reply.complete
    assert json.loads(json.dumps(reply.value)) == value
    assert hash(reply) == hash(kept(value, status=200))
    transition = Transition("e", "g", "succeeded", "releasing", "released", replies=(reply,))  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(transition)).replies == (reply,)
    assert decode(CallReply, json.loads(json.dumps(encode(reply)))) == reply


def test_words_stand_for_an_answer_that_has_no_value() -> None:
    assert kept(None, detail="no session is open").value == "no session is open"
    assert kept(None) == CallReply("release")


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, ["x"] * 10**6, {str(n): n for n in range(10**5)}, [["x" * 100] * 100] * 100, [[]] * 10**5],
    ids=["text", "list", "mapping", "nested", "empty"],
)
def test_a_long_answer_is_cut(value: Any) -> None:
    reply = kept(value)
    assert not reply.complete
    assert len(json.dumps(reply.value)) < 5 * ANSWER_LIMIT
    assert str(value)[:20] == json.dumps(reply.value).replace('"', "'")[:20] or isinstance(value, str)


def test_what_contains_itself_is_cut() -> None:
    value: list[Any] = []
    value.append(value)
    assert not kept(value).complete


def test_objects_are_not_kept_alive() -> None:
    class Tensor:
        def __repr__(self) -> str:
            raise AssertionError("it may be on a device")

    reply = kept({"weights": Tensor(), (1, 2): 3, 4: 10**30})
    assert not reply.complete
    assert set(reply.value) == {"weights", "?", "4"}
    assert "Tensor>" in reply.value["weights"]
    assert reply.value["4"] == "<int>"


def test_keys_are_left_out() -> None:
    reply = kept({"api_key": "sk-1", "args": [{"Authorization": "Bearer 2", "tokens": 3, "hf_token": "4"}]})
    text = json.dumps(reply.value)
    assert "sk-1" not in text
    assert "Bearer 2" not in text
    assert '"4"' not in text
    assert reply.value["args"][0]["tokens"] == 3


@pytest.mark.parametrize(
    "value",
    [
        {"api_keys": ["sk-1"]},
        {"hf_token": ["sk-1"]},
        {"Tokens": ("sk-1",)},
        {"admin_api_key": {"value": "sk-1"}},
        {"keys": {"sk-1": "admin"}},
        {"aws": {"credentials": "sk-1", "Credential": ["sk-1"]}},
        {"deep": [{"PASSWORD": {"is": [{"sk-1": "sk-1"}]}}]},
        {"passwd": "sk-1"},
    ],
    ids=str,
)
def test_whatever_is_under_such_a_key_is_left_out(value: Any) -> None:
    text = json.dumps(kept(value).value)
    assert "sk-1" not in text
    assert "(left out)" in text


def test_numbers_are_left_out_only_where_they_may_be_the_secret() -> None:
    said = {"tokens": 3, "num_keys": 4.0, "token": None, "has_password": True, "monkeys_seen": ["x"]}
    assert kept(said).value == said | {"monkeys_seen": ("x",)}
    assert kept({"password": 1234, "credential": 5.0}).value == {"password": "(left out)", "credential": "(left out)"}


@pytest.mark.parametrize("more", [0, 1])
def test_a_cut_text_is_not_complete(more: int) -> None:
    reply = kept(None, detail="x" * (ANSWER_LIMIT + more))
    assert len(reply.value) == ANSWER_LIMIT
    assert reply.complete is not bool(more)
