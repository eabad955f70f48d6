"""Wrong addresses and keys: each gives one clear message, and no engine is changed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from engines import url

from lifecycle import ConfigurationError, Fleet, FromDisk, Policy, State


async def refusal(*urls: str, policy: Policy | None = None) -> str:
    """The message of the refusal to connect to these URLs."""
    with pytest.raises(ConfigurationError) as refused:
        async with Fleet.connect(urls, policy=policy):
            pass
    return str(refused.value)


async def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "nothing listens there" in await refusal(f"sglang://127.0.0.1:{port}")


@pytest.fixture
def web_server() -> Iterator[int]:
    """The port of a web server that is no engine."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


async def test_what_listens_is_no_engine(web_server: int) -> None:
    assert "no SGLang server" in await refusal(f"sglang://127.0.0.1:{web_server}")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:1", "no adapter for 'http'; installed are loopback, sglang, tokenspeed, vllm"),
        ("sglang://127.0.0.1", "has no port"),
        ("127.0.0.1:30000", "is no engine URL"),
        ("sglang://127.0.0.1:99999", "is no engine URL"),
        ("sglang://127.0.0.1:1?colour=red", "unknown option 'colour'"),
        ("sglang://127.0.0.1:1?offload=maybe", "offload must be true or false"),
        ("sglang://127.0.0.1:1?checksum=maybe", "checksum must be false or true"),
        ("sglang://127.0.0.1:1?group=a&group=b", "gives group twice"),
        ("sglang://127.0.0.1:1?pid=abc", "nothing listens"),
        ("sglang://127.0.0.1:1?sizes=weights", "sizes must be TAG:BYTES"),
        ("sglang://127.0.0.1:1?api_key_env=NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE, which is not set"),
    ],
)
async def test_addresses_that_cannot_be_meant(address: str, said: str) -> None:
    assert said in await refusal(address)


async def test_one_engine_twice() -> None:
    assert "stands twice" in await refusal("sglang://127.0.0.1:1?name=a", "sglang://127.0.0.1:1?name=b")
    assert "stands twice" in await refusal("sglang://127.0.0.1:1?name=a", "sglang://127.0.0.1:2?name=a")


async def test_no_engine_at_all() -> None:
    assert "at least one engine" in await refusal()


async def test_groups_that_wait_for_each_other() -> None:
    assert "circle" in await refusal(
        "sglang://127.0.0.1:1?group=a&drain_after=b", "sglang://127.0.0.1:2?group=b&drain_after=a"
    )
    assert "no such group" in await refusal("sglang://127.0.0.1:1?group=a&drain_after=nobody")


async def test_both_keys_are_needed_and_wrong_ones_are_named(
    start, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(api_key="user", admin_api_key="admin")
    assert "refuses the key" in await refusal(url(process), policy=policy)
    assert "control endpoints refuse" in await refusal(url(process, api_key="user"), policy=policy)
    monkeypatch.setenv("ADMIN_KEY", "admin")
    keyed = url(process, name="e", api_key="user", admin_api_key_env="ADMIN_KEY")
    async with Fleet.connect([keyed], policy=policy) as fleet:
        assert "user" not in fleet["e"].adapter.url
        async with fleet.offloaded(["kv_cache"]):
            pass
        assert fleet["e"].state is State.SERVING


async def test_a_fleet_that_never_offloads_does_nothing(start, policy: Policy) -> None:
    process = start(memory_saver=False)
    async with Fleet.connect([url(process, name="reward", offload="false")], policy=policy) as fleet:
        assert await fleet.offload(weights=FromDisk("/x", "v")) == []
        assert await fleet.onload() == []
        assert fleet["reward"].state is State.SERVING


async def test_memory_that_cannot_be_measured_is_refused_at_connect(start, policy: Policy) -> None:
    process = start()
    other = start()
    other.kill()
    assert "there is no process" in await refusal(url(process, pid=other.pid), policy=policy)
