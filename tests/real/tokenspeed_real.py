"""`python tokenspeed_real.py`, in its environment, serves tokenspeed's real control plane; it prints its URL as JSON.

Real, of tokenspeed 0.1.1 unless it says otherwise, and as they are installed:

- runtime/entrypoints/sglang_compat_http.py: every control route, `build_sglang_compat_app`; rl_control.py: the key;
- runtime/engine/scheduler_control_client.py, scheduler_communicator.py: `SchedulerControlClient`, `_Communicator`;
- runtime/engine/aio_rwlock.py: `RWLock`; runtime/engine/io_struct.py: every message between front end and scheduler;
- runtime/engine/pause.py: `PauseController`, `PauseHooks`, `scheduler_drained`;
- runtime/engine/memory_occupation.py: `MemoryOccupationController`;
- tokenspeed-scheduler 0.1.42: `Scheduler`, compiled.

Stubbed, since each needs a model, a GPU or the gateway: the gate of `AsyncLLM` and its requests (`Front`), the event
loop and the dispatch of its request handler (`Loop`, in the order of runtime/engine/event_loop.py), the forward pass
(tokens that count up), torch_memory_saver (`Saver`), what replaces weights (messages as execution/model_runner.py has
them), the snapshot of loads, `/generate` and
`/get_server_info`, and the modules tokenspeed_kernel,
tokenspeed_triton, tokenspeed.runtime.utils.env and .server_args.
"""

from __future__ import annotations

import asyncio
import importlib.machinery
import importlib.metadata
import json
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

from empty_modules import EmptyModules

STUBBED = re.compile(r"(tokenspeed_kernel|tokenspeed_triton|tokenspeed\.runtime\.utils\.(env|server_args))(\..*)?")


class Stubs(EmptyModules):
    """The packages of kernels, and the two modules that need them, are importable and have nothing in them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of an empty package, or None for every other name."""
        if not STUBBED.fullmatch(fullname):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)


sys.meta_path.insert(0, Stubs())

import tokenspeed_scheduler as core  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from tokenspeed.runtime.engine import io_struct as messages  # noqa: E402
from tokenspeed.runtime.engine.aio_rwlock import RWLock  # noqa: E402
from tokenspeed.runtime.engine.memory_occupation import MemoryOccupationController  # noqa: E402
from tokenspeed.runtime.engine.pause import PauseController, PauseHooks  # noqa: E402
from tokenspeed.runtime.engine.scheduler_control_client import SchedulerControlClient  # noqa: E402
from tokenspeed.runtime.entrypoints.sglang_compat_http import build_sglang_compat_app  # noqa: E402
from tokenspeed.runtime.utils.dispatch import TypeBasedDispatcher  # noqa: E402

PAGES, PAGE_TOKENS, STEP_S, BYTES = 1024, 16, 0.005, 256
VERSION, STARTED = importlib.metadata.version("tokenspeed"), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass
class State:
    """A request, as the scheduler's side keeps it."""

    rid: str
    prompt: list[int]
    limit: int
    answered: asyncio.Future[dict[str, Any]]
    loop: asyncio.AbstractEventLoop
    tokens: list[int] = field(default_factory=list)
    finish: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether it has a reason to end."""
        return self.finish is not None

    def set_finish_with_abort(self, message: str, notify_client: bool = False) -> None:
        """It ends at its next step."""
        self.finish = {"type": "abort", "message": message, "err_type": "UnknownError"}

    def end(self) -> None:
        """Its client gets what there is."""
        meta = {
            "id": self.rid,
            "finish_reason": self.finish,
            "prompt_tokens": len(self.prompt),
            "completion_tokens": len(self.tokens),
            "cached_tokens": 0,
            "weight_version": "default",
            "e2e_latency": 0.0,
        }
        reply = {"text": "", "output_ids": self.tokens, "meta_info": meta}
        self.loop.call_soon_threadsafe(lambda: self.answered.done() or self.answered.set_result(reply))


class Saver:
    """torch_memory_saver, of which only the calls matter."""

    def pause(self, tag: str) -> None:
        """Nothing is unmapped."""

    def resume(self, tag: str) -> None:
        """Nothing is mapped."""


def new_scheduler() -> Any:
    """A real scheduler with one group of pages."""
    config = core.SchedulerConfig()
    config.num_device_pages, config.num_snapshot_pages = PAGES, 1
    config.max_scheduled_tokens, config.max_batch_size, config.prefix_granularity = 512, 16, PAGE_TOKENS
    config.disable_l2_cache = True
    config.cache_groups = [core.CacheGroupConfig("full", PAGE_TOKENS, PAGES, core.AttnKind.Full)]
    return core.Scheduler(config)


class Loop:
    """The scheduler's thread. Its rounds are those of `EventLoop.event_loop`, less what needs a device."""

    has_dp = False

    def __init__(self, reply: Callable[[Any], None]) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.scheduler = new_scheduler()
        self.output_processor = SimpleNamespace(rid_to_state={}, reap_finished_orphan=self._reap)
        sender = SimpleNamespace(send_pyobj=reply)
        self._reply = reply
        self._pause = PauseController(sender)
        device = SimpleNamespace(run_kv_repair=lambda: None, run_idle_forward=lambda _: None)
        self._hooks = PauseHooks(self, self._pause, device)
        self._memory = MemoryOccupationController(
            send_func=sender,
            pause_controller=self._pause,
            adapter=Saver(),
            enabled=True,
            reset_caches_fn=self._hooks.reset_caches_for_release,
            kv_repair_fn=self._hooks.kv_repair_after_wake,
            weights_release_refusal_fn=lambda: None,
            weights_busy_fn=lambda: False,
        )
        self._grammars = SimpleNamespace(grammar_queue=[], mark_abort=lambda _: None)

    def run(self) -> None:
        """Goes round for ever."""
        while True:
            self._receive()
            if self._pause.forward_blocked:
                self._hooks.paused_idle_step()
            else:
                self._step()
            self._pause.maybe_finish_drain(self.scheduler)

    def _receive(self) -> None:
        blocked_before, specs = self._pause.admit_blocked, []
        while not self.inbox.empty():
            message = self.inbox.get()
            if isinstance(message, State):
                self.output_processor.rid_to_state[message.rid] = message
                specs.append(self._spec(message))
            else:
                self._control(message)
        self._hooks.apply_transitions(self._grammars)
        if specs and not self._hooks.withhold_admissions(specs, blocked_before):
            self._submit_scheduler_requests(specs)

    def _control(self, message: Any) -> None:
        kind = type(message).__name__
        match kind:
            case "PauseSchedulerReqInput":
                self._pause.handle_pause(message)
            case "ResumeSchedulerReqInput":
                self._pause.handle_resume(message)
            case "ReleaseMemoryOccupationReqInput":
                self._memory.handle_release(message)
            case "ResumeMemoryOccupationReqInput":
                self._memory.handle_resume(message)
            case "FlushCacheReqInput":
                clear = not self.output_processor.rid_to_state and self.scheduler.clear_cache()
                self._reply(messages.FlushCacheReqOutput(success=bool(clear)))
            case "AbortReq":
                self._request_abort_or_mark(message.rid, "client cancelled request")
            case _:
                self._weights(kind)

    def _weights(self, kind: str) -> None:
        """What a worker without a group, a store and --enable-eplb answers. Source: execution/model_runner.py."""
        answers = {
            "UpdateWeightsFromDistributedReqInput": (False, "weight update group not initialized"),
            "DestroyWeightsUpdateGroupReqInput": (True, "weight update group not initialized"),
            "InitWeightsUpdateGroupReqInput": (False, "no group can be joined here"),
            "UpdateWeightsFromMooncakeReqInput": (False, "there is no store here"),
            "RebalanceExpertsReqInput": (False, "expert rebalancing needs the server to start with --enable-eplb"),
        }
        success, message = answers[kind]
        output = getattr(messages, kind.replace("Input", "Output"))
        self._reply(output(success=success, message=message))

    def _spec(self, state: State) -> Any:
        spec = core.RequestSpec()
        spec.request_id, spec.tokens, spec.max_new_tokens = state.rid, state.prompt, state.limit
        spec.max_cached_prefix_tokens = 2**31 - 1
        return spec

    def _submit_scheduler_requests(self, specs: list[Any]) -> None:
        self.scheduler.submit_requests(specs)

    def _request_abort_or_mark(self, rid: str, _reason: str, *, notify_client: bool = False) -> None:
        state = self.output_processor.rid_to_state.get(rid)
        if state is not None:
            state.set_finish_with_abort("Aborted by pause" if notify_client else "AbortReq from client")

    def _reap(self, rid: str, state: State) -> None:
        self.output_processor.rid_to_state.pop(rid, None)
        state.end()

    def _step(self) -> None:
        plan = self.scheduler.next_execution_plan()
        rids = list(plan.forward[0].request_ids) if plan.forward else []
        events = core.ExecutionEvent()
        for rid in rids:
            self._commit(rid, events)
        if rids:
            self.scheduler.advance(events)
        time.sleep(STEP_S)

    def _commit(self, rid: str, events: Any) -> None:
        state = self.output_processor.rid_to_state[rid]
        if not state.finished:
            token = (sum(state.prompt) + len(state.tokens)) % BYTES
            state.tokens.append(token)
            result = core.ForwardEvent.ExtendResult()
            result.request_id, result.tokens = rid, [token]
            events.add_event(result)
            if len(state.tokens) >= state.limit:
                state.finish = {"type": "length", "length": state.limit}
        if state.finished:
            ended = state.finish is not None and state.finish["type"] == "abort"
            end = core.ForwardEvent.Abort() if ended else core.ForwardEvent.Finish()
            end.request_id = rid
            events.add_event(end)
            self._reap(rid, state)


class Front(SchedulerControlClient):
    """The front end: its control calls are real; its gate is what `AsyncLLM` has, in as many lines."""

    def __init__(self, key: str | None) -> None:
        attention = SimpleNamespace(dp_size=1, has_dp=False)
        self.server_args = SimpleNamespace(
            model="tiny",
            weight_version="default",
            rl_control_api_key=key,
            kvstore_storage_backend=None,
            mapping=SimpleNamespace(attn=attention),
        )
        self.model_update_lock = RWLock()
        self._result_dispatcher = TypeBasedDispatcher([])
        self._admit = asyncio.Event()
        self._admit.set()
        self._running = asyncio.get_running_loop()
        self.core = Loop(lambda reply: self._running.call_soon_threadsafe(self._result_dispatcher, reply))
        self.engine_core_client = SimpleNamespace(send_to_scheduler=SimpleNamespace(send_pyobj=self.core.inbox.put))
        self.init_communicators(self.server_args)
        threading.Thread(target=self.core.run, daemon=True).start()

    def auto_create_handle_loop(self) -> None:
        """The loop is there."""

    def block_generation_admission(self) -> None:
        """Requests wait."""
        self._admit.clear()

    def allow_generation_admission(self) -> None:
        """Requests are admitted."""
        self._admit.set()

    def abort_request(self, rid: str) -> None:
        """The scheduler aborts it."""
        self.core.inbox.put(messages.AbortReq(rid=rid))

    async def get_load(self) -> list[Any]:
        """What a snapshot would have."""
        states, waiting = len(self.core.output_processor.rid_to_state), self.core.scheduler.waiting_size()
        counts = {"num_reqs": states + waiting, "num_waiting_reqs": waiting, "num_pages": 0}
        return [messages.GetLoadReqOutput(dp_rank=0, **counts)]

    async def generate(self, rid: str, prompt: list[int], limit: int) -> dict[str, Any]:
        """The answer to one request."""
        await self._admit.wait()
        async with self.model_update_lock.reader_lock:
            answered: asyncio.Future[dict[str, Any]] = self._running.create_future()
            self.core.inbox.put(State(rid, prompt, limit, answered, self._running))
            return await answered


def with_generate(app: FastAPI, front: Front) -> None:
    """The application generates, too."""

    @app.post("/generate")
    async def generate(request: Request) -> JSONResponse:
        body = await request.json()
        prompt = list(body["text"].encode())
        rid = body.get("rid") or uuid.uuid4().hex
        return JSONResponse(await front.generate(rid, prompt, body["sampling_params"]["max_new_tokens"]))

    @app.get("/get_server_info")
    async def server_info() -> JSONResponse:
        """The parts that a driver reads. The gRPC servicer of a real one makes them."""
        info = {"tokenspeed_version": VERSION, "start_time": STARTED, "enable_memory_saver": True, "device": "cpu"}
        count = len(front.core.output_processor.rid_to_state)
        return JSONResponse(info | ({"active_requests": count} if count else {}))


async def serve(key: str | None) -> None:
    """Serves until it is killed."""
    front = Front(key)
    app = build_sglang_compat_app(front)
    with_generate(app, front)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1] if len(sys.argv) > 1 else None))
