"""`python likeness.py REAL LOOPBACK` prints where two folders of recorded answers differ, in status and in shape.

The folders are what `record.py` left of the same questions to SGLang; `vllm_likeness.py` compares what vLLM says. The
shape of an answer is its media type and, of JSON, which fields it has and of which kind; of plain text it is the text
itself, of metrics the names. A difference must be listed below with the line of SGLang that it comes from; one that is
not listed, or is listed and not seen, fails.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ALLOWED = 5

# Fields whose kind says what the engine had done before: null until something was cached, or computed.
NULLABLE = frozenset({"cached_tokens_details", "decode_moments"})
# Fields that map names of the model's own: the names are data.
NAMED_BY_THE_MODEL = frozenset({"checksums"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which loopback is knowingly unlike the engine: in which questions, in which fields, by which line."""

    what: str
    questions: str
    fields: str
    source: str

    def covers(self, question: str, mismatch: str) -> bool:
        """Whether this difference explains the mismatch."""
        return bool(re.fullmatch(self.questions, question) and re.match(self.fields, mismatch))


TIMES = (
    "storage_(prefetch|staging)_wait|forward_entry_time|prefill_finished_time|queue_time|request_(received|finished)_ts"
    "|first_token_latency|api_server_dispatch_finish_ts|decode_throughput"
)

DIFFERENCES = (
    Difference(
        "server_info: only the arguments that a driver reads, and two fields that say what it is",
        r"(get_)?server_info.*|key_\w+_server_info",
        r"(\.[\w.\[\]]+: only in sglang|\.served_by: only in loopback|\.loopback: only in loopback)"
        r"|\.internal_states\[\]\.(served_by|loopback): only in loopback",
        "srt/entrypoints/http_server.py:864 server_info, over srt/server_args.py:231 ServerArgs",
    ),
    Difference(
        "model_info: no plan for embeddings",
        r"(get_)?model_info.*",
        r"\.embedding: only in sglang",
        "srt/entrypoints/http_server.py:845 model_info",
    ),
    Difference(
        "metrics: only the gauges of load, and their names without help",
        r"metrics|key_\w+_metrics",
        r"\.sglang:\w+: only in sglang",
        "srt/observability/metrics_collector.py:334 SchedulerMetricsCollector",
    ),
    Difference(
        "generate: with --enable-metrics no times of the stages",
        r".*",
        rf"((\[\])?\.meta_info\.({TIMES})|\[\]\.meta_info\.response_sent_to_client_ts): only in sglang",
        "srt/observability/req_time_stats.py:516",
    ),
    Difference(
        "completions: none of the OpenAI endpoints that generate",
        r"completions",
        r"",
        "srt/entrypoints/http_server.py:1861 openai_v1_completions",
    ),
)


def shape(value: Any, name: str = "") -> Any:
    """The kind of a JSON value: a word, or of an object its fields, or of a list the shapes in it."""
    match value:
        case _ if name in NULLABLE:
            return "nullable"
        case None:
            return "null"
        case bool():
            return "truth"
        case int() | float():
            return "number"
        case str():
            return "text"
        case list():
            return _union([shape(each) for each in value])
    if name in NAMED_BY_THE_MODEL:
        return {"*": shape(next(iter(value.values()), None))}
    return {key: shape(each, key) for key, each in value.items()}


def _union(shapes: Sequence[Any]) -> list[Any]:
    """The different shapes of a list's elements; their number says nothing."""
    found: list[Any] = []
    for each in shapes:
        if each not in found:
            found.append(each)
    return sorted(found, key=lambda each: json.dumps(each, sort_keys=True))


def mismatches(real: Any, ours: Any, where: str = "", engine: str = "sglang") -> Iterator[str]:
    """Where two shapes differ, the first being of the real engine."""
    if isinstance(real, dict) and isinstance(ours, dict):
        for key in sorted(real.keys() | ours.keys()):
            if key not in ours:
                yield f"{where}.{key}: only in {engine}"
            elif key not in real:
                yield f"{where}.{key}: only in loopback"
            else:
                yield from mismatches(real[key], ours[key], f"{where}.{key}", engine)
    elif isinstance(real, list) and isinstance(ours, list) and len(real) == len(ours):
        for one, other in zip(real, ours, strict=True):
            yield from mismatches(one, other, f"{where}[]", engine)
    elif real != ours:
        yield f"{where}: {_brief(real)} in {engine}, {_brief(ours)} in loopback"


def _brief(what: Any) -> str:
    text = json.dumps(what)
    return text if len(text) < 300 else text[:300] + "..."


def compare(real: dict[str, Any], ours: dict[str, Any], engine: str = "sglang") -> Iterator[str]:
    """Where two recorded answers to one question differ."""
    if real["status"] != ours["status"]:
        yield f"status: {real['status']} in {engine}, {ours['status']} in loopback"
        return
    for key in ("content_type", "error"):
        one, other = (_kind(answer[key]) for answer in (real, ours))
        if one != other:
            yield f"{key}: {one} in {engine}, {other} in loopback"
    yield from mismatches(_content(real), _content(ours), "", engine)


def _kind(text: str | None) -> str | None:
    """A header as it is; of an exception only its name, since the rest is about sockets."""
    return text if text is None or ": " not in text else text.split(":")[0]


def _content(answer: dict[str, Any]) -> Any:
    """What is compared of the body."""
    text = answer["text"] or ""
    if answer["events"]:
        return _union([shape(json.loads(event[6:])) for event in answer["events"] if event != "data: [DONE]"])
    if answer["body"] is not None or text == "null":
        return shape(answer["body"])
    if "# TYPE" in text:
        return dict.fromkeys(re.findall(r"^# TYPE (\S+?)(?:_total)? ", text, re.MULTILINE), "metric")
    return f"text {text!r}"


def answers(folder: Path) -> dict[str, dict[str, Any]]:
    """The recorded answers by question."""
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json") if file.stem != "index"}


def report(
    real: Path, ours: Path, engine: str = "sglang", differences: Sequence[Difference] = DIFFERENCES
) -> tuple[int, list[str], list[Difference]]:
    """How many questions were compared, the mismatches that nothing explains, and the listed differences seen."""
    theirs, mine = answers(real), answers(ours)
    unexplained = [f"{name}: asked of one of them only" for name in sorted(theirs.keys() ^ mine.keys())]
    seen: set[Difference] = set()
    for question in sorted(theirs.keys() & mine.keys()):
        for mismatch in compare(theirs[question], mine[question], engine):
            explained = [each for each in differences if each.covers(question, mismatch)]
            seen.update(explained)
            if not explained:
                unexplained.append(f"{question}: {mismatch}")
    return len(theirs.keys() & mine.keys()), unexplained, [each for each in differences if each in seen]


def verdict(
    real: Path, ours: Path, engine: str = "sglang", differences: Sequence[Difference] = DIFFERENCES
) -> tuple[list[str], bool]:
    """The lines to print, the summary last, and whether loopback is like the engine."""
    count, unexplained, seen = report(real, ours, engine, differences)
    stale = [each for each in differences if each not in seen]
    lines = [f"unlike: {line}" for line in unexplained]
    lines += [f"listed and not seen: {each.what}" for each in stale]
    lines += [f"listed: {each.what} ({each.source})" for each in seen]
    lines.append(f"loopback = {engine} on {count} requests ({len(seen)} listed differences)")
    return lines, not unexplained and not stale and len(seen) <= ALLOWED


if __name__ == "__main__":
    lines, alike = verdict(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(lines))
    sys.exit(not alike)
