"""What miles and rlix promise of hook mode, offload default and threshold, through the names that they import."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from residual.stand_in_nvml import GIB, StandInNvml, gpu

from lifecycle import (
    ConfigurationError,
    HookModeUnsafe,
    Policy,
    Unmeasurable,
    apply_offload_defaults,
    parse_env_positive_float,
    require_safe_hook_mode,
)
from lifecycle.launch.environment import launch_environment
from lifecycle.launch.miles import forwarded
from lifecycle.nodes import hook_mode
from lifecycle.nodes.driver import NvmlDriver
from lifecycle.nodes.hook_mode import resolve_hook_mode
from lifecycle.settings.schema import Settings, load

pytestmark = pytest.mark.usefixtures("bare_environment")

MODE, ESCAPE = "MILES_TMS_HOOK_MODE", "MILES_TMS_ALLOW_PRELOAD_ON_BLACKWELL"
OUR_MODE = "LIFECYCLE_HOOK_MODE"
THRESHOLD, OUR_THRESHOLD = "MILES_MAX_RESIDUAL_GPU_MEM_GB", "LIFECYCLE_RESIDUAL_THRESHOLD_GIB"

HOPPER, B200, RTX5090 = ("NVIDIA H100", 9, 0), ("NVIDIA B200", 10, 0), ("NVIDIA RTX 5090", 12, 0)

#: All of these mean preload: unset, empty, preload itself, any other value, and torch in another case.
MEANS_PRELOAD = [None, "", "preload", "auto", "Torch", "TORCH ", "nonsense"]
UNSAFE_WHEELS = ["12.9", "11.8", None, "", "twelve"]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., NvmlDriver]:
    """A host with these GPUs (name, compute capability), whose torch wheel is for this CUDA version."""

    def of(*gpus: tuple[str, int, int], cuda: str | None = "12.9") -> NvmlDriver:
        monkeypatch.setattr(hook_mode, "installed_cuda", lambda: cuda)
        cards = [gpu(index, name=name, capability=[major, minor]) for index, (name, major, minor) in enumerate(gpus)]
        return NvmlDriver(StandInNvml.of(*cards))

    return of


def environ(mode: str | None, escape: str | None = None, **others: str) -> dict[str, str]:
    """An environment in which these variables are set; None leaves one unset."""
    given = {MODE: mode, ESCAPE: escape, **others}
    return {name: value for name, value in given.items() if value is not None}


# the hook mode, row by row


@pytest.mark.parametrize("mode", ["torch", *MEANS_PRELOAD])
def test_without_a_gpu_every_mode_passes(host: Any, mode: str | None) -> None:
    require_safe_hook_mode(environ(mode), nvml=host())


@pytest.mark.parametrize("cuda", [*UNSAFE_WHEELS, "13.0"])
@pytest.mark.parametrize("card", [HOPPER, B200, RTX5090], ids=lambda card: card[0])
def test_mode_torch_passes_on_every_gpu_and_wheel(host: Any, card: Any, cuda: str | None) -> None:
    require_safe_hook_mode(environ("torch"), nvml=host(card, cuda=cuda))


@pytest.mark.parametrize("cuda", UNSAFE_WHEELS)
@pytest.mark.parametrize("mode", MEANS_PRELOAD)
def test_preload_passes_below_compute_capability_10(host: Any, mode: str | None, cuda: str | None) -> None:
    require_safe_hook_mode(environ(mode), nvml=host(HOPPER, cuda=cuda))


@pytest.mark.parametrize("cuda", ["13", "13.0", "14.1"])
@pytest.mark.parametrize("mode", MEANS_PRELOAD)
def test_preload_on_blackwell_passes_with_a_cuda_13_wheel_and_is_logged(
    host: Any, mode: str | None, cuda: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        require_safe_hook_mode(environ(mode), nvml=host(B200, cuda=cuda))
    assert [(record.levelname, f"CUDA {cuda}" in record.message) for record in caplog.records] == [("INFO", True)]


@pytest.mark.parametrize("cuda", UNSAFE_WHEELS)
@pytest.mark.parametrize("mode", MEANS_PRELOAD)
def test_the_escape_variable_lets_preload_pass_with_a_warning(
    host: Any, mode: str | None, cuda: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    require_safe_hook_mode(environ(mode, "1"), nvml=host(B200, cuda=cuda))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{ESCAPE}=1" in caplog.text


@pytest.mark.parametrize("cuda", UNSAFE_WHEELS)
@pytest.mark.parametrize("mode", MEANS_PRELOAD)
def test_preload_on_blackwell_is_a_runtime_error_with_any_other_wheel(
    host: Any, mode: str | None, cuda: str | None
) -> None:
    with pytest.raises(RuntimeError):
        require_safe_hook_mode(environ(mode), nvml=host(B200, cuda=cuda))


@pytest.mark.parametrize("escape", ["", "0", "2", "01", " 1", "1 ", "true", "yes"])
def test_only_exactly_1_is_the_escape(host: Any, escape: str) -> None:
    with pytest.raises(RuntimeError):
        require_safe_hook_mode(environ("preload", escape), nvml=host(B200))


@pytest.mark.parametrize("order", [(HOPPER, RTX5090), (RTX5090, HOPPER)], ids=["second", "first"])
def test_every_visible_device_is_checked(host: Any, order: Any) -> None:
    nvml = host(*order)
    with pytest.raises(RuntimeError, match="RTX 5090"):
        require_safe_hook_mode(environ(None), nvml=nvml)
    only_hopper = str(order.index(HOPPER))
    visible = {"CUDA_VISIBLE_DEVICES": only_hopper, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    require_safe_hook_mode(environ(None, **visible), nvml=nvml)


@pytest.mark.parametrize(("mode", "setting"), [(None, f"{MODE} is unset"), ("Torch", f"{MODE} is 'Torch'")])
@pytest.mark.parametrize(("cuda", "wheel"), [("12.9", "CUDA 12.9 wheels"), (None, "CUDA unknown wheels")])
def test_the_refusal_names_gpu_wheel_setting_and_remedies(
    host: Any, mode: str | None, setting: str, cuda: str | None, wheel: str
) -> None:
    with pytest.raises(HookModeUnsafe) as refused:
        require_safe_hook_mode(environ(mode), nvml=host(HOPPER, RTX5090, cuda=cuda))
    message = str(refused.value)
    remedies = [f"set {MODE}=torch", "torch wheel for CUDA 13 or later", f"set {ESCAPE}=1"]
    for part in ("NVIDIA RTX 5090 (sm_120)", wheel, setting, *remedies):
        assert part in message


def test_the_environment_is_read_at_the_call(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = host(B200)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(RuntimeError):
        require_safe_hook_mode(nvml=nvml)
    monkeypatch.setenv(MODE, "torch")
    require_safe_hook_mode(nvml=nvml)
    monkeypatch.setenv(MODE, "preload")
    monkeypatch.setenv(ESCAPE, "1")
    require_safe_hook_mode(nvml=nvml)


def test_an_unsafe_mode_is_an_exception_of_both_kinds() -> None:
    assert issubclass(HookModeUnsafe, RuntimeError)
    assert issubclass(HookModeUnsafe, ConfigurationError)


# the mode chosen automatically: their open wish


@pytest.mark.parametrize("variables", [{}, {OUR_MODE: "auto"}, {OUR_MODE: "auto", MODE: "preload"}])
@pytest.mark.parametrize(
    ("cards", "cuda", "mode"),
    [
        ([], None, "preload"),
        ([HOPPER], "12.9", "preload"),
        ([B200], "13.0", "preload"),
        ([B200], "12.9", "torch"),
        ([B200], None, "torch"),
        ([HOPPER, RTX5090], "12.9", "torch"),
    ],
)
def test_auto_is_torch_only_where_preload_is_unsafe(
    host: Any, variables: dict[str, str], cards: Any, cuda: str | None, mode: str
) -> None:
    assert resolve_hook_mode(variables, nvml=host(*cards, cuda=cuda)) == mode


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({OUR_MODE: "preload"}, "preload"),
        ({OUR_MODE: "torch"}, "torch"),
        ({OUR_MODE: "torch", MODE: "preload"}, "torch"),
        ({MODE: "torch"}, "torch"),
        *[({MODE: value}, "preload") for value in MEANS_PRELOAD if value is not None],
    ],
)
def test_a_mode_that_is_set_is_the_mode(host: Any, variables: dict[str, str], mode: str) -> None:
    assert resolve_hook_mode(variables, nvml=host(B200)) == mode


@pytest.mark.parametrize("value", ["", "Torch", "nonsense"])
def test_an_unknown_value_of_our_variable_is_a_runtime_error(host: Any, value: str) -> None:
    with pytest.raises(RuntimeError, match="one of auto, torch, preload"):
        resolve_hook_mode({OUR_MODE: value}, nvml=host(HOPPER))


def test_the_mode_is_resolved_from_this_process_by_default(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = host(B200)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert resolve_hook_mode(nvml=nvml) == "torch"
    monkeypatch.setenv(MODE, "preload")
    assert resolve_hook_mode(nvml=nvml) == "preload"


def test_gpus_that_cannot_be_queried_get_the_mode_that_is_safe_on_all(
    host: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable = Unmeasurable(reason="the driver does not answer")
    monkeypatch.setattr(hook_mode, "visible_gpus", lambda *args, **how: unreadable)
    assert resolve_hook_mode({}) == "torch"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the driver does not answer" in caplog.text
    assert resolve_hook_mode({MODE: "preload"}) == "preload", "what is set needs no GPU"


@pytest.mark.parametrize("mode", ["torch", "preload"])
@pytest.mark.parametrize("kind", ["sglang", "torch"])
def test_the_mode_reaches_every_process_under_both_names(kind: Any, mode: Any) -> None:
    variables = launch_environment(kind, mode, "12.9", {}, spawned=True).variables
    assert (variables[MODE], variables[OUR_MODE]) == (mode, mode)


# the offload default of rlix


def after(control_plane: str | None, **attributes: Any) -> dict[str, Any]:
    """The attributes of `args` after the defaults were applied with this RLIX_CONTROL_PLANE."""
    args = SimpleNamespace(**attributes)
    apply_offload_defaults(args, {} if control_plane is None else {"RLIX_CONTROL_PLANE": control_plane})
    return vars(args)


@pytest.mark.parametrize("attributes", [{"offload_rollout": False}, {}], ids=["false", "missing"])
def test_rlix_forces_the_offload_of_rollout_engines(attributes: dict[str, Any]) -> None:
    assert after("rlix", **attributes) == {"offload_rollout": True}


@pytest.mark.parametrize("offload", [True, False])
def test_offload_stays_as_it_is_without_a_control_plane(offload: bool) -> None:
    assert after(None, offload_rollout=offload) == {"offload_rollout": offload}


@pytest.mark.parametrize("control_plane", ["", "RLIX", "rlix ", "ray", "1"])
def test_offload_stays_as_it_is_under_another_control_plane(control_plane: str) -> None:
    assert after(control_plane, offload_rollout=False) == {"offload_rollout": False}


def test_applying_the_defaults_twice_is_applying_them_once() -> None:
    args = SimpleNamespace(offload_rollout=False)
    changed = [apply_offload_defaults(args, {"RLIX_CONTROL_PLANE": "rlix"}) for _ in range(2)]
    assert (changed, args.offload_rollout) == ([True, False], True)


@pytest.mark.parametrize("offload_train", [True, False])
def test_the_offload_of_the_trainer_is_not_decided_here(offload_train: bool) -> None:
    assert after("rlix", offload_train=offload_train) == {"offload_train": offload_train, "offload_rollout": True}


def test_the_control_plane_is_read_from_this_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLIX_CONTROL_PLANE", "rlix")
    args = SimpleNamespace()
    assert apply_offload_defaults(args)
    assert args.offload_rollout is True


# the residual threshold: number, default, forwarding, argument


def test_an_unset_variable_gives_the_default() -> None:
    assert parse_env_positive_float(THRESHOLD, 3.0) == 3.0


@pytest.mark.parametrize(("text", "value"), [("7", 7.0), ("2.25", 2.25), ("1e1", 10.0)])
def test_a_set_variable_is_read_at_the_call(monkeypatch: pytest.MonkeyPatch, text: str, value: float) -> None:
    monkeypatch.setenv(THRESHOLD, text)
    assert parse_env_positive_float(THRESHOLD, 3.0) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be a number"),
        ("three", "must be a number"),
        ("3GB", "must be a number"),
        ("nan", "must be a finite number"),
        ("inf", "must be a finite number"),
        ("-Infinity", "must be a finite number"),
        ("0", "must be > 0"),
        ("-0.0", "must be > 0"),
        ("-3", "must be > 0"),
    ],
)
def test_a_bad_number_is_a_runtime_error_that_names_variable_and_value(text: str, problem: str) -> None:
    with pytest.raises(RuntimeError) as refused:
        parse_env_positive_float(THRESHOLD, 3.0, {THRESHOLD: text})
    assert str(refused.value) == f"{THRESHOLD} {problem}, got {text!r}"


@pytest.mark.parametrize("variable", [THRESHOLD, OUR_THRESHOLD])
@pytest.mark.parametrize("text", ["nan", "inf", "0", "3GB"])
def test_a_bad_threshold_in_the_settings_is_a_runtime_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(RuntimeError, match=f"{variable}='{text}'"):
        load()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, -1.0])
def test_a_bad_threshold_as_argument_is_a_runtime_error(value: float) -> None:
    with pytest.raises(RuntimeError, match="residual_threshold_gib"):
        Policy(residual_threshold_gib=value)


def test_the_default_threshold_is_3_gib() -> None:
    assert (Policy().threshold_bytes, Settings().policy().threshold_bytes) == (3 * GIB, 3 * GIB)


@pytest.mark.parametrize("threshold_gib", [1.75, 7.0, 13.0, 0.1 + 0.2])
def test_the_threshold_is_forwarded_to_other_processes_unchanged(
    monkeypatch: pytest.MonkeyPatch, threshold_gib: float
) -> None:
    variables = Settings(residual_threshold_gib=threshold_gib).environment()
    assert variables.items() >= forwarded(threshold_gib).items()
    assert set(forwarded(threshold_gib)) == {THRESHOLD, OUR_THRESHOLD}
    for name in (THRESHOLD, OUR_THRESHOLD):
        with monkeypatch.context() as other_process:
            other_process.setenv(name, variables[name])
            assert load().settings.residual_threshold_gib == threshold_gib
            assert parse_env_positive_float(name, 3.0) == threshold_gib


def test_the_threshold_is_an_argument_of_the_policy_and_changes_nothing_else() -> None:
    given, default = Policy(residual_threshold_gib=7.0), Policy()
    changed = [field.name for field in fields(Policy) if getattr(given, field.name) != getattr(default, field.name)]
    assert changed == ["residual_threshold_gib"]
    assert given.threshold_bytes == 7 * GIB
