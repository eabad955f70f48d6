"""A real vLLM without its development mode, which nothing can drive, and with a limit to its requests."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from vllm_lane import MOST_REQUESTS, PROMPTS, Stream, VLLMLane, address, ask, output

from lifecycle import ConfigurationError, Fleet

BURST, TOKENS = 24, 100


async def test_without_its_development_mode(vllm_lane: VLLMLane) -> None:
    server = vllm_lane.serve("closed")
    assert ask(server, "/is_paused") == ask(server, "/pause", method="POST") == (404, {"detail": "Not Found"})
    with pytest.raises(ConfigurationError, match=r"vLLM 0\.32\.0 listens there.*VLLM_SERVER_DEV_MODE=1"):
        async with Fleet.connect([address(server)]):
            pass


def fate(ended: Stream) -> str:
    """What became of a request of a burst; one that was refused in its stream had got 200 first, and no token."""
    if ended.error is None:
        assert (ended.status, ended.reason, len(ended.ids), ended.done) == (200, "length", TOKENS, True)
        return "served"
    assert (ended.error["code"], ended.ids) == (503, [])
    assert "cannot accept new requests" in ended.error["message"]
    assert ended.status in (200, 503)
    return "refused" if ended.status == 503 else "refused in its stream"


def test_a_burst_beyond_its_limit_is_refused_before_or_in_the_stream(vllm_lane: VLLMLane) -> None:
    server = vllm_lane.serve("closed")
    burst = [Stream(server, PROMPTS[index % len(PROMPTS)], TOKENS).start() for index in range(BURST)]
    fates = Counter(fate(each.join()) for each in burst)
    print(dict(fates))
    assert fates["served"] >= MOST_REQUESTS
    assert fates["refused"] + fates["refused in its stream"] > 0
    counted = re.findall(r"^vllm:admission_rejections_total\{.*\} (\S+)$", ask(server, "/metrics")[1], re.MULTILINE)
    assert sum(map(float, counted)) == BURST - fates["served"]
    assert len(output(server, PROMPTS[0], 4)) == 4, "it takes requests again"
