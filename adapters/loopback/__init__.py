"""The loopback engine: a small real inference server with SGLang's control surface, and its adapter.

It computes tokens, owns memory that it really gives back to the operating system, and dies of the calls that SGLang
dies of. Where it knowingly departs from sglang 0.5.23:

- decoding is greedy, whatever the temperature; tokens are bytes; EOS is never chosen;
- ranks are a pipeline, not tensor-parallel, so that their number does not change one bit of the output;
- `/update_weights_from_tensor` takes safetensors blobs in base64 (`load_format: "safetensors"`), not pickled torch
  handles, and there is no `/update_weights_from_distributed`;
- released memory reads as zeros and can be written, where a GPU faults; what is written there is lost at the resume;
- a prefill or decode role is only reported;
- `/v1/loads` is published after every step, where SGLang may be some steps behind.

Names are loaded on first use: importing this package imports neither NumPy nor a web framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import make_weights
    from .process import LoopbackProcess, StartFailed

__all__ = ["LoopbackAdapter", "LoopbackProcess", "StartFailed", "make_weights"]

_HOME = {
    "LoopbackAdapter": ".adapter",
    "LoopbackProcess": ".process",
    "StartFailed": ".process",
    "make_weights": ".checkpoint",
}


def __getattr__(name: str) -> Any:
    """The public name, from the module that holds it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)
