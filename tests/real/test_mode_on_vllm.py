"""A real vLLM without its development mode: nothing can drive it, and the error says what is wanting."""

from __future__ import annotations

import pytest
from vllm_lane import VLLMLane, address, ask

from lifecycle import ConfigurationError, Fleet


async def test_without_its_development_mode(vllm_lane: VLLMLane) -> None:
    server = vllm_lane.serve("closed")
    assert ask(server, "/is_paused") == ask(server, "/pause", method="POST") == (404, {"detail": "Not Found"})
    with pytest.raises(ConfigurationError, match=r"vLLM 0\.32\.0 listens there.*VLLM_SERVER_DEV_MODE=1"):
        async with Fleet.connect([address(server)]):
            pass
