"""Moves and windows of a fleet on one side, changes of its members on the other: never both at once.

Moves may run beside each other, of other engines or inside a window. A change of members is alone: it waits until no
move and no window is under way, and what begins while it runs waits for it. What begins while it waits does not, since
it may belong to the window that is waited for. Whose turn it is, is decided at once by whoever ends, so that a loop
that begins its next move right away keeps no change waiting for ever. A change has a deadline, so nobody waits longer
than that for it, nor it for moves that always overlap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..core.deadline import Deadline, Limit, seconds


class TurnNotGiven(Exception):
    """The deadline passed; `str()` is what was under way."""


class Turns:
    """Whose turn it is: moves beside each other, or one change."""

    def __init__(self) -> None:
        self._moves: list[str] = []
        self._change: str | None = None
        self._waiting_moves: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._waiting_changes: deque[tuple[str, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of_move(self, what: str, limit: Limit) -> AsyncIterator[None]:
        """No change of members begins inside. Waits for one that is under way; TurnNotGiven once the limit passed."""
        if self._change is None:
            self._moves.append(what)
        else:
            await self._turn(self._waiting_moves, what, seconds(limit))
        try:
            yield
        finally:
            self._moves.remove(what)
            self._next()

    @asynccontextmanager
    async def of_change(self, what: str, deadline: Deadline) -> AsyncIterator[None]:
        """No move and no window begins inside. TurnNotGiven where some were under way until the deadline."""
        if self._change is None and not self._moves:
            self._change = what
        else:
            await self._turn(self._waiting_changes, what, deadline.left_s)
        try:
            yield
        finally:
            self._change = None
            self._next(moves_first=True)

    async def _turn(self, waiting: deque[tuple[str, asyncio.Future[None]]], what: str, limit_s: float | None) -> None:
        mine = (what, asyncio.get_running_loop().create_future())
        waiting.append(mine)
        try:
            await asyncio.wait({mine[1]}, timeout=limit_s)
        except asyncio.CancelledError:
            if mine in waiting:
                waiting.remove(mine)
            else:
                self._given_back(waiting, what)
            raise
        if mine in waiting:
            waiting.remove(mine)
            raise TurnNotGiven(self._change or ", ".join(dict.fromkeys(self._moves)))

    def _given_back(self, waiting: deque[tuple[str, asyncio.Future[None]]], what: str) -> None:
        if waiting is self._waiting_changes:
            self._change = None
        else:
            self._moves.remove(what)
        self._next()

    def _next(self, *, moves_first: bool = False) -> None:
        """Who waits has the turn, where it is free."""
        if self._change is None and (moves_first or not self._waiting_changes):
            while self._waiting_moves:
                what, turn = self._waiting_moves.popleft()
                self._moves.append(what)
                turn.set_result(None)
        if self._change is None and not self._moves and self._waiting_changes:
            self._change, turn = self._waiting_changes.popleft()
            turn.set_result(None)
