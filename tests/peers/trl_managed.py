"""The shim of TRL, on an engine that is reached over HTTP instead of in its process."""

from __future__ import annotations

from typing import Any

from peer_policy import POLICY
from peer_step import Engines

from lifecycle.sync import Fleet


def managed(engines: Engines) -> Any:
    """The class that is used in place of TRL's."""
    from trl_shim import ManagedGeneration

    class OverHTTP(ManagedGeneration):
        def fleet_of(self, llm: Any) -> Fleet:
            return Fleet.connect([llm.url.replace("http", "vllm", 1)], policy=POLICY)

    return OverHTTP
