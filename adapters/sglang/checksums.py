"""What `/weights_checker` told, by owner: one for the target model, one for the draft models beside it.

Source: sglang 0.5.23, weight_updater: a rank's answer has one entry in `parallelism_info` for each role (`target`, and
`draft` or `draft_step_N` where it has a draft model), and the names of a draft's tensors begin with its role. A rank's
checksum is the SHA-256 of names and values in the order of the names, the engine's that of the ranks' in turn: so what
is computed here is what the server itself answers where it is asked with `selector`. Measured for the target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any


def whole(told: Mapping[str, Any]) -> str | None:
    """The checksum of all weights together, as the server computed it."""
    value = told.get("per_engine_checksum")
    return value if isinstance(value, str) else None


def by_owner(told: Mapping[str, Any]) -> dict[str, str]:
    """The checksum of each owner that the engine has; none where the answer has no ranks."""
    found: dict[str, list[str]] = {}
    for rank in told.get("ranks") or ():
        for owner, checksums in _of_rank(rank).items():
            found.setdefault(owner, []).append(_digest(f"{name}{checksums[name]}" for name in sorted(checksums)))
    return {owner: _digest(ranks) for owner, ranks in found.items()}


def _of_rank(rank: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The tensors of this rank and their checksums, by owner."""
    drafts = tuple(f"{role}." for role in _roles(rank) if role != "target")
    found: dict[str, dict[str, str]] = {}
    for name, value in rank["checksums"].items():
        found.setdefault("draft" if name.startswith(drafts) else "target", {})[name] = value
    return found


def _roles(rank: Mapping[str, Any]) -> list[str]:
    return [str(each["role"]) for each in rank.get("parallelism_info") or ()]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()
