"""A redacted journal: nothing names a machine or a person, and the rules find in it what they find in the original."""

from __future__ import annotations

from dataclasses import replace

import journals
import pytest
from rig import V1, fleet_of

from lifecycle import FromDisk, Grade, Proved, Refuted, State
from lifecycle.core.journal import (
    Attached,
    CallEnded,
    CallSent,
    CommandEnded,
    Entry,
    HandedOver,
    MovePhase,
    StateEntered,
)
from lifecycle.render.redacted import redacted
from lifecycle.rules.identity import compare
from lifecycle.rules.violations import violations
from lifecycle.store.journal import to_line

TOKEN, HOST, BOOT = "8202662c61464effb6e7e6d95896769a", "gpu7.example.org", "904fbe85ca0b@gpu7.example.org:4711:1.50"
WHO = f"pid 4712 on {HOST} (train.py --key s3cr3t /home/alice/run (2), engine decode-0)"
ATTACHED = Attached(WHO, f"sglang://{HOST}:30000", "rollout-of-alice", BOOT, "0.1", 0)


def entry(event: object) -> Entry:
    return Entry(event, 1.0, TOKEN, "decode-0", f"{HOST}:30000", 1)  # type: ignore[arg-type]


def said(reason: str) -> str:
    """This reason, redacted in a journal of the engine above."""
    ended = CommandEnded("pause", State.FAILED, 0.5, "Rejected", reason)
    (_, found) = redacted([entry(ATTACHED), entry(ended)])
    assert isinstance(found.event, CommandEnded)
    return found.event.reason


@pytest.mark.parametrize(
    ("reason", "redacted_to"),
    [
        ("decode-0 did not answer", "engine-1 did not answer"),
        (f"{HOST}:30000 answered", "host-1:30000 answered"),
        (f"boot {BOOT} answered", "boot boot-1@host-1:2:1.50 answered"),
        ("boot ff00aa11ff@node-2:5:2.00,node-2:6:3.00", "boot boot-2@host-2:3:2.00,host-2:4:3.00"),
        ("http://10.2.3.4:8000/v1/x?api_key=abc refused", "http://host-2:8000 refused"),
        ("http://[fe80::1:2:3:4]:8000/x", "http://host-2:8000"),
        ("sglang://user:pw@far.example.org:1 is silent", "sglang://host-2:1 is silent"),
        ("10.2.3.4 is silent", "host-2 is silent"),
        ("GPU7 is silent", "host-1 is silent"),
        ("201306112 bytes of 1e10", "201306112 bytes of 1e10"),
        ("no file /home/bob/step-3.safetensors; give another", "no file path-1; give another"),
        ("no file ~bob/x", "no file path-1"),
        ("'~/models/x' is no checkpoint", "'path-1' is no checkpoint"),
        ('{"message": "hello Bob", "ok": false}', '{"text-1": "text-2", "text-3": false}'),
        ("Authorization: Bearer abc-DEF", "Authorization=(left out)"),
        ("api_key=abc, then", "api_key=(left out), then"),
        ("control_key=abc, then", "control_key=(left out), then"),
        (f"held by {WHO} since then", "held by pid 1 on host-1 (left out) since then"),
        ("pid 9 (python x.py (a) holds 1) holds 3 MiB of cpu; next", "pid 3 (left out) holds 3 MiB of cpu; next"),
        ("pid 9 (python x.py", "pid 3 (left out)"),
        ("its pids: 4711, 9", "its pids: 2, 3"),
        ("bob@example.org wrote", "mail-1 wrote"),
        ("GPU-12345678-1234-1234-1234-123456789abc is full", "GPU-id-1 is full"),
        ("mode='abort' of 'weights', 'alice-7'", "mode='abort' of 'weights', 'text-1'"),
        ("returned 192 MiB of 193 MiB expected (a size that the engine reports)",) * 2,
        ("the engine's own and/or another, 10.5 s",) * 2,
    ],
)
def test_what_a_text_names_is_numbered(reason: str, redacted_to: str) -> None:
    assert said(reason) == redacted_to


def test_what_fields_name_is_numbered_everywhere_alike() -> None:
    call = "update_weights_from_disk(model_path='/data/alice/step-7', weight_version='run of alice')"
    proved = Proved(grade=Grade.MEASURED, reason="", figures={"pids": [4711], "output_ids": [1, 2], "freed": 7})
    found = redacted(
        [
            entry(ATTACHED),
            entry(CallSent(call, "update_weights", (), True, 2.0, BOOT)),
            entry(CallEnded(call, "rejected", 400, "no checkpoint at /data/alice/step-7 for run of alice")),
            Entry(MovePhase("offload", "97d2908481b9", "", (TOKEN,), ("decode-0",)), 1.0, "97d2908481b9"),
            Entry(HandedOver("97d2908481b9", {TOKEN: proved}, ("ab" * 16,)), 1.0, "97d2908481b9"),
        ]
    )
    attached, sent, ended, phase, handed = (each.event for each in found)
    boot = "boot-1@host-1:2:1.50"
    assert attached == Attached("pid 1 on host-1", "sglang://host-1:30000", "group-1", boot, "0.1", 0)
    numbered = "update_weights_from_disk(model_path='path-1', weight_version='text-1')"
    assert sent == CallSent(numbered, "update_weights", (), True, 2.0, boot)
    assert ended == CallEnded(numbered, "rejected", 400, "no checkpoint at path-1 for text-1")
    assert phase == MovePhase("offload", "move-1", "", ("driver-1",), ("engine-1",))
    kept = replace(proved, figures={"pids": [2], "output_ids": [], "freed": 7})
    assert handed == HandedOver("move-1", {"driver-1": kept}, ("driver-2",))
    assert [(each.driver, each.engine, each.key) for each in found[2:4]] == [
        ("driver-1", "engine-1", "host-1:30000"),
        ("move-1", "", ""),
    ]


def test_an_engine_of_a_short_name_is_numbered_in_its_own_messages() -> None:
    reason = "e: pause failed. Next: `fleet.onload(engines=['e'])` (`lifecycle onload 'sglang://far.example.org:1'`)"
    ended = CommandEnded("pause", State.FAILED, 0.5, "Rejected", reason)
    (found,) = redacted([Entry(ended, 1.0, TOKEN, "e", f"{HOST}:30000")])
    assert found.event == replace(
        ended,
        reason=(
            "engine-1: pause failed. Next: `fleet.onload(engines=['engine-1'])` (`lifecycle onload 'sglang://host-1:1'`)"
        ),
    )


def test_boots_compare_as_before() -> None:
    boots = [BOOT, BOOT.replace("904", "905"), BOOT.replace("4711", "4712"), BOOT.partition("@")[0]]
    found = redacted([entry(replace(ATTACHED, boot=boot)) for boot in boots])
    numbered = [each.event.boot for each in found if isinstance(each.event, Attached) and each.event.boot]
    assert [compare(numbered[0], each) for each in numbered] == [compare(BOOT, each) for each in boots]


def test_a_label_in_a_reason_is_found_by_what_a_call_says_of_it() -> None:
    call = entry(CallSent("update(weight_version='run-of-alice')", "update_weights", (), True, 2.0, None))
    ended = entry(CommandEnded("update_weights", State.FAILED, 0.5, "NotProved", "it serves run-of-alice"))
    assert "alice" not in "".join(map(to_line, redacted([ended, call])))


async def test_a_redacted_journal_keeps_the_rules_and_a_damaged_one_breaks_the_same() -> None:
    with journals.kept() as noted:
        fleet, _ = await fleet_of("a", "b")
        await fleet.offload(weights=FromDisk("/data/alice/x", V1.version))
        await fleet.onload()
    entries = list(noted)
    assert not list(violations(redacted(entries)))
    at = next(index for index, each in enumerate(entries) if _without_proof(each) != each)
    damaged = [*entries[:at], _without_proof(entries[at]), *entries[at + 1 :], *entries[:at]]
    broken = [(each.rule, damaged.index(each.entry)) for each in violations(damaged)]
    numbered = redacted(damaged)
    assert broken
    assert [(each.rule, numbered.index(each.entry)) for each in violations(numbered)] == broken


def _without_proof(entry: Entry) -> Entry:
    """The entry with a refuted proof."""
    event = entry.event
    if not isinstance(event, StateEntered) or event.trigger != "succeeded":
        return entry
    return replace(entry, event=replace(event, verdicts={name: Refuted(reason="no") for name in event.verdicts}))
