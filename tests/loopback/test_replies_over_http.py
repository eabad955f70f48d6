"""What engines answer over HTTP, and what declared verbs return, stands on the transitions."""

from __future__ import annotations

from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Engine, Fleet, Kept, Policy, State

QUICK = Policy(residual_threshold_gib=1.0, visible_bytes=1, visible_fraction=1e-6, settle_s=2.0)


async def cycle(process: LoopbackProcess, scheme: str = "loopback") -> dict[str, list[tuple[str, int | None]]]:
    """The calls of each command of a cycle that were answered, each with its status."""
    said: dict[str, list[tuple[str, int | None]]] = {}

    class Hears:
        def transition(self, record: object) -> None:
            if getattr(record, "trigger", "") == "succeeded":
                said[record.command] = [(each.call, each.status) for each in record.replies]  # type: ignore[attr-defined]

    async with Fleet.connect(
        [f"{scheme}://127.0.0.1:{process.port}"], policy=QUICK, lease=None, observers=[Hears()]
    ) as fleet:
        engine: Engine = fleet.engines[0]
        await fleet.offload(
            weights=Kept() if not engine.capabilities.launch_source else engine.capabilities.launch_source
        )
        await fleet.onload()
        assert engine.state is State.SERVING
    return said


async def test_sglang(engine: LoopbackProcess) -> None:
    said = await cycle(engine)
    assert said["pause"] == [("pause_generation", 200)]
    assert {call for call, _ in said["release"]} == {"release_memory_occupation"}
    assert {status for calls in said.values() for _, status in calls} == {200}


async def test_vllm(vllm: LoopbackProcess) -> None:
    said = await cycle(vllm, "vllm")
    assert said["pause"][0][0] == "pause"
    assert {status for calls in said.values() for _, status in calls} == {200}
