"""Reads `/weights_checker`, and splits its response by model role: `target`, and `draft` for all draft models together.

Source: sglang 0.5.23, weight_updater. In a rank's report `parallelism_info` has one entry for each role (`target`, and
`draft` or `draft_step_N` where the rank has a draft model). The names of a draft model's tensors begin with its role.
A rank's checksum is the SHA-256 of its tensor names and checksums, sorted by name. The engine's checksum is the SHA-256
of the ranks' checksums in rank order. A checksum computed here therefore equals the one that the server returns for the
same role in `selector`. That was measured for the target and read in the source for drafts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from ..http import HttpClient
from .answers import LIMITS

PATH = "/weights_checker"


async def read_checksums(http: HttpClient, key: str | None, deadline_s: float) -> dict[str, Any]:
    """The checksum of all weights and those of each model role, from one response; nothing where there is none."""
    body = {"action": "checksum"}
    answer = await http.request(
        "POST", PATH, deadline_s=deadline_s, repeatable=True, json_body=body, key=key, limit=LIMITS[PATH]
    )
    report = answer.json() if answer.ok else None
    return {"checksum": of_engine(report), "checksums": by_role(report)} if isinstance(report, dict) else {}


def of_engine(report: Mapping[str, Any]) -> str | None:
    """The checksum of all weights of the engine, as the server computed it; None where the report has none."""
    value = report.get("per_engine_checksum")
    return value if isinstance(value, str) else None


def by_role(report: Mapping[str, Any]) -> dict[str, str]:
    """The checksum of each model role that the engine has; empty where the report has no ranks, or an odd one."""
    ranks = report.get("ranks")
    by_rank = [_of_rank(rank) for rank in ranks] if isinstance(ranks, list) else []
    found: dict[str, list[str]] = {}
    for roles in by_rank:
        if roles is None:
            return {}
        for role, checksums in roles.items():
            found.setdefault(role, []).append(_digest(f"{name}{checksums[name]}" for name in sorted(checksums)))
    return {role: _digest(ranks) for role, ranks in found.items()}


def _of_rank(rank: Any) -> dict[str, dict[str, str]] | None:
    """The checksums of this rank's tensors, by model role and tensor name; None where the row is odd."""
    checksums = rank.get("checksums") if isinstance(rank, dict) else None
    if not isinstance(checksums, dict) or not all(isinstance(value, str) for value in checksums.values()):
        return None
    draft_prefixes = tuple(f"{role}." for role in _roles(rank) if role != "target")
    found: dict[str, dict[str, str]] = {}
    for name, value in checksums.items():
        found.setdefault("draft" if name.startswith(draft_prefixes) else "target", {})[name] = value
    return found


def _roles(rank: Mapping[str, Any]) -> list[str]:
    rows = rank.get("parallelism_info")
    return [str(row.get("role")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode(errors="replace")).hexdigest()
