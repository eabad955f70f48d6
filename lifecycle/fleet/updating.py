"""An update of weights as a window in which the trainer pushes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ..core.errors import InvalidTransition
from ..core.sources import Pushed, PushTarget
from ..engine.collective import CollectiveFailed
from ..engine.engine import Engine


@asynccontextmanager
async def updating(
    engines: Sequence[Engine], version: str, update_weights: Callable[[Pushed], Coroutine[Any, Any, object]]
) -> AsyncIterator[Sequence[Engine]]:
    """Inside, the engines that take part wait for the trainer's push; after it they hold `version`.

    An exception inside fails the update of every engine and comes through.
    """
    ready: asyncio.Future[Sequence[Engine]] = asyncio.get_running_loop().create_future()
    left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def body(parties: Sequence[PushTarget]) -> None:
        if ready.done():
            over = f"the push of {version} is over; push again (updating_weights) or load from disk"
            raise CollectiveFailed(over)
        taking_part = {each.name for each in parties}
        ready.set_result([each for each in engines if each.name in taking_part])
        await left

    update = asyncio.create_task(update_weights(Pushed(body, version)))
    try:
        waited: set[asyncio.Future[Any]] = {ready, update}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            yield ready.result()
        else:
            update.result()  # no participant, or the update failed before the push
            yield []
    except BaseException as error:
        if not left.done():
            left.set_exception(CollectiveFailed(f"the push was given up: {str(error) or type(error).__name__}"))
            left.exception()  # marks it as seen, where the push was never waited for
        await ended(update)
        failed = None if update.cancelled() else update.exception()
        if failed is not None and isinstance(error, InvalidTransition):
            raise failed from error  # the body pushed to an engine whose update had ended: that is what went wrong
        raise
    if not left.done():
        left.set_result(None)
    await update


async def ended(task: asyncio.Task[Any]) -> None:
    """The task has ended; a caller that gives up waiting for it cancels it, and waits for its end all the same."""
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        raise
