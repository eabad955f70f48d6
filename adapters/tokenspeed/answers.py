"""What the answers of a tokenspeed server say. A part that is odd is unknown; no answer raises anything.

A call that the engine refused is answered with `success: false` and why: with 400 where it was told so, with 500 where
its handler failed, with 501 where the build has no such source of weights. What the control server answers by itself
has no `success`: 503 where it reaches no engine, 500 in plain text where what it passes calls on to broke off.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lifecycle.core.calls import Call, Reply
from lifecycle.core.facts import Grade
from lifecycle.core.units import MIB
from lifecycle.core.verdicts import Proved, Refuted, Verdict

from ..http import Answer
from ..url_options import KEY_REFUSED
from .plan import RELEASE, RESTORE

#: The most bytes of an answer that are read, by path; of other paths `http.BODY_LIMIT`.
LIMITS: Mapping[str, int] = {"/get_server_info": 8 * MIB}

#: The largest number that counts as one: of ranks, requests, tokens.
MOST = 1 << 40

#: What the engine says of a release or restore that finds its tags as it would leave them; the tags follow.
AS_WANTED: Mapping[str, str] = {RELEASE: "tags already released: ", RESTORE: "tags not released: "}

#: What it says of a call that waited for requests to end, where somebody else resumed it meanwhile.
RESUMED = "resumed before"

#: What a release is refused with while another driver's waits, or a pause does.
IN_PROGRESS = "already in progress"

_QUOTED = re.compile(r"'([^']*)'")


def info_of(answer: Answer) -> Mapping[str, Any] | None:
    """The answer of `/get_server_info`; None where this is none of a tokenspeed server.

    It must have its version and when it started. SGLang's has neither by these names.
    """
    info = answer.json() if answer.ok else None
    if not isinstance(info, dict):
        return None
    required = [info.get(name) for name in ("tokenspeed_version", "start_time")]
    return info if all(isinstance(each, str) and each.strip() for each in required) else None


def why_not(info: Answer, control: Answer | None = None) -> str:
    """Why these answers of `/get_server_info` and `/get_weight_version` are not those of a server to be driven."""
    if info.status in KEY_REFUSED:
        return "its gateway refuses the key; give api_key_env=NAME"
    if info.nothing_listens:
        return f"nothing listens there ({info.error}); start the engine, or correct the address"
    if info.status is None:
        return f"it did not answer: {info.error}"
    if info_of(info) is not None:
        return _no_control(control)
    if info.status == 503:
        return f"a control server listens there whose engine does not answer ({info.detail[:120]})"
    if info.status == 404 and control is not None and weights_label(control) is not None:
        return (
            "what listens there answers RL control calls and generates nothing (is it --rl-control-port?); give the "
            "control server's port instead, --control-port, one above the main port unless it was given"
        )
    return f"what listens there is no tokenspeed server (/get_server_info answered {info.status}: {info.detail[:80]!r})"


def weights_label(answer: Answer) -> str | None:
    """The label of the weights in an answer of `/get_weight_version`."""
    body = answer.json() if answer.ok else None
    label = body.get("weight_version") if isinstance(body, dict) else None
    return label if isinstance(label, str) else None


def requests_of(info: Mapping[str, Any], loads: Answer) -> int | None:
    """The requests that front end and scheduler have, the larger number where they differ; None where one is silent.

    Held ones count that a paused scheduler keeps back. The front end's number is left out where it is 0, as protobuf
    leaves out every zero. The scheduler's list is empty unless every rank has told lately: its count is what it
    published last, which a thread repeats for as long as the scheduler does nothing, and which serves for 3 s and more.
    Source: tokenspeed 0.1.1, runtime/engine/load_snapshot.py.
    """
    rows = loads.json() if loads.ok else None
    rows = rows.get("loads") if isinstance(rows, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    counts = [count(row.get("num_reqs")) for row in rows]
    front = count(info.get("active_requests", 0))
    if front is None or None in counts:
        return None
    return max(front, sum(each for each in counts if each is not None))


def replied(call: Call, answer: Answer) -> Reply:
    """What became of a call.

    A release that finds all its tags released is done, and so is a restore that finds them mapped: it changes nothing,
    and the engine is as was wanted. A release that somebody's resume cut off says nothing of what is so now: it counts
    as lost. So does an answer by which a call may have been passed on to the engine.
    """
    if answer.status is None:
        return Reply("lost", detail=answer.error, refused=answer.refused, late=answer.late)
    body = answer.json()
    said = body if isinstance(body, dict) else {}
    message = str(said.get("message", ""))
    if answer.ok and said.get("success") is True:
        return Reply("done", status=answer.status, value=body)
    if RESUMED in message:
        return Reply("lost", status=answer.status, detail=message)
    if _as_wanted(call, message):
        return Reply("done", status=answer.status, value=body)
    if answer.status >= 500 and "success" not in said and "error" not in said:
        return Reply("lost", status=answer.status, detail=answer.detail)
    if answer.ok:
        return Reply("lost", status=answer.status, detail=f"no answer to {call.name} ({answer.detail[:80]!r})")
    return Reply("rejected", status=answer.status, detail=_explained(answer, message))


def refused_tags(message: str, prefix: str) -> frozenset[str]:
    """The tags that a refusal names behind these words."""
    _, found, named = message.partition(prefix)
    return frozenset(_QUOTED.findall(named)) if found else frozenset()


def is_refusal(answer: Answer, words: str) -> bool:
    """Whether a call was refused by the engine with these words."""
    body = answer.json() if answer.status == 400 else None
    return isinstance(body, dict) and words in str(body.get("message", ""))


def generated(answer: Answer) -> Verdict:
    """Proved where the answer to a generation has a token."""
    body = answer.json() if answer.ok else None
    first = body[0] if isinstance(body, list) and body else body
    meta = first.get("meta_info") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(meta, dict):
        return Refuted(reason=f"it generated nothing ({answer.status or ''} {answer.detail[:200]})")
    reason = meta.get("finish_reason")
    kind = reason.get("type") if isinstance(reason, dict) else reason
    if not count(meta.get("completion_tokens")) or kind in ("abort", "error"):
        return Refuted(reason=f"it generated no token (finish_reason {str(kind)[:40]})")
    ids = first.get("output_ids")
    tokens = [count(each) for each in ids] if isinstance(ids, list) else []
    known = tuple(each for each in tokens if each is not None)
    figures = {"output_ids": known if len(known) == len(tokens) else ()}
    return Proved(grade=Grade.MEASURED, reason="it generated a token", figures=figures)


def was_resumed(answer: Answer) -> bool:
    """Whether this answer says that somebody resumed the engine while the call waited for requests to end."""
    body = answer.json() if answer.status is not None else None
    return isinstance(body, dict) and RESUMED in str(body.get("message", ""))


def count(value: Any) -> int | None:
    """This value where it is a whole number of 0 or more, else None. Of protobuf's structs every number is a float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        return None
    return int(value) if int(value) == value else None


def _as_wanted(call: Call, message: str) -> bool:
    prefix = AS_WANTED.get(call.name)
    return prefix is not None and refused_tags(message, prefix) == frozenset(call.args["tags"])


def _no_control(control: Answer | None) -> str:
    if control is None:
        return "it does not answer RL control calls"
    if control.status in KEY_REFUSED:
        return "its RL control app refuses the key; give control_key_env=NAME"
    if control.status == 503:
        return f"its RL control plane is off ({control.detail[:120]}); start it with `ts serve`"
    return f"its RL control app does not answer ({control.status or control.error} {control.detail[:80]!r})"


def _explained(answer: Answer, message: str) -> str:
    if answer.status in KEY_REFUSED:
        return f"{answer.detail[:120]} (its RL control app refuses the key; give control_key_env=NAME)"
    if IN_PROGRESS in message:
        return f"{message} (another driver's pause or release waits for requests to end; it has no deadline)"
    return message or answer.detail
