"""Drives a vLLM server over HTTP, by the endpoints of its development mode.

Source for every claim about vLLM here, unless it says otherwise: vllm 0.32.0, of which what is said of requests, pauses
and answers was measured on a server on the CPU, and what is said of GPU memory was read. `versions` has what differs.
"""

from .adapter import VLLMAdapter

__all__ = ["VLLMAdapter"]
