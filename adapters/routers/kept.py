"""What a worker was like before it was removed from its router, kept across processes.

`lifecycle offload` and `lifecycle onload` are two processes, and a router forgets the settings of a worker that it
removes. There is a file for each worker of each router; no key of a worker is in it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifecycle.core.errors import RouterError
from lifecycle.nodes.state_folder import in_state_folder


@dataclass(frozen=True, slots=True)
class Kept:
    """One worker: how the router listed it when it was removed, and the id of an addition that it has not confirmed.

    `closed`: it was removed here, and its addition has not been confirmed since.
    """

    worker: Mapping[str, Any] | None = None
    adding: str | None = None
    closed: bool = False


class KeptWorkers:
    """The files of one router."""

    def __init__(self, router: str) -> None:
        self._router = router

    def load(self, place: str) -> Kept:
        """What is known of the worker at this place; nothing where there is no file that can be read."""
        try:
            found = json.loads(self._path(place).read_text())
            return Kept(found["worker"], found["adding"], found["closed"] is True)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError):
            return Kept()

    def save(self, place: str, kept: Kept) -> None:
        """The file is there, whole. RouterError where it cannot be written."""
        try:
            path = self._path(place)
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
                json.dump(asdict(kept), file)
            os.replace(file.name, path)
        except (OSError, RuntimeError) as error:
            raise RouterError(
                f"the settings of the worker {place} of the router {self._router} cannot be kept, so that it could not "
                f"be added again as it is: {error}; LIFECYCLE_STATE_DIR names another folder"
            ) from error

    def _path(self, place: str) -> Path:
        return in_state_folder("routers", _name(self._router), f"{_name(place)}.json")


def _name(address: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]", "-", address)
