"""Settings: where each value comes from, what is refused and how it is said, and what `lifecycle config` prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lifecycle import ConfigurationError, Grade, Policy
from lifecycle.cli import config
from lifecycle.cli.options import Options
from lifecycle.nodes.remote import TOKEN
from lifecycle.settings.schema import Settings, load

pytestmark = pytest.mark.usefixtures("bare_environment")

THRESHOLD = "LIFECYCLE_RESIDUAL_THRESHOLD_GIB"
MILES = "MILES_MAX_RESIDUAL_GPU_MEM_GB"


@pytest.fixture
def fleet_toml(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a fleet.toml with one engine and these lines."""

    def write(text: str) -> Path:
        path = tmp_path / "fleet.toml"
        path.write_text(f'{text}\n[[engines]]\nurl = "loopback://127.0.0.1:1"\n')
        return path

    return write


def test_the_defaults_are_those_of_the_policy() -> None:
    loaded = load()
    assert loaded.settings.policy() == Policy()
    assert set(loaded.origins.values()) == {"default"}
    assert {field.name for field in fields(Policy)} <= set(Settings.model_fields)


def test_the_strongest_source_wins_and_is_named(monkeypatch: pytest.MonkeyPatch, fleet_toml: Any) -> None:
    path = fleet_toml("[policy]\nresidual_threshold_gib = 5.0\nsettle_s = 7\n[agent]\nport = 4000")
    loaded = load(path)
    assert loaded.settings.residual_threshold_gib == 5.0
    assert loaded.settings.agent_port == 4000
    assert loaded.origins["residual_threshold_gib"] == f"{path}: policy.residual_threshold_gib"
    monkeypatch.setenv(MILES, "4.5")
    loaded = load(path)
    assert (loaded.settings.residual_threshold_gib, loaded.origins["residual_threshold_gib"]) == (4.5, MILES)
    monkeypatch.setenv(THRESHOLD, "2.25")
    loaded = load(path)
    assert (loaded.settings.residual_threshold_gib, loaded.origins["residual_threshold_gib"]) == (2.25, THRESHOLD)
    assert loaded.settings.policy().settle_s == 7.0
    assert loaded.settings.policy().threshold_bytes == 2.25 * (1 << 30)


@pytest.mark.parametrize("name", [THRESHOLD, MILES])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1", "3GB", ""])
def test_a_threshold_that_means_nothing(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load()
    assert str(refused.value) == f"{name}={value!r}: must be a finite number > 0"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LIFECYCLE_HOOK_MODE", "preloaded", "'auto', 'torch' or 'preload'"),
        ("LIFECYCLE_HOOK_MODE", "", "'auto', 'torch' or 'preload'"),
        ("LIFECYCLE_PAUSE_MODE", "nap", "'abort', 'wait', 'keep' or 'freeze'"),
        ("LIFECYCLE_ON_FAILURE", "panic", "'restore'"),
        ("LIFECYCLE_RESIDUAL_SCOPE", "gpu", "'process' or 'device'"),
        ("LIFECYCLE_ALLOW_PRELOAD_ON_BLACKWELL", "yes", "must be 1 or 0"),
        ("LIFECYCLE_RETURNED_FRACTION", "1.5", "> 0 and <= 1"),
        ("LIFECYCLE_AGENT_PORT", "70000", "less than or equal to 65535"),
        ("LIFECYCLE_DEADLINES_S__DRAIN", "soon", "must be a finite number > 0"),
        ("LIFECYCLE_DEADLINES_S__NAP", "1", "unknown command 'nap': one of pause, drain"),
        ("LIFECYCLE_ACCEPT__IDLE", "guessed", "one of asserted, acknowledged, reported, measured"),
        ("LIFECYCLE_DEADLINES_S", "60", "valid dictionary"),
        ("LIFECYCLE_DEADLINES_S", "{drain", "JSON"),
        ("LIFECYCLE_CANARY_TOKENS", "-1", "must be >= 0"),
    ],
)
def test_a_bad_value_names_its_key_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load()
    told = str(refused.value)
    assert said in told
    assert value in told or "JSON" in said
    assert name.partition("__")[0].lower().removeprefix("lifecycle_") in told.lower()


def test_a_bad_value_of_the_file_names_it(fleet_toml: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"fleet.toml:2: launch.hook_mode='fast'"):
        load(fleet_toml('[launch]\nhook_mode = "fast"'))
    with pytest.raises(
        ConfigurationError, match=r"fleet.toml:2: launch.speed: no such setting; there are hook_mode, allow"
    ):
        load(fleet_toml("[launch]\nspeed = 1"))
    with pytest.raises(ConfigurationError, match=r"fleet.toml:2: policy.residual_threshold_gib"):
        load(fleet_toml("[policy]\nresidual_threshold_gib = nan"))


def test_every_wrong_value_is_named_with_its_own_source(monkeypatch: pytest.MonkeyPatch, fleet_toml: Any) -> None:
    path = fleet_toml("[policy]\nsettle_s = -1\ndeadlines_s = {swim = 7, drain = 60}\n[agent]\nport = 70000")
    monkeypatch.setenv("LIFECYCLE_DEADLINES_S__RELEASE", "60")
    with pytest.raises(ConfigurationError) as refused:
        load(path)
    assert [line.partition(" one of ")[0] for line in str(refused.value).splitlines()] == [
        f"{path}:3: policy.deadlines_s.swim=7: unknown command 'swim':",
        f"{path}:2: policy.settle_s=-1: must be a finite number > 0",
        f"{path}:5: agent.port=70000: Input should be less than or equal to 65535",
    ]


def test_a_table_given_as_json_names_its_variable_and_the_key(monkeypatch: pytest.MonkeyPatch, fleet_toml: Any) -> None:
    path = fleet_toml("[policy.deadlines_s]\ndrain = 60")
    for given in ('{"drain": 0}', '{"drain": "soon"}'):
        monkeypatch.setenv("LIFECYCLE_DEADLINES_S", given)
        with pytest.raises(
            ConfigurationError, match=r"^LIFECYCLE_DEADLINES_S.drain=(0|'soon'): must be a finite number"
        ):
            load(path)
    monkeypatch.setenv("LIFECYCLE_DEADLINES_S__PAUSE", "60")
    with pytest.raises(ConfigurationError, match=r"^LIFECYCLE_DEADLINES_S.drain='soon': must be a finite number"):
        load(path)
    monkeypatch.setenv("LIFECYCLE_DEADLINES_S", '{"drain": 70}')
    with pytest.raises(ConfigurationError, match=r"fleet.toml:2: policy.deadlines_s.pause=0: must be a finite number"):
        load(fleet_toml("[policy.deadlines_s]\npause = 0"))


def test_what_the_constructor_of_policy_refuses_is_refused_in_its_words(fleet_toml: Any) -> None:
    """One place for each rule: the settings ask Policy, and say beside its words where the value was given."""
    for field, value in (("settle_s", -1.0), ("residual_stable_s", -2.0), ("canary_tokens", -1)):
        with pytest.raises(ConfigurationError) as of_policy:
            Policy(**{field: value})
        with pytest.raises(ConfigurationError) as of_settings:
            load(fleet_toml(f"[policy]\n{field} = {value}"))
        rule = str(of_policy.value).removeprefix(f"{field} ").removesuffix(f", got {value}")
        assert str(of_settings.value).endswith(f"fleet.toml:2: policy.{field}={value}: {rule}")


def test_a_file_is_wrong_also_where_a_variable_replaces_the_value(
    monkeypatch: pytest.MonkeyPatch, fleet_toml: Any
) -> None:
    monkeypatch.setenv("LIFECYCLE_SETTLE_S", "7")
    with pytest.raises(ConfigurationError, match=r"fleet.toml:2: policy.settle_s=-1: must be a finite number > 0"):
        load(fleet_toml("[policy]\nsettle_s = -1"))


def test_text_is_a_number_in_a_variable_only(monkeypatch: pytest.MonkeyPatch, fleet_toml: Any) -> None:
    monkeypatch.setenv("LIFECYCLE_SETTLE_S", "7")
    assert load().settings.settle_s == 7.0
    with pytest.raises(ConfigurationError, match=r"fleet.toml:2: policy.settle_s='7': must be a finite number > 0"):
        load(fleet_toml("[policy]\nsettle_s = '7'"))


def test_a_setting_stands_in_its_own_table(fleet_toml: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"fleet.toml:2: launch.settle_s: no such setting"):
        load(fleet_toml("[launch]\nsettle_s = 7"))
    with pytest.raises(ConfigurationError, match=r"fleet.toml:1: launch=3: must be a table"):
        load(fleet_toml("launch = 3"))


def test_a_secret_under_a_mistyped_key_is_not_printed(fleet_toml: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"fleet.toml:2: agent.tokn: no such setting") as refused:
        load(fleet_toml("[agent]\ntokn = 'hunter2'"))
    assert "hunter2" not in str(refused.value)


def test_the_file_is_read_once(monkeypatch: pytest.MonkeyPatch, fleet_toml: Any) -> None:
    path, read, reads = fleet_toml("[policy]\nsettle_s = 7"), Path.read_text, []

    def counted(self: Path, *arguments: Any, **options: Any) -> str:
        reads.append(self)
        return read(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", counted)
    options = Options([str(path)])
    assert options.policy.settle_s == 7.0
    assert [engine.adapter.url for engine in options.fleet()] == ["loopback://127.0.0.1:1"]
    assert reads.count(path) == 1


@pytest.mark.parametrize(
    ("value", "mode"), [("torch", "torch"), ("TORCH", "preload"), ("", "preload"), ("x", "preload")]
)
def test_the_hook_mode_of_miles_follows_their_table(monkeypatch: pytest.MonkeyPatch, value: str, mode: str) -> None:
    monkeypatch.setenv("MILES_TMS_HOOK_MODE", value)
    assert load().settings.hook_mode == mode
    monkeypatch.setenv("LIFECYCLE_HOOK_MODE", "auto")
    assert load().settings.hook_mode == "auto"


@pytest.mark.parametrize(("value", "allowed"), [("1", True), ("0", False), ("true", False), ("", False)])
def test_the_escape_of_miles_is_exactly_1(monkeypatch: pytest.MonkeyPatch, value: str, allowed: bool) -> None:
    monkeypatch.setenv("MILES_TMS_ALLOW_PRELOAD_ON_BLACKWELL", value)
    assert load().settings.allow_preload_on_blackwell is allowed


def test_nested_settings_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_DEADLINES_S__DRAIN", "90")
    monkeypatch.setenv("LIFECYCLE_ACCEPT", '{"memory_returned": "acknowledged"}')
    policy = load().settings.policy()
    assert policy.deadline_s("drain") == 90.0
    assert policy.least_grade("memory_returned") is Grade.ACKNOWLEDGED


# the command line


def test_config_prints_values_and_origins(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setenv(MILES, "2.5")
    monkeypatch.setenv(TOKEN, "hunter2")
    monkeypatch.setenv("LIFECYCLE_RESIDUAL_TRESHOLD_GIB", "1")
    code, out = run(config)
    assert code == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert lines["residual_threshold_gib"] == ["residual_threshold_gib", "2.5", MILES]
    assert lines["settle_s"] == ["settle_s", "5.0", "default"]
    assert "hunter2" not in out
    assert "warning: LIFECYCLE_RESIDUAL_TRESHOLD_GIB is set, and is no setting" in out
    told = json.loads(run(config, "--json")[1])
    assert told["residual_threshold_gib"] == {"value": 2.5, "origin": MILES}


def test_a_token_that_is_wrong_is_not_printed(fleet_toml: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"agent\.token=a secret: Input should be a valid string") as refused:
        load(fleet_toml("[agent]\ntoken = 12345"))
    assert "12345" not in str(refused.value)
