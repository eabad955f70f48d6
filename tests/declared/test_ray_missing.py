"""Without the package `ray` its adapter can be imported, and says what to install."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from lifecycle.adapters.ray import SLIME, RayActors, actor_named

from lifecycle import ConfigurationError


@pytest.mark.parametrize("found", [None, ModuleType("ray")], ids=["no package", "a folder of that name"])
def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, found: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "ray", found)
    for ask in (lambda: RayActors(object(), SLIME), lambda: actor_named("engine-0")):
        with pytest.raises(ConfigurationError, match=r"needs the package 'ray'; pip install 'engine-lifecycle\[ray\]'"):
            ask()
