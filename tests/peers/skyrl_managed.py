"""The shim of SkyRL, held to what loopback engines need."""

from __future__ import annotations

from typing import Any

from peer_policy import POLICY
from peer_step import Engines


def managed(engines: Engines) -> Any:
    """The classes that are used in place of SkyRL's."""
    from skyrl_shim import ManagedClient, ManagedDispatch, ManagedSyncClient

    class Held(ManagedClient):
        policy = POLICY

    return Held, ManagedDispatch, ManagedSyncClient
