"""Which calls tokenspeed is sent for each command, and what is known once they were acknowledged."""

from __future__ import annotations

import pytest
from lifecycle.adapters.tokenspeed.capabilities import capabilities_of
from lifecycle.adapters.tokenspeed.plan import plan, push
from tokenspeed_driving import RELEASED, closed, facts
from tokenspeed_server import arguments

from lifecycle import Fact, Facts, FromDisk, Pushed
from lifecycle.core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from lifecycle.core.facts import Contents, Grade

CAPABILITIES = capabilities_of(arguments(), "0.1.1")
KV_RELEASED = {"mapped": {"weights": True, "kv_cache": False}}


def calls(command: Command, known: Facts) -> list[str]:
    """The calls, as they are written."""
    return [str(call) for call in plan(command, known, CAPABILITIES)]


def after(command: Command, known: Facts) -> Facts:
    """What is known once every call was acknowledged."""
    for call in plan(command, known, CAPABILITIES):
        known = known.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name)
    return known


def test_a_pause_waits_and_a_drain_sends_nothing() -> None:
    assert calls(Pause("wait"), facts()) == ["pause_generation(mode='wait')"]
    paused = after(Pause("wait"), facts())
    assert (paused.admission, paused.paused_by, paused.running) == ("closed", "wait", None)
    assert calls(Drain(), paused) == []


def test_a_pause_over_a_release_is_not_sent() -> None:
    (call,) = plan(Pause("wait"), closed(**KV_RELEASED), CAPABILITIES)
    assert call.name == "not_sent"
    assert not call.repeatable
    assert "kv_cache released: a pause would thaw its scheduler" in call.args["why"]


@pytest.mark.parametrize("mapped", [{"weights": True, "kv_cache": None}, {}])
def test_a_pause_over_what_may_be_released_is_not_sent(mapped: dict[str, bool | None]) -> None:
    (call,) = plan(Pause("wait"), Facts().learn({Fact.MAPPED: mapped}, Grade.REPORTED), CAPABILITIES)
    assert (call.name, call.repeatable) == ("not_sent", False)
    assert "is released is not known, and a pause would thaw its scheduler" in call.args["why"]


def test_a_release_is_one_call_that_names_all_tags() -> None:
    assert calls(Release(), closed()) == ["release_memory_occupation(tags=['weights', 'kv_cache'])"]
    released = after(Release(), closed())
    assert released.unmapped() == {"weights", "kv_cache"}
    assert released.contents["weights"] == Contents("kept", "default")
    assert released.admission == "closed"
    assert calls(Release(frozenset({"kv_cache"})), closed()) == ["release_memory_occupation(tags=['kv_cache'])"]


@pytest.mark.parametrize("command", [Release(), RestoreWeights(), RestoreKV()], ids=str)
def test_an_empty_list_is_never_sent(command: Command) -> None:
    known = closed(**RELEASED) if isinstance(command, Release) else closed()
    assert calls(command, known) == []


def test_the_restore_that_leaves_nothing_released_is_followed_by_a_pause() -> None:
    assert calls(RestoreWeights(), closed(**RELEASED)) == ["resume_memory_occupation(tags=['weights'])"]
    restored = after(RestoreWeights(), closed(**RELEASED))
    assert calls(RestoreKV(), restored) == [
        "resume_memory_occupation(tags=['kv_cache'])",
        "pause_generation(mode='wait')",
    ]
    restore, _ = plan(RestoreKV(), restored, CAPABILITIES)
    between = restored.learn(restore.effect, Grade.ACKNOWLEDGED, cause=restore.name)
    assert (between.running, between.admission) == (None, "closed")  # what was past the gate runs
    whole = after(RestoreKV(), restored)
    assert (whole.running, whole.admission, whole.cache_fresh, whole.unmapped()) == (0, "closed", True, frozenset())


def test_so_is_one_of_weights_alone() -> None:
    known = closed(mapped={"weights": False, "kv_cache": True})
    assert calls(RestoreWeights(), known)[-1] == "pause_generation(mode='wait')"


@pytest.mark.parametrize("command", [Release(), RestoreWeights(), RestoreKV(), Pause("wait"), Resume()], ids=str)
def test_every_call_may_be_sent_again(command: Command) -> None:
    known = closed(**RELEASED) if isinstance(command, RestoreWeights | RestoreKV) else closed()
    sent = plan(command, known, CAPABILITIES)
    assert all(call.repeatable for call in sent)
    untouched = {call.name for call in sent if call.refusal_is_untouched}
    assert untouched <= {"release_memory_occupation", "resume_memory_occupation"}  # a failed pause opens the front end


@pytest.mark.parametrize("mapped", [{"weights": True, "kv_cache": False}, {"weights": True, "kv_cache": None}], ids=str)
def test_a_resume_is_not_sent_unless_all_is_known_to_be_mapped(mapped: dict[str, bool | None]) -> None:
    (call,) = plan(Resume(), closed(mapped=mapped), CAPABILITIES)
    assert call.name == "not_sent"
    assert "kv_cache not known to be mapped" in call.args["why"]
    assert calls(Resume(), closed()) == ["continue_generation()"]


def test_weights_come_by_a_push_alone() -> None:
    source = Pushed(lambda engines: None, "v2")
    label, pushed = plan(UpdateWeights(source), closed(), CAPABILITIES)
    assert (str(label), pushed.name) == ("update_weight_version(new_version='being-replaced-by-v2')", "push")
    between = closed().learn(label.effect, Grade.ACKNOWLEDGED, cause=label.name)
    assert (between.contents, between.cache_fresh) == ({"weights": None}, False)
    known = after(UpdateWeights(source), closed())
    assert (known.contents, known.cache_fresh) == ({"weights": Contents("loaded", "v2")}, True)
    (refused,) = plan(UpdateWeights(FromDisk("/w", "v2")), closed(), CAPABILITIES)
    assert "push them" in refused.args["why"]


def test_the_calls_of_a_push() -> None:
    assert str(push("mooncake", {"version": 3}, "v3")) == (
        "update_weights_from_mooncake(flush_cache=True, weight_version='v3', version=3)"
    )
    assert push("init", {"rank_offset": 1}, "v3").name == "init_weights_update_group"
    assert Fact.CONTENTS not in push("destroy", {}, "v3").effect
    with pytest.raises(ValueError, match="'init', 'distributed', 'mooncake', 'destroy', not 'tensor'"):
        push("tensor", {}, "v3")
