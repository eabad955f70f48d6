"""TRL's colocated loop: `VLLMGeneration` sleeps, training runs, its weights are synced, and it generates.

Source of the order: trl 1.16.0, trainer/grpo_trainer.py: a step syncs the weights, generates, and trains.
"""

from __future__ import annotations

from typing import Any

import torch
import trl_stand_ins
from peer_step import FAULTS, PROMPT, TOKENS, Engines, Outcome, trained_checkpoint
from safetensors.numpy import load_file

DIALECT = "vllm:0.30"
ENGINES = 1
HOLLOW = trl_stand_ins.install()


def step(engines: Engines, outcome: Outcome, shim: Any) -> None:
    """Two times: train, sync, generate; the engine sleeps while training runs."""
    from trl.generation.vllm_generation import VLLMGeneration

    tensors = {name: torch.from_numpy(each) for name, each in load_file(trained_checkpoint()).items()}
    chosen = VLLMGeneration if shim is None else shim
    generation = chosen(
        trl_stand_ins.Policy(tensors, engines.urls[0]),
        trl_stand_ins.Accelerator(),
        None,
        enable_sleep_mode=True,
        temperature=0.0,
        max_completion_length=TOKENS,
    )
    try:
        for _ in range(2):
            outcome.held_mib.append(engines.held_mib())
            generation.sync_weights()
            _, completions, _, _ = generation.generate([PROMPT], None, 1)
            outcome.rollout = engines.what_it_is(completions[0])
    finally:
        if shim is not None:
            outcome.known = [str(each.state) for each in generation.llm.fleet]
            generation.llm.fleet.close()


LOOPS = {"colocated": (tuple(FAULTS), step)}
