"""Tensors as trainers push them with load_format None: pickled handles of torch's shared memory. Needs torch.

Source: sglang 0.5.23, utils/common.py (MultiprocessingSerializer, SafeUnpickler), model_executor/
model_runner_components/weight_updater.py (LocalSerializedTensor), managers/tp_worker.py (deserialize_own_rank). A list
has one payload for each tensor-parallel rank, of which there is one here. In it are pairs of a name and a tensor, or a
tensor that was serialized apart for each rank. On a CPU the pusher must share by file name, since a handle by file
descriptor is for its own children: `torch.multiprocessing.set_sharing_strategy("file_system")`.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
from dataclasses import dataclass
from typing import Any

from ..checkpoint import blob_of

_RANK = 0

#: What a payload may name; anything else ends the engine, as an exception in the scheduler does.
_ALLOWED = frozenset(
    {
        ("torch", "Size"),
        ("torch", "Tensor"),
        ("torch", "float32"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.storage", "UntypedStorage"),
        ("torch.multiprocessing.reductions", "rebuild_storage_filename"),
        ("torch.multiprocessing.reductions", "rebuild_storage_fd"),
        ("torch.multiprocessing.reductions", "rebuild_tensor"),
        ("torch.multiprocessing.reductions", "rebuild_typed_storage"),
        ("multiprocessing.resource_sharer", "DupFd"),
    }
)


@dataclass
class LocalSerializedTensor:
    """A tensor that was serialized for each rank; the class of this name in a payload is SGLang's."""

    values: list[bytes]


def is_possible() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def as_blob(payloads: list[bytes]) -> bytes:
    """The tensors of this rank's payload as a safetensors blob."""
    named = _load(payloads[_RANK])
    return blob_of({name: _tensor(value).detach().cpu().numpy() for name, value in named})


def _tensor(value: Any) -> Any:
    return _load(value.values[_RANK]) if isinstance(value, LocalSerializedTensor) else value


def _load(payload: bytes) -> Any:
    import torch.multiprocessing.reductions  # noqa: F401 - which tells the pickle of a storage how it is rebuilt

    return _Unpickler(io.BytesIO(payload)).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "LocalSerializedTensor" and module.startswith("sglang."):
            return LocalSerializedTensor
        if (module, name) not in _ALLOWED:
            raise RuntimeError(f"Blocked unsafe class loading ({module}.{name})")
        return super().find_class(module, name)
