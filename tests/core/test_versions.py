"""Tables of versions: which range a version is in, and what is said of one that is in none."""

from __future__ import annotations

import pytest
from lifecycle.adapters.versions import VersionRange, VersionTable, release_of

TABLE = VersionTable(
    "Engine",
    (VersionRange("0.9", "0.10", "old", "read"), VersionRange("0.10.1", "1.0", "new", "measured")),
)


@pytest.mark.parametrize(
    ("version", "release"),
    [("0.5.12.post1", (0, 5, 12)), ("v1.2rc1", (1, 2)), ("0.33.0+cu128", (0, 33, 0)), ("main", None), ("", None)],
)
def test_the_numbers_of_a_release(version: str, release: tuple[int, ...] | None) -> None:
    assert release_of(version) == release


@pytest.mark.parametrize(
    ("version", "effects", "nearest"),
    [
        ("0.8", None, "old"),
        ("0.9", "old", "old"),
        ("0.9.7", "old", "old"),
        ("0.10", None, "old"),
        ("0.10.1rc1", "new", "new"),
        ("0.99", "new", "new"),
        ("1.0", None, "new"),
        ("main", None, "new"),
    ],
)
def test_a_version_is_in_one_range_or_in_none(version: str, effects: str | None, nearest: str) -> None:
    found = TABLE.find(version)
    assert (None if found is None else found.effects) == effects
    assert TABLE.nearest(version).effects == nearest
    said = TABLE.unknown(version)
    assert (said is None) is (effects is not None)
    if said is not None:
        assert said.startswith(f"Engine {version} is not among")
        assert "0.9 to before 0.10, 0.10.1 to before 1.0" in said


@pytest.mark.parametrize(
    "ranges",
    [
        [("0.10", "0.9")],
        [("0.9", "0.11"), ("0.10", "0.12")],
        [("0.10", "0.11"), ("0.9", "0.10")],
        [("main", "0.9")],
        [("0.9", "0.9")],
        [],
    ],
)
def test_a_table_that_is_not_in_order_is_refused_at_once(ranges: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match="Engine"):
        VersionTable("Engine", [VersionRange(first, end, None, "") for first, end in ranges])
