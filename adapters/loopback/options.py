"""The engine's command line, parsed into one value."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields
from typing import NoReturn

from .dialect import SGLANG_DIALECT, TOKENSPEED, VERSIONS, VLLM, Dialect, parse_dialect
from .faults import parse_fault
from .shape import KV_MIB_LEAST, RANKS_ALLOWED, WEIGHTS_MIB_LEAST


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options with which the engine was started."""

    dialect: Dialect = SGLANG_DIALECT
    host: str = "127.0.0.1"
    port: int = 0
    weights_mib: int = 192
    kv_mib: int = 192
    ranks: int = 1
    memory_saver: bool = False
    weights_backup: bool = False
    weights: str | None = None
    seed: int = 0
    api_key: str | None = None
    admin_api_key: str | None = None
    fault: tuple[str, ...] = ()
    allow_faults: bool = False
    enable_metrics: bool = False
    disaggregation_mode: str = "null"
    max_running_requests: int = 16
    context_length: int = 4096
    step_delay_s: float = 0.0
    death_delay_s: float = 0.3
    health_timeout_s: float = 20.0
    health_poll_s: float = 1.0
    abort_poll_s: float = 1.0
    watchdog_timeout_s: float = 300.0
    shutdown_timeout_s: float | None = None
    die_with_stdin: bool = False
    make_weights: str | None = None
    # vLLM's dialect alone
    cpu_like: bool = False
    dev_mode: bool = True
    load_tracking: bool = False
    max_num_queued_reqs: int | None = None
    data_parallel_size: int = 1
    weight_transfer: bool = False
    fault_tolerance: bool = False
    recovery_timeout_s: float = 120.0
    # tokenspeed's dialect alone
    weight_store: str | None = None
    rebalance_s: float | None = None


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints the reason in one line and exits with status 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def parse(argv: list[str] | None) -> EngineOptions:
    """The options that the arguments give; exits with status 2 where they are invalid."""
    parser = _build()
    chosen = vars(parser.parse_args(argv))
    options = EngineOptions(**{field.name: chosen[field.name] for field in fields(EngineOptions)})
    if refused := _refusal(options):
        parser.error(refused)
    return options


def _refusal(options: EngineOptions) -> str | None:
    if options.weights_mib < WEIGHTS_MIB_LEAST:
        return f"--weights-mib must be at least {WEIGHTS_MIB_LEAST}"
    if options.kv_mib < KV_MIB_LEAST:
        return f"--kv-mib must be at least {KV_MIB_LEAST}"
    if not 0 <= options.port < 65536:
        return f"--port {options.port} is not a port"
    if options.seed < 0 or options.max_running_requests < 1 or options.context_length < 1:
        return "--seed must not be negative, --max-running-requests and --context-length must be positive"
    if options.weights_backup and not options.memory_saver:
        return "--weights-backup needs --memory-saver"
    return _refusal_by_dialect(options)


def _refusal_by_dialect(options: EngineOptions) -> str | None:
    for engine, only in _ONLY.items():
        given = [flag for name, flag in only.items() if getattr(options, name) != getattr(_DEFAULTS, name)]
        if given and options.dialect.engine != engine:
            return f"{given[0]} needs --dialect {engine}"
    if options.cpu_like and options.memory_saver:
        return "Sleep mode is not supported on current platform."  # Source: vllm 0.32.0, config/model.py
    if options.data_parallel_size < 1 or (options.max_num_queued_reqs or 1) < 1:
        return "--data-parallel-size and --max-num-queued-reqs must be positive"
    if options.fault_tolerance and options.data_parallel_size > 1:  # Source: vllm 0.32.0, engine/arg_utils.py
        return "Fault tolerance requires external load balancer mode: an engine for each data-parallel rank"
    return None


def _dialect(text: str) -> Dialect:
    try:
        return parse_dialect(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _fault(text: str) -> str:
    try:
        parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _build() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="lifecycle engine", allow_abbrev=False, description="A small real inference server.")
    _add_model_arguments(parser)
    _add_server_arguments(parser)
    _add_timing_arguments(parser)
    _add_vllm_arguments(parser)
    _add_tokenspeed_arguments(parser)
    parser.set_defaults(**{field.name: field.default for field in fields(EngineOptions) if field.name != "fault"})
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    versions = "; ".join(f"{engine}: {', '.join(each)}" for engine, each in VERSIONS.items())
    add("--dialect", type=_dialect, metavar="ENGINE[:VERSION]", help=f"whose HTTP API it has ({versions})")
    add("--weights-mib", type=int, help="size of the weights (%(default)s)")
    add("--kv-mib", type=int, help="size of the KV pool (%(default)s)")
    add("--ranks", type=int, choices=RANKS_ALLOWED, help="pipeline ranks; above 1 each is a process")
    saver = ("--memory-saver", "--enable-memory-saver", "--enable-sleep-mode")  # SGLang's name and vLLM's
    add(*saver, action="store_true", help="release and resume return and map memory")
    add("--weights-backup", action="store_true", help="keep the weights' contents across a release")
    add("--weights", metavar="PATH", help="a checkpoint; default: one made from the seed")
    add("--seed", type=int, help="the seed of the weights")
    add("--make-weights", metavar="PATH", help="write a checkpoint of --weights-mib made from --seed, and exit")
    add("--max-running-requests", type=int)
    add("--context-length", type=int)
    add("--disaggregation-mode", choices=("null", "prefill", "decode"), help="only reported")


def _add_server_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host")
    add("--port", type=int, help="0: a free one (%(default)s)")
    add("--api-key", help="for the normal endpoints")
    add("--admin-api-key", help="for the control endpoints")
    add("--enable-metrics", action="store_true")
    add("--fault", type=_fault, action="append", default=[], metavar="NAME=VALUE", help="misbehave; repeatable")
    add("--allow-faults", action="store_true", help="serve POST /_fault")
    add("--die-with-stdin", action="store_true", help="kill the process tree when standard input is closed")


def _add_timing_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--step-delay-s", type=float, help="added to each step, to be as slow as a larger model")
    add("--death-delay-s", type=float, help="from a failed assertion until the process tree is killed")
    add("--health-timeout-s", type=float)
    add("--health-poll-s", type=float)
    add("--abort-poll-s", type=float, help="how often an abort pause checks whether all requests have ended")
    add(
        "--shutdown-timeout-s",
        type=float,
        help="from SIGTERM until requests that have not ended are dropped (3; others: 0)",
    )
    add("--watchdog-timeout-s", type=float, help="a batch that makes no progress for this long kills the engine")


def _add_vllm_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vLLM's dialect")
    add = group.add_argument
    add("--cpu-like", action="store_true", help="as on a CPU: sleep and wake free and map nothing, and answer 200")
    add("--no-dev-mode", dest="dev_mode", action="store_false", help="as without VLLM_SERVER_DEV_MODE=1")
    tracking = ("--load-tracking", "--enable-server-load-tracking")  # the second is vLLM's name
    add(*tracking, action="store_true", help="/load counts requests; else it is always 0")
    add("--max-num-queued-reqs", type=int, help="requests beyond this number get 503")
    add("--data-parallel-size", type=int, help="engine cores, each with ranks and memory of its own")
    add("--weight-transfer", action="store_true", help="pushed safetensors are taken by the weight-transfer endpoints")
    tolerance = ("--fault-tolerance", "--enable-fault-tolerance")  # the second is vLLM's name
    add(*tolerance, action="store_true", help="an engine core that fails waits for a repair; /fault_tolerance/status")
    add("--recovery-timeout-s", type=float, help="how long it waits before it ends (%(default)s)")


def _add_tokenspeed_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tokenspeed's dialect")
    add = group.add_argument
    add("--weight-store", metavar="DIR", help="a folder of checkpoints, VERSION.safetensors, for a load from Mooncake")
    add("--rebalance-s", type=float, help="as with --enable-eplb: how long a rebalance of experts takes")


_VLLM_ONLY = {
    "cpu_like": "--cpu-like",
    "dev_mode": "--no-dev-mode",
    "load_tracking": "--load-tracking",
    "max_num_queued_reqs": "--max-num-queued-reqs",
    "data_parallel_size": "--data-parallel-size",
    "weight_transfer": "--weight-transfer",
    "fault_tolerance": "--fault-tolerance",
    "recovery_timeout_s": "--recovery-timeout-s",
}
_TOKENSPEED_ONLY = {"weight_store": "--weight-store", "rebalance_s": "--rebalance-s"}
_ONLY = {VLLM: _VLLM_ONLY, TOKENSPEED: _TOKENSPEED_ONLY}
_DEFAULTS = EngineOptions()
