"""What is wrong with a declaration is said when it is made; what is right with it becomes capabilities."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from lifecycle.adapters.declared import About, DeclaredAdapter, Verb, Verbs

from lifecycle import ConfigurationError, Grade
from lifecycle.core.calls import PUSH
from lifecycle.core.commands import Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from lifecycle.core.facts import Contents, Fact, Facts
from lifecycle.core.sources import FromDisk, Kept, Pushed

BOTH = {"weights": "discarded", "kv_cache": "discarded"}
BACK = {"weights": "resident", "kv_cache": "resident"}


def nothing() -> None: ...


def of_tags(tags: Sequence[str]) -> None: ...


def load(path: str, version: str) -> None: ...


LEAST = Verbs(
    pause={"abort": nothing},
    resume=nothing,
    release=Verb(call=nothing, effects=BOTH),
    restore=Verb(call=of_tags, effects=BACK),
    drop_cache=nothing,
    boot=lambda: "b",
)


def declared(verbs: Verbs = LEAST, *, processes: Any = None, about: About | None = None, **changes: Any) -> Any:
    return DeclaredAdapter("e", replace(verbs, **changes), processes=processes, about=about)


def serving(**changes: Any) -> Facts:
    mapped = {"weights": True, "kv_cache": True}
    return Facts(boot="b", admission="closed", mapped=mapped, contents={"weights": Contents("loaded", "v1")}, **changes)


def needs_rank(tags: Sequence[str], rank: int) -> None: ...


WRONG = {
    "restore needs_rank: it needs 'rank', and is offered tags, deadline_s": {
        "restore": Verb(call=needs_rank, effects=BACK)
    },
    "pause abort: it needs 'tags', and is offered mode, deadline_s": {"pause": {"abort": of_tags}},
    "load: it needs 'tags', and is offered path, version, options, deadline_s": {"load": of_tags},
    "boot: it needs 'tags', and is offered deadline_s": {"boot": of_tags},
    "'sleep' is no pause mode; they are abort, wait, keep, freeze": {"pause": {"sleep": nothing}},
    "pause: no mode is declared": {"pause": {}},
    "restore: cuda_graph is released by no verb; it has kv_cache, weights": {
        "restore": Verb(call=of_tags, effects={**BACK, "cuda_graph": "resident"})
    },
    "restore: no verbs bring weights back alone, of kv_cache, weights": {"restore": Verb(call=nothing, effects=BACK)},
    "restore: no verbs bring kv_cache back alone": {"restore": Verb(call=of_tags, effects={"weights": "resident"})},
    "release: nothing unmaps nothing": {"release": Verb(call=nothing, effects=BACK)},
    "restore: nothing unmaps kv_cache, weights": {"restore": Verb(call=nothing, effects=BOTH)},
    "release: a Verb with effects": {"release": [nothing]},
    "release: a Verb with effects={tag: ...} is needed, got <function nothing": {"release": nothing},
    "release: a Verb with effects={tag: ...} is needed, got None": {"release": None},
    "restore: a Verb with effects={tag: ...} is needed, got 'wake'": {"restore": "wake"},
    "restore: a Verb with effects={tag: ...} is needed, got Verb": {
        "restore": [Verb(call=of_tags, effects=BACK), Verb(call=nothing)]
    },
    "pause: its verbs are given as {WORD: verb}, got <function nothing": {"pause": nothing},
    "push: its verbs are given as {WORD: verb}, got [<function nothing": {"push": [nothing]},
    "resume: it must be a function or a Verb, got None": {"resume": None},
    "release: no verb is declared": {"release": []},
    "weights is discarded after one verb and kept after another": {
        "release": [Verb(call=nothing, effects=BOTH), Verb(call=of_tags, effects={"weights": "kept"})]
    },
    "kv_cache comes back with nothing in it, and nothing empties the prefix cache": {"drop_cache": None},
    "resume: only verbs that release or restore have effects": {"resume": Verb(call=nothing, effects=BOTH)},
    "idle: it must be a function or a Verb, got 7": {"idle": 7},
    "no tag is of the weights stage": {
        "release": Verb(call=nothing, effects={"kv_cache": "discarded"}),
        "restore": Verb(call=of_tags, effects={"kv_cache": "resident"}),
    },
    "nothing tells one process of the engine from the next": {"boot": None},
}


@pytest.mark.parametrize("said", WRONG)
def test_what_is_wrong_is_named_when_it_is_declared(said: str) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        declared(**WRONG[said])
    assert str(wrong.value).startswith("e: ")
    assert said in str(wrong.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"call": 3}, "its call must be a function"),
        ({"call": nothing, "effects": {"weights": "gone"}}, "weights is 'gone' after it; one of discarded, kept"),
        ({"call": nothing, "deadline_s": 0}, "deadline_s must be a finite number > 0"),
    ],
)
def test_a_verb_that_cannot_be_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("(", r"\(")):
        Verb(**given)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (About(sizes={"cuda_graph": 1}), "sizes: cuda_graph is released by no verb"),
        (About(sizes={"weights": 0}), "sizes: weights must have a whole number of bytes > 0, got 0"),
        (About(stages={"nonsense": "kv"}), "stages: nonsense is released by no verb"),
        (About(stages={"kv_cache": "cache"}), "stages: kv_cache is of 'cache'; the stages are weights, kv"),
        (About(ranks=0), "ranks must be a whole number > 0, got 0"),
        (About(ranks=True), "ranks must be a whole number > 0, got True"),
        (About(ranks="2"), "ranks must be a whole number > 0, got '2'"),
        (About(live_update=True), "live_update=True needs pause="),
    ],
)
def test_what_no_verb_tells_is_checked_too(about: About, said: str) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        declared(about=about)
    assert said in str(wrong.value)


MORE = {**BOTH, "head": "discarded"}
OF_WEIGHTS = Verb(call=nothing, effects={"weights": "resident", "head": "resident"})
OF_KV = Verb(call=nothing, effects={"kv_cache": "resident"})


@pytest.mark.parametrize(
    ("changes", "said", "follows"),
    [
        (
            {
                "about": About(stages={"haed": "weights"}),
                "release": Verb(call=nothing, effects=MORE),
                "restore": [OF_WEIGHTS, OF_KV],
            },
            "stages: haed is released by no verb; it has head, kv_cache, weights",
            "restore: no verbs bring head, kv_cache back alone",
        ),
        (
            {"restore": Verb(call=nothing, effects={**BACK, "cuda_graph": "resident"})},
            "restore: cuda_graph is released by no verb",
            "restore: no verbs bring weights back alone",
        ),
    ],
)
def test_the_mistake_is_named_and_not_what_follows_from_it(changes: dict[str, Any], said: str, follows: str) -> None:
    """Each mistake alone is refused by a later check too, in words that lead elsewhere."""
    with pytest.raises(ConfigurationError) as wrong:
        declared(**changes)
    assert said in str(wrong.value)
    assert follows not in str(wrong.value)


def test_a_signature_that_cannot_be_read_is_declared() -> None:
    unreadable = Verb(call=dict.update, effects=BACK)
    with pytest.raises(ConfigurationError, match="cannot be read; name it: Verb"):
        declared(restore=unreadable)
    adapter = declared(restore=replace(unreadable, takes=("tags",)))
    assert adapter.declared.placed["restore 0"].takes == {"tags"}
    with pytest.raises(ConfigurationError, match="takes='rank', and it is offered tags, deadline_s"):
        declared(restore=replace(unreadable, takes=("rank",)))


def test_of_what_is_declared_follows_what_it_can_do() -> None:
    able = declared().declared.capabilities()
    assert able.releasable == {frozenset(BOTH)}  # its release takes no tags
    assert able.update == frozenset()
    assert able.observable == {Fact.BOOT}
    assert not able.cancellable
    assert able.evidence["idle"] is able.evidence["answers"] is Grade.ACKNOWLEDGED
    more = declared(
        release=Verb(call=of_tags, effects={"weights": "as_wanted", "kv_cache": "kept_on_host"}),
        pause={"abort": nothing, "freeze": nothing},
        load=load,
        push={"tensor": lambda **args: None},
        running=lambda: 0,
        answer=lambda text: [1],
        admission=lambda: "open",
        released=list,
    ).declared.capabilities()
    assert more.releasable == "any"
    assert more.update == {"disk", "push"}
    assert more.reports_released
    assert more.evidence["idle"] is Grade.REPORTED
    assert more.evidence["answers"] is Grade.MEASURED
    assert {spec.name: (spec.stage, spec.on_release, spec.on_host) for spec in more.tags} == {
        "weights": ("weights", "as_wanted", True),
        "kv_cache": ("kv", "kept", True),
    }


@pytest.mark.parametrize(("effect", "drains"), [("discarded", False), ("kept_on_host", True), ("kept", True)])
def test_requests_that_keep_their_kv_survive_a_release_that_keeps_it_too(effect: Any, drains: bool) -> None:
    release = Verb(call=of_tags, effects={"weights": "kept", "kv_cache": effect})
    able = declared(release=release, pause={"freeze": nothing}).declared.capabilities()
    assert able.pause["freeze"].drains is drains
    assert able.pause["freeze"].keeps_kv
    assert able.spec("kv_cache").on_host is (effect != "kept")


def test_a_release_without_tags_is_one_call_and_a_restore_with_tags_is_one_for_each_stage() -> None:
    adapter = declared(load=load)
    (release,) = adapter.plan(Release(None, FromDisk("/p", "v1")), serving())
    assert release.args == {}
    assert release.effect[Fact.MAPPED] == {"weights": False, "kv_cache": False}
    assert release.effect[Fact.CONTENTS]["weights"].origin == "garbage"
    gone = serving().learn(release.effect, Grade.ACKNOWLEDGED)
    (weights,) = adapter.plan(RestoreWeights(), gone)
    assert weights.args == {"tags": ["weights"]}
    kv, fresh = adapter.plan(RestoreKV(), gone)
    assert kv.args == {"tags": ["kv_cache"]}
    assert fresh.effect == {Fact.CACHE_FRESH: True}


def test_what_no_verb_does_alone_is_not_sent() -> None:
    kv_gone = serving().learn({Fact.MAPPED: {"kv_cache": False}}, Grade.ACKNOWLEDGED)
    (refused,) = declared().plan(Release(None, Kept()), kv_gone)
    assert refused.name == "not_sent"
    assert "no verb is declared that releases weights alone, while kv_cache is released" in refused.args["why"]
    (unloaded,) = declared().plan(UpdateWeights(FromDisk("/p", "v1")), kv_gone)[:1]
    assert "declare load=" in unloaded.args["why"]
    assert "declared for a pause by 'keep'" in declared().plan(Pause("keep"), serving())[0].args["why"]


def test_kv_that_is_kept_leaves_the_prefix_cache_as_it_was() -> None:
    adapter = declared(release=Verb(call=of_tags, effects={"weights": "kept", "kv_cache": "kept_on_host"}))
    (release,) = adapter.plan(Release(None, Kept()), serving(cache_fresh=True))
    assert Fact.CACHE_FRESH not in release.effect
    gone = serving().learn({**release.effect, Fact.CACHE_FRESH: True}, Grade.ACKNOWLEDGED)
    assert [call.args for call in adapter.plan(RestoreKV(), gone)] == [{"tags": ["kv_cache"]}]
    assert len(adapter.plan(RestoreKV(), gone.learn({Fact.CACHE_FRESH: True}, Grade.ASSERTED))) == 2


def test_a_verb_that_drops_the_prefix_cache_is_followed_by_none_that_does() -> None:
    restore = Verb(call=of_tags, effects=BACK, drops_cache=True)
    gone = serving().learn({Fact.MAPPED: {"kv_cache": False}, Fact.CACHE_FRESH: None}, Grade.ACKNOWLEDGED)
    (call,) = declared(restore=restore).plan(RestoreKV(), gone)
    assert call.effect[Fact.CACHE_FRESH] is True


@pytest.mark.parametrize(("weights", "kv", "refused"), [(False, True, False), (True, False, True)])
def test_it_is_dropped_by_the_verbs_that_restore_kv(weights: bool, kv: bool, refused: bool) -> None:
    restore = [
        Verb(call=nothing, effects={"weights": "resident"}, drops_cache=weights),
        Verb(call=nothing, effects={"kv_cache": "resident"}, drops_cache=kv),
    ]
    with pytest.raises(ConfigurationError, match="empties the prefix cache") if refused else nullcontext():
        declared(restore=restore, drop_cache=None)


def test_kv_that_is_kept_needs_nothing_that_drops_the_prefix_cache() -> None:
    declared(release=Verb(call=of_tags, effects={"weights": "discarded", "kv_cache": "kept"}), drop_cache=None)


def test_requests_never_go_on_with_kv_of_other_weights_unless_that_is_meant() -> None:
    effects = {"weights": "discarded", "kv_cache": "kept_on_host"}
    changes = {"release": Verb(call=of_tags, effects=effects), "pause": {"freeze": nothing}, "load": load}
    frozen = serving(paused_by="freeze")
    source = FromDisk("/p", "v2")
    for command in (Release(None, source), UpdateWeights(source)):
        (refused,) = declared(**changes).plan(command, frozen)
        assert "declare live_update=True" in refused.args["why"]
        meant = declared(about=About(live_update=True), **changes).plan(command, frozen)
        assert [call.name for call in meant] != ["not_sent"]


def test_a_push_without_verbs_for_its_ends_leaves_the_contents_unknown_meanwhile() -> None:
    adapter = declared(push={"tensor": lambda **args: None})
    begins, push, ends, fresh = adapter.plan(UpdateWeights(Pushed(None, "v2", name="p")), serving())
    assert (begins.name, push.name, ends.name) == ("push_begins", "push", "push_ends")
    assert begins.effect[Fact.CONTENTS] == {"weights": None}
    assert ends.effect[Fact.CONTENTS]["weights"].version == "v2"
    assert fresh.effect == {Fact.CACHE_FRESH: True}
    with pytest.raises(ValueError, match="takes a push by 'tensor', not 'pigeon'"):
        adapter.push_call("pigeon", {}, "v2")
    assert adapter.push_call("tensor", {"names": ["a"]}, "v2").args == {"names": ["a"]}


def test_calls_have_the_names_of_their_functions_where_those_are_names_and_differ() -> None:
    drop = Verb(call=nothing, name=PUSH.name)  # the name of the call that is a push
    adapter = declared(pause={"abort": lambda: None, "keep": partial(nothing)}, load=load, drop_cache=drop)
    names = {place: placed.name for place, placed in adapter.declared.placed.items()}
    assert names["load"] == "load"
    assert names["restore 0"] == "of_tags"
    assert names["pause abort"] == "pause_abort"  # a lambda has no name
    assert names["resume"] == "resume"  # two of them are called `nothing`
    assert names["drop_cache"] == "drop_cache"
    assert len(set(names.values())) == len(names)
    assert adapter.plan(Resume(), serving())[0].name == names["resume"]
