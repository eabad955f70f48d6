"""Replaces the weights of a running engine: from a checkpoint, or by pushed safetensors blobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..checkpoint import BadCheckpoint, blob_offsets, open_checkpoint
from ..pipeline import Pipeline
from ..shape import ModelShape

_LOAD_FORMATS = (None, "auto", "safetensors")
NOT_FLUSHED = (
    "Weights were updated, but the cache was not flushed because requests are still running or queued. "
    "Retract or finish them, then call /flush_cache."
)
SESSION_OPEN = "a weight-update session is already open; call end_weight_update() first"
NO_SESSION = "no weight-update session is open; call begin_weight_update() first"
OUTSIDE = "update_weights_from_tensor must run between begin_weight_update() and end_weight_update()"


@dataclass(frozen=True, slots=True)
class Updated:
    """The result of an update, as the endpoint answers it."""

    success: bool
    message: str


class WeightUpdater:
    """Loads weights on every rank, and flushes the prefix cache where the request says so."""

    def __init__(
        self,
        pipeline: Pipeline,
        shape: ModelShape,
        flush: Callable[[], bool],
        relabel: Callable[[str | None], None],
        *,
        sessions: bool = True,
    ) -> None:
        self._pipeline = pipeline
        self._shape = shape
        self._flush = flush
        self._relabel = relabel
        self._sessions = sessions
        self._session = False

    def from_disk(self, path: str, load_format: str | None, *, flush: bool, label: str | None = None) -> Updated:
        """Loads the checkpoint on every rank, or on none where it is invalid. An unknown load format ends the engine.

        Source: sglang 0.5.23, measured: load_format "nonsense" closed the connection after 5.07 s; the server was gone.
        """
        if load_format not in _LOAD_FORMATS:
            raise ValueError(f"{load_format!r} is not a valid LoadFormat")
        try:
            open_checkpoint(path, self._shape)
        except BadCheckpoint as error:
            return Updated(False, str(error))
        refused = [reason for reason in self._pipeline.collective_rpc("load", path) if reason]
        if refused:
            return Updated(False, refused[0])
        return self._updated("Succeeded to update model weights.", flush=flush, label=label)

    def begin(self) -> Updated:
        """Opens an update session, or refuses where one is open: whoever began it has to end it.

        Source: sglang 0.5.23, scheduler_components/weight_updater.py.
        """
        if self._session:
            return Updated(False, SESSION_OPEN)
        self._session = True
        return Updated(True, "Success")

    def end(self) -> Updated:
        """Closes the update session, or refuses where none is open."""
        if not self._session:
            return Updated(False, NO_SESSION)
        self._session = False
        return Updated(True, "Success")

    def from_tensor(self, read: Callable[[], Sequence[bytes]], *, flush: bool, label: str | None = None) -> Updated:
        """Copies the blobs' tensors into the weights, or none where a blob is invalid or no session is open.

        Each blob is a safetensors file with any of the model's tensors, and each rank copies those that it holds. They
        are read here, where an exception ends the engine, and not before a session is open.
        """
        if self._sessions and not self._session:
            return Updated(False, OUTSIDE)
        blobs = read()
        try:
            for blob in blobs:
                blob_offsets(blob, self._shape)
        except BadCheckpoint as error:
            return Updated(False, str(error))
        for blob in blobs:
            self._pipeline.collective_rpc("load_blob", blob)
        return self._updated("Success", flush=flush, label=label)

    def _updated(self, message: str, *, flush: bool, label: str | None) -> Updated:
        """The weights have changed, so their label does, and then the cache is flushed where that was asked for."""
        self._relabel(label)
        return Updated(False, NOT_FLUSHED) if flush and not self._flush() else Updated(True, message)
