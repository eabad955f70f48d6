"""The workers of a router, as `GET /workers` lists them, and how one is added again as it was. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from lifecycle.nodes.same_address import address_of

#: What a router that knows data-parallel ranks adds to a worker's URL. Source: sglang-router 0.3.2, its code; not run.
_RANK = re.compile(r"@\d+$")

#: What a listing says of the moment, or of the connection that the router chose: no part of a worker's settings.
_OF_THE_MOMENT = frozenset(
    {
        "id",
        "is_healthy",
        "status",
        "load",
        "engine_load",
        "job_status",
        "metadata",
        "connection_mode",
        "dp_rank",
        "dp_size",
        "dp_base_url",
    }
)

#: Labels that the routers take from the engine itself when a worker is added. They are asked of it again: after an
#: update of weights they are others, and a label that is given would count instead.
#: Source: sglang-router 0.3.2 and smg 1.13.0, measured on loopback engines; smg 1.9.0, its code.
_ASKED_OF_THE_ENGINE = frozenset(
    {
        "architectures",
        "context_length",
        "cp_size",
        "default_sampling_params",
        "disaggregation_mode",
        "dp_size",
        "has_audio_understanding",
        "has_image_understanding",
        "is_embedding",
        "is_generation",
        "load_balance_method",
        "max_model_len",
        "max_num_reqs",
        "max_prefill_tokens",
        "max_running_requests",
        "max_total_tokens",
        "model_path",
        "model_type",
        "pp_size",
        "served_model_name",
        "tokenizer_path",
        "tp_size",
        "version",
        "weight_version",
        # sglang-router puts these two settings among the labels, too
        "cost",
        "priority",
    }
)

#: The settings that are compared once a worker was added again.
_COMPARED = ("worker_type", "bootstrap_port", "model_id", "priority", "cost")

#: A router names a worker's model so that it does not know.
_NO_MODEL = "unknown"


@dataclass(frozen=True, slots=True)
class Worker:
    """One entry of the listing."""

    entry: Mapping[str, Any]

    @property
    def url(self) -> str:
        """The URL as the router spells it, without the rank that it may have added."""
        return _RANK.sub("", str(self.entry["url"]))

    @property
    def path(self) -> str:
        """Where the router has this worker: by its id; vllm-router, which gives none, by its URL."""
        return f"/workers/{quote(str(self.entry.get('id') or self.entry['url']), safe='')}"

    @property
    def draining(self) -> bool:
        """Whether it is being removed: smg lists it for 5 s more, and sends it nothing. Source: 1.13.0, measured."""
        return self.entry.get("status") == "draining"

    @property
    def healthy(self) -> bool:
        """Whether the router would send it a request now."""
        return self.entry.get("is_healthy") is True and not self.draining

    @property
    def load(self) -> int | None:
        """Requests in flight, as the router counts them."""
        load = self.entry.get("load")
        return load if isinstance(load, int) and not isinstance(load, bool) and load >= 0 else None


def listed(body: Any) -> tuple[Worker, ...] | None:
    """The workers of an answer to `GET /workers`; None where it is no such answer."""
    entries = body.get("workers") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        return None
    known = [each for each in entries if isinstance(each, dict) and isinstance(each.get("url"), str)]
    return tuple(Worker(each) for each in known) if len(known) == len(entries) else None


def place_of(url: str) -> str:
    """What a worker's and an engine's URL have in common where they mean one server: its host and port."""
    return address_of(url) or url.rstrip("/").lower()


def creation_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the `POST /workers` that adds this worker as it was listed.

    The key that the router sends to it is in no listing, and is not in here.
    """
    body = {name: value for name, value in entry.items() if name not in _OF_THE_MOMENT and value is not None}
    given = {name: value for name, value in _labels(entry).items() if name not in _ASKED_OF_THE_ENGINE}
    body = body | {"url": Worker(entry).url, "labels": given}
    if body.get("model_id") == _NO_MODEL:
        del body["model_id"]
    return body


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that a worker had before and does not have now, each with both values."""
    had = {name: before.get(name) for name in _COMPARED if before.get(name) not in (None, _NO_MODEL)}
    has = {name: now.get(name) for name in had}
    had |= {f"label {name}": value for name, value in creation_of(before)["labels"].items()}
    has |= {f"label {name}": value for name, value in _labels(now).items()}
    return [f"{name} {value!r} is now {has.get(name)!r}" for name, value in had.items() if has.get(name) != value]


def apart(workers: Iterable[Worker]) -> bool:
    """Whether prefill and decode are separate workers."""
    return any(each.entry.get("worker_type") not in (None, "regular") for each in workers)


def _labels(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The labels; sglang-router calls them metadata."""
    labels = entry.get("labels") or entry.get("metadata")
    return labels if isinstance(labels, dict) else {}
