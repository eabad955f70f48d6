"""The loopback engine: a small inference server that speaks SGLang's HTTP control API or vLLM's, and its adapter.

It computes tokens from weights, returns released memory to the operating system, and exits on the calls on which the
engine exits whose dialect it speaks: `sglang` has what differs from sglang 0.5.23, `vllm` what differs from vLLM. From
both it differs in these points:

- decoding is greedy at every temperature; tokens are bytes; EOS is never chosen;
- ranks are pipeline-parallel, not tensor-parallel, so that the output does not depend on their number.

Public names are imported on first use: importing this package imports neither NumPy nor a web framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import make_weights
    from .process import LoopbackProcess, StartFailed

__all__ = ["LoopbackAdapter", "LoopbackProcess", "StartFailed", "make_weights"]

#: The module of each public name.
_MODULES = {
    "LoopbackAdapter": ".adapter",
    "LoopbackProcess": ".process",
    "StartFailed": ".process",
    "make_weights": ".checkpoint",
}


def __getattr__(name: str) -> Any:
    """Imports the module of a public name and returns what has that name in it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
