"""What is installed is looked up once a process."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

import pytest

from lifecycle import ConfigurationError, Fleet
from lifecycle.fleet import registry

ENTRY = importlib.metadata.EntryPoint("late", "lifecycle.testing.scripted:ScriptedAdapter", registry.ADAPTERS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The groups of entry points that were looked for, while nothing is known of what is installed."""
    groups: list[str] = []
    looked_for = importlib.metadata.entry_points

    def entry_points(**how: str) -> importlib.metadata.EntryPoints:
        groups.append(how["group"])
        return looked_for(**how)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry.installed.cache_clear()
    yield groups
    registry.installed.cache_clear()


def test_a_fleet_of_many_urls_looks_for_adapters_once(asked: list[str]) -> None:
    fleet = Fleet.connect([f"loopback://127.0.0.1:{port}" for port in range(1000, 1020)], lease=None)
    assert len(fleet) == 20
    assert registry.known_schemes() == ["loopback", "sglang", "tokenspeed", "vllm"]
    assert asked == [registry.ADAPTERS]


def test_an_adapter_that_is_installed_later_is_found_by_the_next_process(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="no adapter for 'late'"):
        Fleet.connect(["late://e:1"])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **how: importlib.metadata.EntryPoints([ENTRY]))
    with pytest.raises(ConfigurationError, match="no adapter for 'late'"):
        Fleet.connect(["late://e:1"])
    registry.installed.cache_clear()
    assert registry.known_schemes() == ["late"]


def test_what_a_group_has_is_not_taken_for_another(asked: list[str]) -> None:
    assert set(registry.installed(registry.ENGINES)) == {"loopback"}
    assert "sglang" in registry.installed(registry.ADAPTERS)
