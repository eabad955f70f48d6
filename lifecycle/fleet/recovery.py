"""Finding out at once where several engines are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.advice import Recovery
from ..core.errors import LifecycleError
from ..engine.engine import Engine


async def recovered(engines: Sequence[Engine], deadline_s: float) -> dict[str, Recovery]:
    """What was found of each engine, by name. Where one cannot be asked, its reason says why."""
    found = await asyncio.gather(*(_recovered(engine, deadline_s) for engine in engines))
    return {engine.name: each for engine, each in zip(engines, found, strict=True)}


async def _recovered(engine: Engine, deadline_s: float) -> Recovery:
    try:
        return await engine.recover(deadline_s=deadline_s)
    except LifecycleError as error:
        return Recovery(engine.state, error.why, error.advice or engine.advice)
    except Exception as error:
        return Recovery(engine.state, f"{type(error).__name__}: {error}", engine.advice)
