"""What a vLLM server counts of its requests, from its `/metrics` and `/load`.

Source: vllm 0.32.0, v1/metrics/loggers.py, measured: the front end counts a request when its last output has come, by
its finish reason, also while the scheduler is paused; one whose client has left is never counted. The gauges of the
scheduler stand still while it is paused, and are not asked. `/load` counts open HTTP calls, kept and queued ones too,
where --enable-server-load-tracking is on. The counters are those of one process, which the same answer names by the
time of its start.
"""

from __future__ import annotations

from lifecycle.core.requests import RequestCounts

from ..exposition import samples, total
from ..http import Answer

#: Finish reasons of requests that ended by themselves.
FINISHED = ("stop", "length", "repetition")

_ENDED, _REFUSED, _STARTED = (
    "vllm:request_success_total",
    "vllm:admission_rejections_total",
    "process_start_time_seconds",
)


def request_counts(metrics: Answer, load: int | None, *, refuses_new: bool) -> RequestCounts | None:
    """The counts in an answer of `/metrics`; `load` are the open calls, where they are counted.

    A version that refuses requests while it is paused (`refuses_new`) does that before anything counts them.
    """
    found = samples(metrics.body, (_ENDED, _REFUSED, _STARTED)) if metrics.ok else {}
    ended = found.get(_ENDED)
    started = found.get(_STARTED, [])
    if ended is None or len(started) != 1:
        return None
    return RequestCounts(
        "engine",
        boot=repr(started[0].value),
        ended=total(ended),
        finished=total(ended, finished_reason=FINISHED),
        aborted=total(ended, finished_reason=("abort",)),
        refused=None if refuses_new else total(found.get(_REFUSED)),
        open=load,
    )
