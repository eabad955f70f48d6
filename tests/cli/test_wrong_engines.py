"""Engines that cannot be driven as their URL says: each command says why in one message, with what to do."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import permutations
from pathlib import Path

import pytest
from lifecycle.adapters.http import HttpClient
from lifecycle.adapters.loopback import LoopbackProcess
from lifecycle.adapters.url_options import keys_needed

from lifecycle.nodes.address import parse

Start = Callable[..., str]

SCHEMES = ("sglang", "vllm", "tokenspeed")


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """The address of an engine that was started with these options, one for all tests that ask for the same."""
    started: dict[str, LoopbackProcess] = {}
    with ExitStack() as stack:

        def address(dialect: str, **options: object) -> str:
            asked = f"{dialect} {options}"
            if asked not in started:
                process = LoopbackProcess.start(dialect=dialect, **options)  # type: ignore[arg-type]
                started[asked] = stack.enter_context(process)
            return f"127.0.0.1:{started[asked].port}"

        yield address


@pytest.mark.parametrize(("written", "there"), list(permutations(SCHEMES, 2)))
def test_an_engine_of_another_kind_is_named_with_the_scheme_to_write(
    lifecycle, start: Start, written: str, there: str
) -> None:
    at = start(there)
    for command, code in (("doctor", 1), ("status", 1), ("pause", 2), ("cycle", 2)):
        result = lifecycle(command, f"{written}://{at}")
        assert result.returncode == code, result.stderr
        assert f"does: write {there}://{at}" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
    assert "serving" in lifecycle("status", f"{there}://{at}").stdout


def test_an_engine_of_another_kind_is_named_where_nothing_can_drive_it(lifecycle, start: Start) -> None:
    at = start("vllm", arguments=("--no-dev-mode",))
    assert f"write vllm://{at}" in lifecycle("pause", f"sglang://{at}").stderr


@pytest.mark.parametrize(
    ("scheme", "key"),
    [
        ("sglang", "api_key"),
        ("sglang", "admin_api_key"),
        ("vllm", "api_key"),
        ("tokenspeed", "api_key"),
        ("tokenspeed", "control_key"),
    ],
)
def test_a_key_where_none_is_needed_is_not_said_to_be_accepted(lifecycle, start: Start, scheme: str, key: str) -> None:
    at = start(scheme)
    assert re.search("ok +connection .* answers without a key", lifecycle("doctor", f"{scheme}://{at}").stdout)
    result = lifecycle("doctor", f"{scheme}://{at}?{key}=wrong")
    assert result.returncode == 4
    assert re.search(f"warning +connection .* needs no {key}: .* compared with nothing; leave it out", result.stdout)
    assert "serving" in lifecycle("status", f"{scheme}://{at}?{key}=wrong").stdout


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_key_that_is_needed_is_said_to_be_accepted(lifecycle, start: Start, scheme: str) -> None:
    at = start(scheme, api_key="k", admin_api_key="k" if scheme == "vllm" else "a")
    control = {"sglang": "&admin_api_key=a", "vllm": "", "tokenspeed": "&control_key=a"}[scheme]
    told = lifecycle("doctor", f"{scheme}://{at}?api_key=k{control}").stdout
    assert re.search("ok +connection .* answers, and accepts the keys", told)
    for wrong, named in ((f"api_key=x{control}", "api_key_env=NAME"), ("api_key=k", "_key_env=NAME")):
        result = lifecycle("pause", f"{scheme}://{at}?{wrong}")
        if scheme != "vllm" or "x" in wrong:
            assert result.returncode == 2, result.stdout
            assert "refuse" in result.stderr
            assert named in result.stderr


def test_a_key_in_a_url_is_in_no_message(lifecycle, start: Start) -> None:
    at = start("tokenspeed", api_key="k-secret", admin_api_key="a-secret")
    url = f"tokenspeed://{at}?api_key=k-secret&control_key=a-secret&unknown_version=warn"
    result = lifecycle("pause", url, "--mode", "abort")
    assert result.returncode == 3
    assert "unknown_version=warn' --mode wait" in result.stderr, "what leads on"
    assert "secret" not in result.stderr


def test_a_key_that_control_endpoints_alone_ask_for_is_needed(lifecycle, start: Start) -> None:
    at = start("sglang", admin_api_key="k")
    told = lifecycle("doctor", f"sglang://{at}?api_key=k").stdout
    assert re.search("ok +connection .* answers, and accepts the keys", told)


async def test_a_key_that_could_not_be_asked_for_is_not_said_to_be_unneeded() -> None:
    address, http = parse("vllm://127.0.0.1:9?api_key=k"), HttpClient("http://127.0.0.1:9")
    assert await keys_needed(address, http, {"api_key": [("GET", "/v1/models")]}, 1.0) == {"api_key": True}
    await http.aclose()


def test_ranks_that_disagree_are_named_by_every_command_until_all_are_paused(
    lifecycle, start: Start, tmp_path: Path
) -> None:
    options = ("--data-parallel-size", "2", "--fault", "pause=stuck:1")
    at = start("vllm", arguments=options, allow_faults=True)
    url = f"vllm://{at}"
    for command, code in (("pause", 1), ("status", 1), ("doctor", 1), ("recover", 1), ("cycle", 3)):
        result = lifecycle(command, url, *(["--deadline", "5"] if command == "pause" else []))
        told = result.stdout + result.stderr
        assert result.returncode == code, told
        assert "its data-parallel ranks disagree" in told, command
        assert "[True, False]" in told, command
        assert f"lifecycle recover {url}" in told, command
        assert "Traceback" not in told
    first_sight = lifecycle("status", url, state=tmp_path)
    assert first_sight.returncode == 1
    assert "its data-parallel ranks disagree" in first_sight.stdout
    urllib.request.urlopen(f"http://{at}/_fault", b'{"pause": null}', timeout=10).close()
    assert lifecycle("recover", url, "--to", "serving").returncode == 0
    assert "serving" in lifecycle("status", url).stdout


@pytest.mark.parametrize("scheme", ["vllm", "tokenspeed"])
def test_sizes_that_are_unknown_can_be_given(lifecycle, start: Start, scheme: str) -> None:
    at = start(scheme)
    told = lifecycle("doctor", f"{scheme}://{at}").stdout
    option = "sizes=weights:BYTES,kv_cache:BYTES"
    assert re.search(f"warning +tags .* option of its URL, in bytes for each rank: {option}", told)
    sized = lifecycle("doctor", f"{scheme}://{at}?{option.replace('BYTES', '67108864')}").stdout
    assert re.search("ok +tags +weights 64 MiB, kv_cache 64 MiB per rank", sized)


def test_a_vllm_without_its_development_mode_says_how_to_start_it(lifecycle, start: Start) -> None:
    url = f"vllm://{start('vllm', arguments=('--no-dev-mode',))}"
    for command, code in (("doctor", 1), ("status", 1), ("pause", 2), ("cycle", 2), ("recover", 2)):
        result = lifecycle(command, url)
        assert result.returncode == code, result.stderr
        told = result.stdout + result.stderr
        assert (
            "without its development mode, so that nothing can drive it; start it with VLLM_SERVER_DEV_MODE=1" in told
        )
        assert "Traceback" not in told


@pytest.mark.slow
def test_a_vllm_without_its_sleep_mode_frees_nothing_and_serves_again(lifecycle, start: Start) -> None:
    url = f"vllm://{start('vllm', memory_saver=False)}"
    result = lifecycle("cycle", url, "--weights", "kept", "--deadline", "3", "--threshold-gib", "0.1")
    assert result.returncode == 1
    assert "(was it started with --enable-sleep-mode?)" in result.stderr
    assert "memory_returned is refuted: its device is not free for others" in result.stderr
    assert f"lifecycle onload {url}" in result.stderr
    assert "Traceback" not in result.stderr
    assert lifecycle("onload", url, "--threshold-gib", "0.1").returncode == 0
    assert re.search(r"serving +open .* weights,kv_cache +\S+\(default\)", lifecycle("status", url).stdout)


@pytest.fixture
def another_version(start: Start) -> Iterator[Callable[[str], str]]:
    """The address of an engine as it is, but for the version that it tells: 9.9.9."""
    told = {"sglang": "0.5.23", "vllm": "0.32.0", "tokenspeed": "0.1.1"}
    with ExitStack() as stack:

        def at(scheme: str) -> str:
            engine = start(scheme)

            class Answers(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    with urllib.request.urlopen(f"http://{engine}{self.path}", timeout=10) as answer:
                        body = answer.read().replace(f'"{told[scheme]}"'.encode(), b'"9.9.9"')
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, *_: object) -> None:
                    pass

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Answers))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"127.0.0.1:{server.server_port}"

        yield at


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_version_that_nobody_knows_is_refused_naming_those_that_are_known(
    lifecycle, another_version: Callable[[str], str], scheme: str
) -> None:
    first = {"sglang": "0.5.11 to before", "vllm": "0.22 to before", "tokenspeed": "0.1.0 to before"}[scheme]
    url = f"{scheme}://{another_version(scheme)}"
    for command, code in (("doctor", 1), ("status", 1), ("pause", 2), ("cycle", 2)):
        result = lifecycle(command, url)
        assert result.returncode == code, result.stderr
        told = result.stdout + result.stderr
        assert f" 9.9.9 is not among the versions that are known here ({first}" in told
        assert "unknown_version=warn drives it as the nearest" in told
        assert "Traceback" not in told


def test_a_source_that_an_engine_cannot_load_is_refused_before_it_is_touched(lifecycle, start: Start) -> None:
    """Its weights are kept, and would come back; what was named for it to serve then would not."""
    url = f"tokenspeed://{start('tokenspeed')}"
    named = ("--weights", "/models/step-2", "--version", "v2", "--mode", "wait", "--threshold-gib", "0.1")
    for command in ("offload", "cycle"):
        result = lifecycle(command, url, *named)
        assert result.returncode == 3, result.stderr
        assert "weights_recoverable: tokenspeed cannot load weights from /models/step-2 (v2); it can:" in result.stderr
    assert "serving" in lifecycle("status", url).stdout
