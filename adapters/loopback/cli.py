"""`lifecycle engine`: starts the loopback engine and says where it is in one JSON line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .options import EngineOptions, parse
from .shape import RankConfig

if TYPE_CHECKING:
    from .pipeline import Pipeline

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(argv: list[str] | None = None) -> int:
    """0 after a clean exit, 2 after a bad argument."""
    options = parse(argv)
    for name in _THREADS:
        os.environ[name] = "1"  # before NumPy: a threaded product need not give the same bits twice
    if options.make_weights is not None:
        return _make(options, options.make_weights)
    return _serve(options)


def _make(options: EngineOptions, path: str) -> int:
    from .checkpoint import make_weights

    try:
        print(make_weights(path, seed=options.seed, weights_mib=options.weights_mib))
    except OSError as error:
        return _fail(f"cannot write {path}: {error.strerror or error}", 2)
    return 0


def _serve(options: EngineOptions) -> int:
    pipeline = _start_ranks(options)
    # The web framework is imported while the ranks' processes start: both take a while.
    from .engine import BadWeights
    from .server import serve

    try:
        serve(options, pipeline)
    except BadWeights as error:
        return _fail(f"--weights: {error}", 2)
    except OSError as error:
        return _fail(str(error), 2)
    return 0


def _start_ranks(options: EngineOptions) -> Pipeline:
    from .pipeline import Pipeline

    return Pipeline(
        RankConfig(
            rank=0,
            ranks=options.ranks,
            weights_mib=options.weights_mib,
            kv_mib=options.kv_mib,
            memory_saver=options.memory_saver,
            weights_backup=options.weights_backup,
        )
    )


def _fail(message: str, status: int) -> int:
    print(f"lifecycle engine: {message}", file=sys.stderr)
    return status
