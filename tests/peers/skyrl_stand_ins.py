"""What stands in for SkyRL's heavy requirements, for its router, and for the trainer's workers."""

from __future__ import annotations

import base64
import json
import threading
import typing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import Any

import hollow_modules
import typing_extensions
from lifecycle.adapters.loopback.checkpoint import blob_of
from peer_step import post, trained_checkpoint
from safetensors.numpy import load_file

HOLLOW = (
    "cloudpathlib",
    "datasets",
    "jaxtyping",
    "omegaconf",
    "peft",
    "pybase64",
    "ray",
    "skyrl_gym",
    "transformers",
    "wandb",
    "yaml",
)


def remote(*given: Any, **options: Any) -> Any:
    """ray's decorator: what is decorated stays as it is."""
    return given[0] if given and callable(given[0]) else lambda decorated: decorated


def get(results: Any) -> Any:
    """ray's: the workers below answer at once."""
    return results


def install() -> hollow_modules.HollowModules:
    """The requirements are hollow but for these."""
    typing.TypedDict = typing_extensions.TypedDict  # pydantic asks for it below Python 3.12
    return hollow_modules.installed(HOLLOW, {"ray": {"remote": remote, "get": get}})


class Router(ThreadingHTTPServer):
    """The data plane: token-in, token-out requests go to the engines in turn, by the API that these have."""

    def __init__(self, urls: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Route)
        self.engines = cycle(urls)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Route(BaseHTTPRequestHandler):
    server: Router

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = {"prompt": asked["token_ids"], "return_token_ids": True, **asked["sampling_params"]}
        try:
            [choice] = post(f"{next(self.server.engines)}/v1/completions", body, 3.0)["choices"]
            status, answer = 200, {"choices": [choice]}
        except (OSError, TimeoutError) as error:
            status, answer = 400, {"error": {"message": f"the router: {error}"}}
        found = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, format: str, *args: Any) -> None: ...


class Tokenizer:
    """Only to decode."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return str(ids)

    def batch_decode(self, batch: list[list[int]], **options: Any) -> list[str]:
        return [str(ids) for ids in batch]


class Workers:
    """The policy's workers: on a broadcast they send the trained weights by SkyRL's own weight-sync client."""

    def __init__(self, sync_client: Any) -> None:
        self._client = sync_client

    def async_run_ray_method(self, dispatch: str, method: str, *args: Any, **kwargs: Any) -> None:
        if method == "broadcast_to_inference_engines":
            self._client.start_weight_update()
            for name, tensor in load_file(trained_checkpoint()).items():
                chunk = base64.b64encode(blob_of({name: tensor})).decode()
                self._client.update_weights({"safetensors": [chunk]})
            self._client.finish_weight_update()

    def backload_to_gpu(self, **what: bool) -> None: ...

    def offload_to_cpu(self, **what: bool) -> None: ...
