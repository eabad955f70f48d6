"""What the answers of an SGLang server say. A part that is odd is unknown; no answer raises anything.

An answer of a proxy (`<html>`), one of another kind of server, and one that lacks what identifies the engine are no
answers of an SGLang server. `server_info` alone decides that, for connect and for every later look.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from lifecycle.core.facts import Grade
from lifecycle.core.units import MIB
from lifecycle.core.verdicts import Proved, Refuted, Verdict

from ..http import Answer
from ..url_options import KEY_REFUSED

#: The most bytes of an answer that are read, by path; of other paths `http.BODY_LIMIT`. `/server_info` repeats the
#: options (20 KiB, measured) for each data-parallel rank; `/weights_checker` names every tensor of every rank.
LIMITS: Mapping[str, int] = {"/server_info": 4 * MIB, "/weights_checker": 16 * MIB, "/metrics": 8 * MIB}

#: The largest number that counts as one: of ranks, requests, tokens.
MOST = 1 << 40

#: What the server answers with status 400 to a flush while it is not idle. Source: sglang 0.5.23, measured.
FLUSH_REFUSED = "Flush cache failed."

_SIZES = ("tp_size", "pp_size", "dp_size", "tokenizer_worker_num")


def server_info(answer: Answer) -> Mapping[str, Any] | None:
    """What an SGLang server says of itself; None where this is no answer of one.

    It must have the state of each scheduler, and what identifies the process: `startup_time` or `random_seed`.
    """
    info = answer.json() if answer.ok else None
    if not isinstance(info, dict) or not _rows(info.get("internal_states")):
        return None
    if not isinstance(info.get("startup_time"), dict | int | float) and not isinstance(info.get("random_seed"), int):
        return None
    return info if all(info.get(name) is None or whole(info[name]) for name in _SIZES) else None


def version_of(info: Mapping[str, Any]) -> str:
    """The version that `/server_info` tells; `unknown` where it tells none."""
    version = info.get("version")
    return version[:80] if isinstance(version, str) and version else "unknown"


def model_info(answer: Answer) -> Mapping[str, Any]:
    """What an SGLang server says of the model that it serves now; nothing where this is no answer of one."""
    model = answer.json() if answer.ok else None
    return model if isinstance(model, dict) else {}


def why_not(answer: Answer) -> str:
    """Why this is no `/server_info` of an SGLang server, in words."""
    if answer.status in KEY_REFUSED:
        return "it refuses the key; give api_key_env=NAME"
    if answer.nothing_listens:
        return f"nothing listens there ({answer.error}); start the engine, or correct the address"
    if answer.status is None:
        return f"it did not answer: {answer.error}"
    return f"what listens there is no SGLang server (/server_info answered {answer.status}: {answer.detail[:80]!r})"


def whole(value: Any) -> int | None:
    """This value where it is a whole number of 0 or more, else None."""
    return value if type(value) is int and 0 <= value <= MOST else None


def number(value: Any) -> float | None:
    """This value where it is a finite number of 0 or more, else None. In its own process it may be a float64."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= MOST else None


def is_empty(answer: Answer, status: int) -> bool:
    """Whether this is the server's own answer of this status to a check, which has no body; a proxy's has one."""
    return answer.status == status and not answer.body


def weights_label(answer: Answer) -> str | None:
    """The label of the weights in an answer of `/model_info`."""
    label = model_info(answer).get("weight_version")
    return label if isinstance(label, str) else None


def loads(answer: Answer, *, stamped: bool = True) -> tuple[int, tuple[float, ...]] | None:
    """How many requests run or wait, and when each rank counted, from an answer of `/v1/loads`.

    Not `stamped`: the schedulers were asked for this answer, which does not say when they counted.
    """
    body = answer.json() if answer.ok else None
    rows = _rows(body.get("loads")) if isinstance(body, dict) else None
    if not rows:
        return None
    counts = [_count(row.get(name)) for row in rows for name in ("num_running_reqs", "num_waiting_reqs")]
    times = [number(row.get("timestamp")) for row in rows if stamped]
    known, counted = [each for each in counts if each is not None], [each for each in times if each is not None]
    return (sum(known), tuple(counted)) if len(known) == len(counts) and len(counted) == len(times) else None


def counted_s_ago(answer: Answer) -> float | None:
    """Seconds between the oldest count in an answer of `/v1/loads` and that answer, by the server's own clock.

    None where it does not say. Source: sglang 0.5.23, entrypoints/v1_loads.py; counts are in memory of its host.
    """
    body = answer.json() if answer.ok else None
    if not isinstance(body, dict):
        return None
    times = [number(row.get("timestamp")) for row in _rows(body.get("loads")) or ()]
    known = [each for each in times if each is not None]
    try:
        return datetime.fromisoformat(body["timestamp"]).timestamp() - min(known) if known else None
    except (KeyError, TypeError, ValueError):
        return None


def generated(answer: Answer) -> Verdict:
    """Proved where the answer to a generate request has a token, else Refuted."""
    body = answer.json() if answer.ok else None
    if not isinstance(body, dict):
        return Refuted(reason=f"it generated nothing ({answer.status or ''} {answer.detail})")
    return token_in(body)


def token_in(body: Mapping[str, Any]) -> Verdict:
    """Proved where this, which a generate request was answered with, has a token, else Refuted."""
    meta = body.get("meta_info")
    meta = meta if isinstance(meta, dict) else {}
    finish = meta.get("finish_reason")
    aborted = isinstance(finish, dict) and finish.get("type") == "abort"
    if not whole(meta.get("completion_tokens")) or aborted:
        return Refuted(reason=f"it generated no token ({str(finish)[:80]})")
    ids = body.get("output_ids")
    tokens = [whole(each) for each in ids] if isinstance(ids, list) else []
    known = tuple(each for each in tokens if each is not None)
    figures = {"output_ids": known if len(known) == len(tokens) else ()}
    return Proved(grade=Grade.MEASURED, reason="it generated a token", figures=figures)


def _count(value: Any) -> int | None:
    """A count that a rank reports; one that it leaves out is 0, and an odd one is unknown."""
    return 0 if value is None else whole(value)


def _rows(value: Any) -> list[dict[str, Any]] | None:
    """A list of objects; None where it is none, or has anything else in it."""
    return value if isinstance(value, list) and all(isinstance(each, dict) for each in value) else None
