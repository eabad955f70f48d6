"""What the answers of a vLLM server say. A part that is odd is unknown; no answer raises anything.

A 200 is not taken for an effect: a wake of a tag that there is not is answered with 200, and so is a reset of the
prefix cache that did not happen. `refusal` says what each call must be answered with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lifecycle.core.calls import Call
from lifecycle.core.facts import Admission, Grade
from lifecycle.core.units import MIB
from lifecycle.core.verdicts import Pending, Proved, Refuted, Verdict

from ..exposition import samples, total
from ..http import Answer
from ..url_options import KEY_REFUSED
from .plan import CLOSE_PUSH, opens
from .versions import Effects

#: The most bytes of an answer that are read, by path; of other paths `http.BODY_LIMIT`. `/server_info` has the whole
#: configuration and the environment; `/weight_checker` names every tensor of every rank.
LIMITS: Mapping[str, int] = {"/server_info": 8 * MIB, "/weight_checker": 16 * MIB, "/metrics": 8 * MIB}

#: The largest number that counts as one: of ranks, requests, tokens.
MOST = 1 << 40

_TOKENS = "vllm:generation_tokens_total"

#: How to turn on the endpoints of the lifecycle.
DEV_MODE = "start it with VLLM_SERVER_DEV_MODE=1 in its environment"

#: What a server says whose data-parallel ranks disagree. Source: vllm 0.32.0, v1/engine/core_client.py.
RANKS_DISAGREE = "Engines returned different"

#: What it says of a finish where no update is under way. Source: vllm 0.32.0, v1/worker/gpu_worker.py.
NO_UPDATE = "without a matching start_weight_update"

#: What it says where an update is. Source: vllm 0.32.0, v1/worker/gpu_worker.py.
UPDATE_OPEN = "already active"

#: What a request is refused with, by 503, since the engine is paused: `engine_paused` in the engine, whose answer over
#: HTTP has the message alone. Source: vllm 0.33.0, v1/engine/core.py, outputs.py, error_response.py; read.
ENGINE_PAUSED = "Generation is paused"

#: What the answer of a call says of it, where there is a status. Of a wake: see `_woken`.
_STATUSES: Mapping[str, str] = {
    "pause": "paused",
    "resume": "resumed",
    "sleep": "sleeping",
    "release_kv_cache_memory": "kv_cache_released",
}

#: The calls that answer with an empty 200 before `Effects.answers_status`.
_SILENT = frozenset({"sleep", "wake_up", "release_kv_cache_memory"})


def config_of(answer: Answer) -> Mapping[str, Any] | None:
    """The configuration in an answer of `/server_info?config_format=json`; None where this is none of a vLLM server.

    It must have what identifies the process, `instance_id`, and the configuration of a model.
    """
    info = answer.json() if answer.ok else None
    config = info.get("vllm_config") if isinstance(info, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("model_config"), dict):
        return None
    identity = config.get("instance_id")
    return config if isinstance(identity, str) and identity.strip() else None


def version_of(answer: Answer) -> str | None:
    """The version in an answer of `/version`."""
    body = answer.json() if answer.ok else None
    version = body.get("version") if isinstance(body, dict) else None
    return version if isinstance(version, str) and version else None


def why_not(info: Answer, version: Answer | None = None) -> str:
    """Why this `/server_info`, and `/version` beside it, are no answers of a vLLM server that can be driven."""
    if info.status in KEY_REFUSED:
        return "it refuses the key; give api_key_env=NAME"
    if info.nothing_listens:
        return f"nothing listens there ({info.error}); start the engine, or correct the address"
    if info.status is None:
        return f"it did not answer: {info.error}"
    own = None if version is None else version_of(version)
    if info.status == 404 and own is not None:
        return f"vLLM {own} listens there without its development mode, so that nothing can drive it; {DEV_MODE}"
    return f"what listens there is no vLLM server (/server_info answered {info.status}: {info.detail[:80]!r})"


def refusal(call: Call, answer: Answer, effects: Effects) -> str | None:
    """Why this answer does not say that the call was done, in words; None where it does."""
    if not answer.ok:
        return _explained(call, answer)
    body = answer.json()
    said = body if isinstance(body, dict) else {}
    if call.name == "wake_up":
        return _woken(call, said) if effects.answers_status else _silent(answer)
    if call.name in _SILENT and not effects.answers_status:
        return _silent(answer)
    if call.name in _STATUSES:
        wanted, is_said = _STATUSES[call.name], said.get("status")
        if is_said != wanted:
            return f"it answered 200 with status {str(is_said)[:80]!r}, not {wanted!r}"
        level = said.get("level")
        if call.name == "sleep" and str(level) != call.args["level"]:
            return f"it says that it sleeps at level {str(level)[:20]}, not {call.args['level']}"
        return None
    if call.name == "reset_prefix_cache" and effects.says_reset and said.get("success") is not True:
        return "the prefix cache was not reset: requests hold blocks of it"
    if call.name == "update_weight_version" and said.get("success") is not True:
        return f"it answered 200 and not that the version was set ({answer.detail[:80]!r})"
    if call.name == "collective_rpc" and not isinstance(said.get("results"), list):
        return f"it answered 200 without a result of each worker ({answer.detail[:80]!r})"
    return None


def paused(answer: Answer) -> Admission | None:
    """Whether requests are admitted, from an answer of `/is_paused`."""
    body = answer.json() if answer.ok else None
    value = body.get("is_paused") if isinstance(body, dict) else None
    return {True: "closed", False: "open"}[value] if isinstance(value, bool) else None  # type: ignore[return-value]


def server_load(answer: Answer) -> int | None:
    """The open requests that an answer of `/load` counts. It is 0 for ever where nothing counts them."""
    body = answer.json() if answer.ok else None
    return whole(body.get("server_load")) if isinstance(body, dict) else None


def weights_label(answer: Answer) -> str | None:
    """The label of the weights in an answer of `/weight_info`."""
    body = answer.json() if answer.ok else None
    label = body.get("weight_version") if isinstance(body, dict) else None
    return label if isinstance(label, str) else None


def model_name(answer: Answer) -> str | None:
    """The name under which the model is served, from an answer of `/v1/models`."""
    body = answer.json() if answer.ok else None
    rows = body.get("data") if isinstance(body, dict) else None
    first = rows[0] if isinstance(rows, list) and rows else None
    name = first.get("id") if isinstance(first, dict) else None
    return name if isinstance(name, str) else None


def checksum_of(answer: Answer) -> str | None:
    """One checksum of the checksums of all tensors, from an answer of `/weight_checker`."""
    body = answer.json() if answer.ok else None
    sums = body.get("checksums") if isinstance(body, dict) else None
    if not isinstance(sums, dict) or not sums or not all(isinstance(each, str) for each in sums.values()):
        return None
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def tokens_generated(answer: Answer) -> int | None:
    """How many tokens the engine has generated since its start, from an answer of `/metrics`."""
    found = samples(answer.body, {_TOKENS}) if answer.ok else {}
    return total(found.get(_TOKENS))


def faults(answer: Answer) -> str:
    """The engine processes that are not sound, in words, from `/fault_tolerance/status`; empty where all are.

    Each is a data-parallel rank with its workers. A dead one has lost a worker, and only a restart helps; any other
    waits for a repair. Source: vllm 0.27.1 to 0.32.0, v1/fault_tolerance, entrypoints/serve/fault_tolerance; read.
    """
    body = answer.json() if answer.ok else None
    rows = body.get("engines") if isinstance(body, dict) else None
    known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return "; ".join(_fault(row) for row in known if row.get("status") != "healthy")[:300]


def _fault(row: Mapping[str, Any]) -> str:
    status, why = str(row.get("status"))[:20], str(row.get("fault_info") or "")[:80]
    if status == "dead":
        does = "a worker of it has ended: it cannot serve, and holds its memory until its processes end: restart it"
    else:
        does = "it takes no call until it is repaired (POST /fault_tolerance/apply), and ends if that takes too long"
    return f"engine {str(row.get('id', '?'))[:20]} is {status}{f' ({why})' if why else ''}: {does}"


def generated(answer: Answer) -> Verdict:
    """Proved where the answer to a completion has a token; Pending where the engine refuses requests for a while."""
    if answer.status == 503:
        paused_again = ENGINE_PAUSED in answer.detail
        why = "it says that it is paused (engine_paused)" if paused_again else "it takes no more requests for now"
        return Pending(reason=f"{why}: 503 {answer.detail[:120]}")
    body = answer.json() if answer.ok else None
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    if first is None:
        return Refuted(reason=f"it generated nothing ({answer.status or ''} {answer.detail[:200]})")
    usage = body.get("usage") if isinstance(body, dict) else None
    count = whole(usage.get("completion_tokens")) if isinstance(usage, dict) else None
    if not count or first.get("finish_reason") in ("abort", "error"):
        return Refuted(reason=f"it generated no token (finish_reason {str(first.get('finish_reason'))[:40]})")
    ids = first.get("token_ids")
    tokens = [whole(each) for each in ids] if isinstance(ids, list) else []
    known = tuple(each for each in tokens if each is not None)
    figures = {"output_ids": known if len(known) == len(tokens) else ()}
    return Proved(grade=Grade.MEASURED, reason="it generated a token", figures=figures)


def whole(value: Any) -> int | None:
    """This value where it is a whole number of 0 or more, else None."""
    return value if type(value) is int and 0 <= value <= MOST else None


def _woken(call: Call, said: Mapping[str, Any]) -> str | None:
    """What was asleep and is not named stays so: `awake` says that nothing sleeps, and that the scheduler runs."""
    wanted, status = "awake" if opens(call) else "sleeping", said.get("status")
    tags = list(call.args["tags"])
    if status != wanted:
        return (
            f"it answered 200 with status {str(status)[:80]!r}, not {wanted!r}: {', '.join(tags)} may be asleep still"
        )
    return None if said.get("tags") == tags else f"it says that it woke {str(said.get('tags'))[:80]}, not {tags}"


def _silent(answer: Answer) -> str | None:
    """A version that says nothing of what it did answers with an empty body: another body is somebody else's."""
    return f"it answered 200 with {answer.detail[:80]!r}, where this version says nothing" if answer.body else None


def _explained(call: Call, answer: Answer) -> str | None:
    detail = answer.detail
    if answer.status == 404:
        return f"{detail[:120]} (its development mode is off, or it has no such endpoint: {DEV_MODE})"
    if call.name == CLOSE_PUSH and NO_UPDATE in detail:
        return None
    if call.push == "begins" and UPDATE_OPEN in detail:
        return (
            f"{detail} (an earlier push, of this program or another, was never ended; this one ends it in failing, so "
            "push again, or load from disk)"
        )
    if call.name == "collective_rpc":
        return f"{detail} (its weights may be half replaced: it must load others before a request reaches it)"
    return f"{detail} (its data-parallel ranks are not in one state)" if RANKS_DISAGREE in detail else detail
