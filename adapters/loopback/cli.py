"""`lifecycle engine`: starts the loopback engine, which prints its URL and process ids as one JSON line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .dialect import SGLANG, TOKENSPEED, VLLM
from .options import EngineOptions, parse
from .shape import RankConfig

if TYPE_CHECKING:
    from .pipeline import Pipeline

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(argv: list[str] | None = None) -> int:
    """Runs the command. Returns 0 after a clean exit, 2 where an argument is invalid or a needed package is missing."""
    options = parse(argv)
    for name in _THREADS:
        os.environ[name] = "1"  # before NumPy is imported: threaded matrix products differ in their last bits
    try:
        return _serve(options) if options.make_weights is None else _make(options, options.make_weights)
    except ModuleNotFoundError as missing:
        return _fail(f"the loopback engine needs the package {missing.name!r}; pip install engine-lifecycle", 2)


def _make(options: EngineOptions, path: str) -> int:
    from .checkpoint import make_weights

    try:
        print(make_weights(path, seed=options.seed, weights_mib=options.weights_mib))
    except OSError as error:
        return _fail(f"cannot write {path}: {error.strerror or error}", 2)
    return 0


def _serve(options: EngineOptions) -> int:
    pipelines = [_start_ranks(options) for _ in range(options.data_parallel_size)]
    # Importing the web framework takes a while; the processes of the ranks start meanwhile.
    from .engine import BadWeights
    from .server import serve

    try:
        serve(options, pipelines)
    except BadWeights as error:
        return _fail(f"--weights: {error}", 2)
    except OSError as error:
        return _fail(str(error), 2)
    return 0


def _start_ranks(options: EngineOptions) -> Pipeline:
    from .pipeline import Pipeline

    # What sleep level 1 needs, and what tokenspeed always has.
    keeps = options.memory_saver and options.dialect.engine in (VLLM, TOKENSPEED)
    own_process = options.dialect.engine != SGLANG
    return Pipeline(
        RankConfig(
            rank=0,
            ranks=options.ranks,
            weights_mib=options.weights_mib,
            kv_mib=options.kv_mib,
            memory_saver=options.memory_saver,
            weights_backup=options.weights_backup or keeps,
            in_child=own_process,
            faults_when_unmapped=own_process,
        )
    )


def _fail(message: str, status: int) -> int:
    print(f"lifecycle engine: {message}", file=sys.stderr)
    return status
