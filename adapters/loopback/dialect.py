"""The dialects that the engine speaks: whose HTTP API it has, and of which version."""

from __future__ import annotations

from dataclasses import dataclass

SGLANG, VLLM = "sglang", "vllm"

#: The versions of each dialect, as they are chosen, and the release that each of them is: one for each range in which
#: an engine's answers or its effects differ.
VERSIONS = {
    SGLANG: {
        release: release for release in ("0.5.11", "0.5.12", "0.5.15", "0.5.16", "0.5.18", "0.5.20", "0.5.22", "0.5.23")
    },
    VLLM: {"0.24": "0.24.0", "0.25": "0.25.1", "0.30": "0.30.0", "0.32": "0.32.0", "0.33": "0.33.0"},
}
DEFAULT_VERSION = {SGLANG: "0.5.23", VLLM: "0.32"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """Whose API is spoken, and of which release."""

    engine: str = SGLANG
    release: str = "0.5.23"

    def __str__(self) -> str:
        return f"{self.engine}:{self.release}"


SGLANG_DIALECT = Dialect()


def parse_dialect(text: str) -> Dialect:
    """The dialect of `ENGINE[:VERSION]`. Raises ValueError, which lists the engines or the versions that there are."""
    engine, colon, version = text.partition(":")
    if engine not in VERSIONS:
        raise ValueError(f"no dialect {engine!r}; there are {', '.join(VERSIONS)}")
    versions = VERSIONS[engine]
    chosen = version if colon else DEFAULT_VERSION[engine]
    if chosen in versions:
        return Dialect(engine, versions[chosen])
    if chosen in versions.values():
        return Dialect(engine, chosen)
    raise ValueError(f"no version {chosen!r} of the dialect {engine}; there are {', '.join(versions)}")
