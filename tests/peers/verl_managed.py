"""The shim of verl, held to what loopback engines need."""

from __future__ import annotations

from typing import Any

from peer_policy import POLICY
from peer_step import Engines


def managed(engines: Engines) -> Any:
    """The class that is used in place of verl's."""
    from verl_shim import ManagedCheckpointEngineManager

    class Held(ManagedCheckpointEngineManager):
        policy = POLICY

    return Held
