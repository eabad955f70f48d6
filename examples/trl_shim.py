"""TRL's colocated generation over this library: `VLLMGeneration` as released, whose engine moves by evidence.

`generation = ManagedGeneration(model, accelerator, tokenizer, enable_sleep_mode=True, ...)` in place of
`VLLMGeneration(...)`; sleep mode has to be on.

Source: trl 1.16.0, generation/vllm_generation.py: `self.llm` is put to sleep (level 2) after each generation, its
weights are woken and loaded in `sync_weights`, and its KV cache is woken before the next generation.
"""

from __future__ import annotations

from typing import Any

from lifecycle.adapters.vllm_in_process import InProcessVLLM
from trl.generation.vllm_generation import VLLMGeneration

from lifecycle import Engine, Fleet, Pushed
from lifecycle.sync import Fleet as BlockingFleet
from lifecycle.sync import Loop


async def _pushes(engines: Any) -> None:
    raise RuntimeError("TRL pushes in sync_weights; call that before generate")


class ManagedLLM:
    """TRL's `self.llm`: sleeping and waking move the engine; everything else is the LLM's own."""

    def __init__(self, llm: Any, fleet: BlockingFleet) -> None:
        self._llm, self.fleet, self._step = llm, fleet.open(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    @property
    def version(self) -> str:
        return f"step-{self._step}"

    def sleep(self, level: int = 2) -> None:
        self._step += 1
        self.fleet.offload(weights=Pushed(_pushes, self.version))

    def wake_up(self, tags: list[str]) -> None:
        if "kv_cache" in tags:  # sync_weights woke the weights
            self.fleet.onload()


class ManagedGeneration(VLLMGeneration):
    """TRL's generation, with the engine's states proved before training, syncing and generating go on."""

    def fleet_of(self, llm: Any) -> BlockingFleet:
        """The engine of this rank."""
        return BlockingFleet(Fleet([Engine(InProcessVLLM(llm))]), Loop())

    @property
    def llm(self) -> ManagedLLM:
        return self._managed

    @llm.setter
    def llm(self, made: Any) -> None:
        self._managed = ManagedLLM(made, self.fleet_of(made))

    def sync_weights(self) -> None:
        self.llm.fleet.restore_weights()
        with self.llm.fleet.updating_weights(self.llm.version):
            super().sync_weights()
