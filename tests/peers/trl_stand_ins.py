"""What stands in for TRL's heavy requirements. `LLM` is vLLM's, over HTTP to an engine process."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import hollow_modules
import torch
from lifecycle.adapters.loopback.checkpoint import blob_of
from peer_step import post

HOLLOW = ("accelerate", "datasets", "huggingface_hub", "pandas", "transformers", "vllm")


class LLM:
    """vLLM's object, of which sleep, wake, load and generate are calls to a server."""

    def __init__(self, model: str, **options: Any) -> None:
        self.url = model
        inner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        executor = SimpleNamespace(driver_worker=inner)
        self.llm_engine = SimpleNamespace(model_executor=executor)

    def sleep(self, level: int = 1) -> None:
        post(f"{self.url}/sleep?level={level}")

    def wake_up(self, tags: list[str] | None = None) -> None:
        post(f"{self.url}/wake_up?{urlencode({'tags': tags or []}, doseq=True)}")

    def reset_prefix_cache(self) -> None:
        post(f"{self.url}/reset_prefix_cache")

    def load_weights(self, named: Sequence[tuple[str, torch.Tensor]]) -> None:
        """In one process there is no session for it; the server wants one, unless it has one."""
        blob = blob_of({name: tensor.detach().numpy() for name, tensor in named})
        own = True
        try:
            post(f"{self.url}/start_weight_update", {})
        except OSError as error:
            if "already active" not in str(error):
                raise
            own = False
        chunk = {"safetensors": [base64.b64encode(blob).decode()]}
        post(f"{self.url}/update_weights", {"update_info": chunk})
        if own:
            post(f"{self.url}/finish_weight_update")

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        ids = [each["prompt_token_ids"] for each in prompts]
        body = {"prompt": ids, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        body["max_tokens"] = sampling_params.max_tokens
        found = post(f"{self.url}/v1/completions", body, 5.0)["choices"]
        outputs = [[SimpleNamespace(token_ids=each["token_ids"], logprobs=None)] for each in found]
        return [SimpleNamespace(prompt_token_ids=a, outputs=b) for a, b in zip(ids, outputs, strict=True)]


class Accelerator:
    """accelerate's, of one process on a CPU."""

    state = SimpleNamespace(deepspeed_plugin=None)
    num_processes, process_index, local_process_index, is_main_process = 1, 0, 0, True
    device = torch.device("cpu")

    def wait_for_everyone(self) -> None: ...


class Policy(torch.nn.Module):
    """The trainer's model: parameters by name."""

    def __init__(self, tensors: dict[str, torch.Tensor], name_or_path: str) -> None:
        super().__init__()
        self.name_or_path = name_or_path
        for name, tensor in tensors.items():
            *folders, last = name.split(".")
            module: torch.nn.Module = self
            for folder in folders:
                if not hasattr(module, folder):
                    module.add_module(folder, torch.nn.Module())
                module = getattr(module, folder)
            module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))


def install() -> hollow_modules.HollowModules:
    """The requirements are hollow but for these."""
    vllm = {"__version__": "0.30.0", "LLM": LLM, "SamplingParams": SimpleNamespace}
    return hollow_modules.installed(HOLLOW, {"vllm": vllm})
