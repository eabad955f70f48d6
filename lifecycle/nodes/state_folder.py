"""The folder where what is known outlives the process that learned it."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> str:
    """Returns `$LIFECYCLE_STATE_DIR`, else this user's XDG state folder; a `~` at its beginning is not expanded yet."""
    return os.environ.get("LIFECYCLE_STATE_DIR") or os.environ.get("XDG_STATE_HOME", "~/.local/state") + "/lifecycle"


def in_state_folder(*names: str) -> Path:
    """Returns the path of this file there. Raises RuntimeError where its `~` is the home of nobody."""
    return Path(state_folder()).expanduser().joinpath(*names)
