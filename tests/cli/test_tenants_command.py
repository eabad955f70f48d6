"""`lifecycle tenants`, and commands that are bound by the ledger where there is one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Process
from lifecycle.core.tenants import Tenant
from lifecycle.nodes.processes import by_pid, node_name
from lifecycle.store import Tenants

MIB = 1 << 20
HERE = Tenant("trainer", "trainer", "trainer t (pid 1 on here)", "p", (by_pid(os.getpid()),))
AWAY = Tenant("away", "engine", "engine e (pid 7 on there)", "p", (Process("there", 7, 0.0),))


@pytest.fixture
def ledger(kept: Path) -> Iterator[Tenants]:
    """The ledger of this user, which is not there yet, and is gone after the test: it binds every command."""
    yield Tenants(kept / "tenants.sqlite3", budgets={"GPU-1": 80 * MIB})
    for file in kept.glob("tenants.sqlite3*"):
        file.unlink()


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def run(lifecycle: Any) -> Command:
    """Runs a command: its exit code, and all that it said."""

    def ran(*arguments: str) -> tuple[int, str]:
        done = lifecycle(*arguments)
        return done.returncode, done.stdout + done.stderr

    return ran


def test_it_says_who_may_hold_what(run: Command, ledger: Tenants) -> None:
    assert run("tenants") == (0, "no tenant is known\n")
    assert run("tenants", "--forget", "nobody")[0] == 2
    assert not ledger.path.exists(), "who only looks makes none: it would bind every command"
    ledger.holds(HERE, {"GPU-1": 3 * MIB, "GPU-2": None}, given_back=False)
    ledger.holds(AWAY, {"GPU-1": MIB}, given_back=True)
    code, said = run("tenants")
    assert code == 0
    assert said.splitlines()[0] == "GPU-1, budget 80 MiB"
    assert "  trainer  at most 3 MiB  since 20" in said
    assert "  away  at most 1 MiB, what was left when it gave its memory back  since 20" in said
    assert said.splitlines()[3:][0] == "GPU-2"
    assert "an unknown part" in said.splitlines()[4]
    known = json.loads(run("tenants", "--json")[1])
    assert known["budgets"] == {"GPU-1": 80 * MIB}
    assert {(each["device"], each["size_bytes"]) for each in known["tenants"]} == {
        ("GPU-1", 3 * MIB),
        ("GPU-1", MIB),
        ("GPU-2", None),
    }


def test_one_that_cannot_be_seen_from_here_is_forgotten_on_a_persons_word(run: Command, ledger: Tenants) -> None:
    ledger.holds(AWAY, {"GPU-1": MIB}, given_back=False)
    ledger.holds(HERE, {"GPU-1": MIB}, given_back=False)
    code, said = run("tenants", "--forget", "nobody")
    assert code == 2
    assert "no tenant 'nobody' is known" in said
    code, said = run("tenants", "--forget", "trainer")
    assert code == 2
    assert f"pid {os.getpid()} lives; let it give its memory back, or end it" in said
    assert run("tenants", "--forget", "away")[0] == 0
    assert [each.tenant.name for each in ledger.tenancies()] == ["trainer"]


@pytest.mark.slow
def test_a_command_is_bound_by_the_ledger_where_there_is_one(run: Command, ledger: Tenants, kept: Path) -> None:
    device = f"host:{node_name()}"
    with LoopbackProcess.start(weights_mib=96, kv_mib=96) as process:
        url = f"loopback://127.0.0.1:{process.port}"
        chosen = ("--threshold-gib", "0.125")
        assert run("offload", url, "--weights", str(process.weights), "--version", "v1", *chosen)[0] == 0
        assert not ledger.path.exists(), "there is no ledger, and none is begun"
        total = 320 * MIB
        ledger = Tenants(kept / "tenants.sqlite3", budgets={device: total})
        ledger.holds(HERE, {device: total}, given_back=False)
        code, said = run("onload", url, "--deadline", "1", *chosen)
        assert code != 0
        assert "cotenants_within_budget" in said
        assert "trainer t (pid 1 on here) may hold 320 MiB of it" in said
        assert run("status", url)[0] == 0
        ledger.leaves("trainer")
        code, said = run("onload", url, *chosen)
        assert code == 0, said
        sizes = {each.tenant.kind: (each.size_bytes or 0) // MIB for each in ledger.tenancies()}
        assert sizes["engine"] >= 192
