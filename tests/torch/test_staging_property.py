"""For modules of any tensors, staging restores every byte, except those of KV caches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from lifecycle.adapters.torch_memory_saver.staging import HostStaging
from random_modules import ALL, OWN, Built, Entry, build, content, entries, parts, recipes, scribble

#: Random modules for each kind of tensor, each with a tensor of that kind and others.
EXAMPLES = 25
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def property_holds(built: Built, staging: HostStaging, *, names: bool = True) -> None:
    """Two cycles through the same host buffers restore the bytes of every tensor, and leave KV caches as they are."""
    before = {name: content(tensor) for name, tensor in parts(built).items() if not name.endswith("k_cache")}
    if names:
        assert {leaf.name for leaf in staging.staged_leaves()} == set(before)
    for _ in range(2):
        staging.stage()
        scribble(built)
        caches = [content(cache) for cache in built.caches]
        staging.restore()
        assert {name: content(tensor) for name, tensor in parts(built).items() if name in before} == before
        assert [content(cache) for cache in built.caches] == caches


def staging_of(built: Built, kind: type[HostStaging] = HostStaging) -> HostStaging:
    """A staging with checksums, in buffers so small that tensors are split."""
    caches = {cache.data_ptr() for cache in built.caches}
    return kind(built.modules, checksum=True, slab_bytes=512, exclude=lambda tensor: tensor.data_ptr() in caches)


@pytest.mark.parametrize("kind", ALL)
@SETTINGS
@given(own=entries, others=recipes)
def test_every_byte_comes_back(kinds: Counter[str], kind: str, own: Entry, others: list[Entry]) -> None:
    built = build([*others, replace(own, kind=kind)])
    staging = staging_of(built)
    try:
        property_holds(built, staging)
    finally:
        staging.close()
    kinds.update(built.kinds.values())


def test_every_kind_was_among_them(kinds: Counter[str]) -> None:
    if not kinds:
        pytest.skip("the property test did not run")
    assert {kind for kind in ALL if kinds[kind] < EXAMPLES} == set()


def one_of_each() -> list[Entry]:
    """A tensor of every kind."""
    return [Entry("target", index % 3, kind, torch.float32, (4, 3), index) for index, kind in enumerate(ALL)]


def skipping(built: Built, kind: str) -> type[HostStaging]:
    """A staging that skips one kind."""

    class Skipping(HostStaging):
        def staged_leaves(self):
            return (leaf for leaf in super().staged_leaves() if built.kinds[leaf.name] != kind)

    return Skipping


@pytest.mark.parametrize("kind", ALL)
def test_the_property_fails_when_a_kind_is_skipped(kind: str) -> None:
    built = build(one_of_each())
    property_holds(built, staging_of(built))
    with pytest.raises(AssertionError):
        property_holds(built, staging_of(built, skipping(built, kind)))


@pytest.mark.parametrize("kind", OWN)
def test_bytes_alone_show_that_a_kind_was_skipped(kind: str) -> None:
    built = build(one_of_each())
    with pytest.raises(AssertionError):
        property_holds(built, staging_of(built, skipping(built, kind)), names=False)


def test_a_kv_cache_that_is_not_excluded_shows() -> None:
    built = build(one_of_each())
    with pytest.raises(AssertionError):
        property_holds(built, HostStaging(built.modules), names=False)
