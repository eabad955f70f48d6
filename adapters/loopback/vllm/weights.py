"""The weights of one engine core: reloaded in place, pushed in a session, and their checksums. Core's thread only.

Source: vllm 0.32.0, v1/worker/gpu_worker.py and model_executor/model_loader/reload; observed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint import BadCheckpoint, blob_offsets
from ..faults import FaultHook
from ..options import EngineOptions
from ..pipeline import Pipeline
from ..shape import ModelShape

_NOT_CONFIGURED = "Weight transfer not configured. Please set weight_transfer_config to enable weight transfer."


class Weights:
    """Reloads and updates weights on every rank. The prefix cache is never emptied by that. Exceptions are answered."""

    def __init__(
        self, pipeline: Pipeline, shape: ModelShape, faults: FaultHook, model_path: str, options: EngineOptions
    ) -> None:
        self.version = "default"
        self.model_path = model_path
        self._pipeline = pipeline
        self._shape = shape
        self._faults = faults
        self._transfer = options.weight_transfer
        self._updating = False

    def rpc(self, method: str, kwargs: Mapping[str, Any]) -> list[Any]:  # [ranks]
        """What the method returns on each worker."""
        match method:
            case "reload_weights":
                return self.reload(kwargs.get("weights_path"))
            case "compute_weight_checksums":
                return self.checksums()
            case "reset_weights":
                return self._pipeline.collective_rpc("reset_tensors")
            case "check_health":
                return [None] * self._pipeline.size
        raise NotImplementedError(f"Method {method!r} is not implemented.")

    def reload(self, path: str | None) -> list[None]:
        """Reads the weights from the path, or from the one of the last reload, also of one that failed.

        Source: vllm 0.32.0, model_loader/reload/inplace.py sets the path of the model before it loads.
        """
        self.model_path = path or self.model_path
        if not self._faults.has("update", "label"):
            _raise_first(self._pipeline.collective_rpc("reload", self.model_path))
        return [None] * self._pipeline.size

    def checksums(self, core: int = 0) -> list[dict[str, str]]:  # [ranks]
        """The checksums of each rank's tensors."""
        ranks = enumerate(self._pipeline.collective_rpc("checksums"))
        return [{f"dp{core}:pp{rank}:pcp0:tp0:{name}": each for name, each in found.items()} for rank, found in ranks]

    def init(self) -> None:
        """Accepts a trainer, where transfer is configured."""
        if not self._transfer:
            raise RuntimeError(_NOT_CONFIGURED)

    def start(self) -> None:
        """Opens an update, or refuses where one is open."""
        self.init()
        if self._updating:
            message = "start_weight_update called while a weight update is already active. "
            raise RuntimeError(message + "Call finish_weight_update first.")
        self._updating = True

    def update(self, update_info: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Copies pushed tensors into the weights: `{"safetensors": [blobs in base64]}`, which is this engine's own.

        One that fails closes the update.
        """
        self.init()
        if not self._updating:
            raise RuntimeError("start_weight_update must be called before update_weights.")
        try:
            self._push(update_info)
        except BaseException:
            self._updating = False
            raise

    def _push(self, update_info: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        chunk = update_info if isinstance(update_info, Mapping) else update_info[0]
        blobs = [base64.b64decode(blob, validate=True) for blob in chunk.get("safetensors", ())]
        for blob in blobs:
            self._check(blob)
        for blob in blobs:
            _raise_first(self._pipeline.collective_rpc("push", blob))

    def finish(self) -> None:
        """Closes the update."""
        self.init()
        if not self._updating:
            raise RuntimeError("finish_weight_update called without a matching start_weight_update.")
        self._updating = False

    def shutdown(self) -> None:
        """Lets the trainer go."""
        if self._updating:
            raise RuntimeError("Cannot release a trainer connection during a weight update")

    def _check(self, blob: bytes) -> None:
        try:
            blob_offsets(blob, self._shape)
        except BadCheckpoint as error:
            raise RuntimeError(str(error)) from error


def _raise_first(reasons: Sequence[str | None]) -> None:
    for reason in reasons:
        if reason:
            raise RuntimeError(reason)
