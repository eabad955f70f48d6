"""What a Policy may be: every field has one rule, and whatever it does not allow is refused at once."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from lifecycle import ConfigurationError, Grade, Policy
from lifecycle.core.policy import wrong_values
from lifecycle.settings.schema import load

NUMBERS = ("residual_threshold_gib", "settle_s", "poll_s", "room_wait_s", "residual_stable_s", "evidence_max_age_s")
FRACTIONS = ("returned_fraction", "visible_fraction")
WHOLE = ("visible_bytes", "canary_tokens")
WORDS = ("pause_mode", "unprovable", "on_failure", "residual_scope")

NONSENSE: list[tuple[str, Any]] = [
    *((name, value) for name in NUMBERS for value in (float("nan"), float("inf"), -1, True, "1", None, 10**400)),
    *((name, value) for name in FRACTIONS for value in (0, -0.1, 1.5, float("nan"), True, "0.5")),
    *((name, value) for name in WHOLE for value in (-1, 1.5, True, "8", float("nan"))),
    *((name, value) for name in WORDS for value in ("abrt", "", None, True, ["abort"])),
    ("deadlines_s", {"drain": float("nan")}),
    ("deadlines_s", {"drain": True}),
    ("deadlines_s", 60),
    ("accept", {"memory_returned": "measured"}),
    ("accept", {"memory_returned": 3}),
    ("accept", {"memory_returned": True}),
    ("accept", ["memory_returned"]),
    ("accept", {"nap": Grade.MEASURED}),
]


@pytest.mark.parametrize(("field", "value"), NONSENSE, ids=[f"{name}-{str(value)[:20]}" for name, value in NONSENSE])
def test_nonsense_is_refused_by_its_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=field) as refused:
        Policy(**{field: value})
    assert "must " in str(refused.value) or "one of" in str(refused.value)


def test_one_error_names_everything_that_is_wrong_and_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Policy(pause_mode="abrt", returned_fraction=90, accept={"idle": "measured"})  # type: ignore[arg-type,dict-item]
    assert str(refused.value) == (
        "returned_fraction must be a finite number > 0 and <= 1, got 90; "
        "pause_mode must be 'abort', 'wait', 'keep' or 'freeze', got 'abrt'; "
        "accept['idle'] must be one of Grade.ASSERTED, Grade.ACKNOWLEDGED, Grade.REPORTED, Grade.MEASURED, "
        "got 'measured'"
    )


def test_every_field_has_its_rule() -> None:
    policy = Policy()
    assert [wrong for field in fields(Policy) for wrong in wrong_values(field.name, getattr(policy, field.name))] == []


@pytest.mark.usefixtures("bare_environment")
@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("visible_bytes", "-1", -1),
        ("visible_bytes", "1.5", "1.5"),
        ("returned_fraction", "2", 2.0),
        ("unprovable", "maybe", "maybe"),
        ("pause_mode", "abrt", "abrt"),
        ("canary_tokens", "many", "many"),
    ],
)
def test_a_variable_is_held_to_the_same_rule(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str, value: Any
) -> None:
    (wrong,) = wrong_values(field, value)
    monkeypatch.setenv(f"LIFECYCLE_{field.upper()}", text)
    with pytest.raises(ConfigurationError) as refused:
        load()
    assert str(refused.value).endswith(f": {wrong.rule}")
