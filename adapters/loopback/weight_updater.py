"""Weights replaced while the engine lives: from disk, or pushed as safetensors blobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .checkpoint import BadCheckpoint, blob_offsets, open_checkpoint
from .pipeline import Pipeline
from .shape import ModelShape

_LOAD_FORMATS = (None, "auto", "safetensors")
NOT_FLUSHED = (
    "Weights were updated, but the cache was not flushed because the engine is not idle; "
    "running requests go on with keys and values of the old weights."
)


@dataclass(frozen=True, slots=True)
class Updated:
    """What became of an update."""

    success: bool
    message: str


class WeightUpdater:
    """Loads weights on every rank and flushes the prefix cache where asked to."""

    def __init__(self, pipeline: Pipeline, shape: ModelShape, flush: Callable[[], bool]) -> None:
        self._pipeline = pipeline
        self._shape = shape
        self._flush = flush
        self._session = False

    def from_disk(self, path: str, load_format: str | None, *, flush: bool) -> Updated:
        """Every rank holds the file's tensors, or all hold what they held; an unknown load format ends the engine.

        Source: sglang 0.5.23, measured: load_format "nonsense" closed the connection after 5.07 s, for good.
        """
        if load_format not in _LOAD_FORMATS:
            raise ValueError(f"{load_format!r} is not a valid LoadFormat")
        try:
            open_checkpoint(path, self._shape)
        except BadCheckpoint as error:
            return Updated(False, str(error))
        refused = [reason for reason in self._pipeline.each("load", path) if reason]
        return Updated(False, refused[0]) if refused else self._flushed(flush, NOT_FLUSHED)

    def begin(self) -> Updated:
        """A session is open; a second one ends the engine.

        Source: sglang 0.5.23, weight_updater.py begin_weight_update asserts that none is open.
        """
        assert not self._session, "begin_weight_update called while a weight-update session is already open"
        self._session = True
        return Updated(True, "Success")

    def end(self) -> Updated:
        """The session is closed; without one the engine ends."""
        assert self._session, "end_weight_update called without begin_weight_update"
        self._session = False
        return Updated(True, "Success")

    def from_tensor(self, blobs: Sequence[bytes], *, flush: bool) -> Updated:
        """The blobs' tensors are in place, or nothing changed; without an open session the engine ends.

        SGLang takes pickled handles of torch tensors, one for each rank. Here every blob is a safetensors file of any
        tensors of the model, and each rank takes what it holds.
        """
        assert self._session, "update_weights_from_tensor requires an open begin_weight_update session"
        try:
            for blob in blobs:
                blob_offsets(blob, self._shape)
        except BadCheckpoint as error:
            return Updated(False, str(error))
        for blob in blobs:
            self._pipeline.each("load_blob", blob)
        flushed = self._flushed(flush, "Success")
        assert flushed.success, "Cache flush failed after updating weights"
        return flushed

    def _flushed(self, flush: bool, failure: str) -> Updated:
        if flush and not self._flush():
            return Updated(False, failure)
        return Updated(True, "Succeeded to update model weights.")
