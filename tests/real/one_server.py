"""One real server at a time: `serve(kind)` is the running one of this kind, started where another or none runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from real_server import RealServer

Server = TypeVar("Server", bound=RealServer)


@dataclass(slots=True)
class OneServer(ABC, Generic[Server]):
    """The servers of one run. What each checkpoint's first answers are is kept in `outputs`, by seed."""

    #: How a server of each kind is started; `seed` is that of its checkpoint.
    KINDS: ClassVar[Mapping[str, Mapping[str, Any]]]

    #: A restart costs a minute of a machine that has two cores.
    STARTS_ALLOWED: ClassVar[int]

    starts: int = 0
    outputs: dict[int, list[list[int]]] = field(default_factory=dict)
    _kind: str = ""
    _server: Server | None = None

    @abstractmethod
    def new(self, kind: str) -> Server:
        """A server of this kind, not started yet."""

    @abstractmethod
    def first_outputs(self, server: Server, kind: str) -> list[list[int]]:
        """The greedy tokens after each of the prompts."""

    def used_again(self, server: Server) -> None:
        """The server is given to another test."""

    def serve(self, kind: str) -> Server:
        """The running server of this kind."""
        server = self._server
        if server is not None and server.alive and self._kind == kind:
            self.used_again(server)
            return server
        self.stop()
        if self.starts == self.STARTS_ALLOWED:
            raise RuntimeError(f"more than {self.STARTS_ALLOWED} starts of a real server in one run")
        self.starts += 1
        self._kind, self._server = kind, self.new(kind)
        self._server.start()
        print(f"a {kind} server is ready after {self._server.startup_s:.0f} s")
        seed = self.KINDS[kind]["seed"]
        if seed not in self.outputs:
            self.outputs[seed] = self.first_outputs(self._server, kind)
        return self._server

    def expected(self, seed: int) -> list[list[int]]:
        """What a server that started with this checkpoint answered to the prompts."""
        if seed not in self.outputs:
            self.serve(next(kind for kind, options in self.KINDS.items() if options["seed"] == seed))
        return self.outputs[seed]

    def stop(self) -> None:
        """No server runs."""
        if self._server is not None:
            self._server.stop()
            self._server = None
