"""A tensor push without a load format, which is verl's only way: pickled handles of torch's shared memory."""

from __future__ import annotations

import base64
import http.client
import io
import json
import pickle
import sys
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from lifecycle.adapters.loopback.checkpoint import open_checkpoint
from lifecycle.adapters.loopback.shape import ModelShape

MIB = 16
VERL = "sglang.srt.model_executor.model_runner"


@pytest.fixture(autouse=True)
def shared_by_name() -> Iterator[None]:
    """Tensors of a CPU reach a process that is no child of this one by file name alone."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    yield
    torch.multiprocessing.set_sharing_strategy(before)


@pytest.fixture
def engine() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=MIB, kv_mib=8, arguments=("--death-delay-s", "0.05")) as process:
        yield process
        process.kill()


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    shape = ModelShape.filling(MIB)
    checkpoint, found = open_checkpoint(str(path), shape), {}
    for name, extents in shape.tensors().items():
        array = np.empty(extents, dtype=np.float32)
        checkpoint.read(name, memoryview(array).cast("B"))
        found[name] = torch.from_numpy(array)
    return found


def serialized(value: object) -> bytes:
    """As SGLang's MultiprocessingSerializer. Source: sglang 0.5.23, utils/common.py."""
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(value)
    return buffer.getvalue()


def post(engine: LoopbackProcess, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def pushed(engine: LoopbackProcess, payload: bytes) -> tuple[int, Any]:
    assert post(engine, "/begin_weight_update", {})[0] == 200
    body = {"serialized_named_tensors": [base64.b64encode(payload).decode()], "weight_version": "v2"}
    return post(engine, "/update_weights_from_tensor", body)


def checksum(engine: LoopbackProcess) -> str:
    return str(post(engine, "/weights_checker", {"action": "checksum"})[1]["per_engine_checksum"])


@pytest.fixture
def of_each_rank(monkeypatch: pytest.MonkeyPatch) -> type:
    """SGLang's class of a tensor that was serialized for each rank, under its name."""

    class LocalSerializedTensor:
        def __init__(self, values: list[bytes]) -> None:
            self.values = values

    LocalSerializedTensor.__module__, LocalSerializedTensor.__qualname__ = VERL, "LocalSerializedTensor"
    for at in range(1, VERL.count(".") + 2):
        name = ".".join(VERL.split(".")[:at])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[VERL], "LocalSerializedTensor", LocalSerializedTensor, raising=False)
    return LocalSerializedTensor


@pytest.mark.parametrize("way", ["tensors", "parameters", "of each rank"])
def test_they_are_the_weights_afterwards(engine: LoopbackProcess, tmp_path: Path, of_each_rank: type, way: str) -> None:
    other = tensors(make_weights(tmp_path / "other.safetensors", seed=7, weights_mib=MIB))
    before = checksum(engine)
    wrap = {
        "tensors": lambda tensor: tensor,
        "parameters": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
        "of each rank": lambda tensor: of_each_rank([serialized(tensor)]),
    }[way]
    assert pushed(engine, serialized([(name, wrap(tensor)) for name, tensor in other.items()]))[0] == 200
    with LoopbackProcess.start(weights_mib=MIB, kv_mib=8, weights=tmp_path / "other.safetensors") as wanted:
        assert checksum(engine) == checksum(wanted) != before


def test_a_tensor_that_is_not_the_models_is_refused_and_nothing_changes(engine: LoopbackProcess) -> None:
    before = checksum(engine)
    for named in ([("lm_head", torch.zeros(2, 2))], [("nobody", torch.zeros(2))]):
        status, answer = pushed(engine, serialized(named))
        assert (status, answer["success"]) == (400, False)
        assert post(engine, "/end_weight_update", {})[0] == 200
    assert checksum(engine) == before


def test_a_payload_that_is_no_tensors_ends_the_engine(engine: LoopbackProcess) -> None:
    """As an exception in SGLang's scheduler does: nothing of what it names is called."""
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        pushed(engine, pickle.dumps(Path("/tmp")))
    engine.wait(20)


def test_without_a_session_nothing_is_read(engine: LoopbackProcess) -> None:
    body = {"serialized_named_tensors": ["AAAA"]}
    status, answer = post(engine, "/update_weights_from_tensor", body)
    assert (status, answer["success"]) == (400, False)
    assert "must run between" in answer["message"]
