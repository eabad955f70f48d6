"""A loopback process that speaks tokenspeed's dialect, as the conformance suite wants it."""

from __future__ import annotations

from dataclasses import dataclass

from subject import LoopbackSubject


@dataclass(frozen=True)
class TokenspeedSubject(LoopbackSubject):
    """A running loopback engine that speaks tokenspeed; its clients send what SGLang's do."""

    #: Bytes of each tag on each rank, which tokenspeed itself does not tell.
    tag_bytes: int

    @property
    def url(self) -> str:
        """Where its control server is."""
        return f"tokenspeed://127.0.0.1:{self.process.port}?sizes=weights:{self.tag_bytes},kv_cache:{self.tag_bytes}"
