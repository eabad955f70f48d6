"""The ledger of tenants: who may hold memory of which device, among the processes of one host."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lifecycle import (
    ConfigurationError,
    Policy,
    Process,
)
from lifecycle.core.tenants import LedgerUnusable, Shortage, Tenant
from lifecycle.nodes.processes import by_pid, node_name, start_mark
from lifecycle.store import Tenants, shared_file

GIB = 1 << 30
CARD = "GPU-1"
QUICK = Policy(poll_s=0.01, room_wait_s=0.05, settle_s=0.2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tenants.sqlite3"


def tenant(
    name: str, pipeline: str = "", processes: tuple[Process, ...] | None = None, kind: Any = "trainer"
) -> Tenant:
    """A tenant whose process is this one, unless others are given."""
    return Tenant(
        name, kind, f"{kind} {name}", pipeline or name, (by_pid(os.getpid()),) if processes is None else processes
    )


def take(ledger: Tenants, who: Tenant, gib: float | None, device: str = CARD, wait_s: float = 60.0) -> Shortage | None:
    """What the tenant is told that asks for so much of an 80 GiB device."""
    need = None if gib is None else round(gib * GIB)
    return ledger.reserve(who, {device: need}, totals={device: 80 * GIB}, wait_s=wait_s)


def held(ledger: Tenants) -> dict[str, float | None]:
    """GiB that each tenant may hold."""
    found = ledger.tenancies()
    return {each.tenant.name: None if each.size_bytes is None else each.size_bytes / GIB for each in found}


# budgets


def test_what_is_taken_of_a_device_never_exceeds_its_size(path: Path) -> None:
    ledger = Tenants(path)
    assert take(ledger, tenant("a"), 50) is None
    short = take(Tenants(path), tenant("b"), 31)
    assert short is not None
    assert "trainer a may hold 51200 MiB of it since 20" in str(short)
    assert take(Tenants(path), tenant("b"), 30) is None
    assert held(ledger) == {"a": 50, "b": 30}


def test_a_stated_budget_counts_in_every_process_and_is_one(path: Path) -> None:
    ledger = Tenants(path, budgets={CARD: 20 * GIB})
    assert take(ledger, tenant("a"), 15) is None
    assert "budget of GPU-1 is 20480 MiB" in str(take(Tenants(path), tenant("b"), 10))
    with pytest.raises(ConfigurationError, match="state the same one everywhere"):
        Tenants(path, budgets={CARD: 30 * GIB}).leaves("nobody")
    ledger.leaves("a")
    Tenants(path, budgets={CARD: 30 * GIB}).leaves("nobody")
    assert ledger.budgets() == {CARD: 30 * GIB}


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "8"])
def test_a_budget_is_a_number_of_bytes(path: Path, size: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"budgets\['GPU-1'\]: a number of bytes > 0"):
        Tenants(path, budgets={CARD: size})


def test_all_devices_are_taken_or_none(path: Path) -> None:
    ledger = Tenants(path, budgets={"GPU-1": 10, "GPU-2": 10})
    ledger.reserve(tenant("a"), {"GPU-2": 5}, totals={}, wait_s=1)
    assert ledger.reserve(tenant("b"), {"GPU-1": 6, "GPU-2": 6}, totals={}, wait_s=1) is not None
    assert [each.device for each in ledger.tenancies()] == ["GPU-2"]


def test_a_budget_that_is_too_small_for_one_alone_is_said_so(path: Path) -> None:
    assert "nobody else holds any, so it is too small for this tenant" in str(take(Tenants(path), tenant("a"), 81))


def test_a_device_of_unknown_size_needs_a_budget(path: Path) -> None:
    with pytest.raises(LedgerUnusable, match=r"state Tenants\(budgets=\{'GPU-1': BYTES\}\)"):
        Tenants(path).reserve(tenant("a"), {CARD: 1}, totals={}, wait_s=1)


def test_the_budget_of_a_mig_instance_is_its_own(path: Path) -> None:
    ledger = Tenants(path)
    assert take(ledger, tenant("a"), 80, device="MIG-a") is None
    assert take(ledger, tenant("b"), 80, device="MIG-b") is None


# what is not known


def test_beside_an_unknown_part_there_is_no_room(path: Path) -> None:
    ledger = Tenants(path)
    ledger.holds(tenant("a"), {CARD: None}, given_back=False)
    assert "may hold an unknown part of it" in str(take(ledger, tenant("b"), 1))


def test_who_does_not_know_what_it_needs_must_be_alone_but_for_what_was_given_back(path: Path) -> None:
    ledger = Tenants(path)
    ledger.holds(tenant("a"), {CARD: 2 * GIB}, given_back=False)
    assert "an unknown part of it is needed" in str(take(ledger, tenant("b"), None))
    ledger.holds(tenant("a"), {CARD: 2 * GIB}, given_back=True)
    assert take(ledger, tenant("b"), None) is None
    assert take(ledger, tenant("c"), 1) is not None


# the line


def test_who_asked_first_is_first_where_another_wants_it_back_at_once(path: Path) -> None:
    ledger = Tenants(path)
    a, b = tenant("a"), tenant("b")
    assert take(ledger, a, 80) is None
    assert take(ledger, b, 80) is not None
    ledger.holds(a, {CARD: GIB}, given_back=True)
    assert "trainer b waits for it for longer" in str(take(ledger, a, 70))
    assert take(ledger, b, 79) is None


def test_who_asks_again_keeps_its_place(path: Path) -> None:
    ledger = Tenants(path)
    a, b, c = tenant("a"), tenant("b"), tenant("c")
    assert take(ledger, a, 80) is None
    for each in (b, c, b):
        assert take(ledger, each, 80) is not None
    ledger.leaves("a")
    assert "trainer b waits for it for longer" in str(take(ledger, c, 80))
    assert take(ledger, b, 80) is None


def test_a_pipeline_does_not_wait_behind_itself(path: Path) -> None:
    ledger = Tenants(path)
    take(ledger, tenant("a"), 60)
    assert take(ledger, tenant("big", "one"), 30) is not None
    assert take(ledger, tenant("small", "one"), 10) is None


def test_who_names_no_pipeline_leaves_a_tenant_in_its_own(path: Path) -> None:
    """A command line that brings an engine back is none of its pipeline, and takes it from none."""
    Tenants(path, pipeline="one").holds(tenant("engine", "one"), {CARD: 60 * GIB}, given_back=False)
    Tenants(path).holds(tenant("engine", "the command line's"), {CARD: 50 * GIB}, given_back=False)
    assert [(each.tenant.pipeline, each.size_bytes) for each in Tenants(path).tenancies()] == [("one", 50 * GIB)]
    Tenants(path, pipeline="two").holds(tenant("engine", "two"), {CARD: 60 * GIB}, given_back=False)
    assert [each.tenant.pipeline for each in Tenants(path).tenancies()] == ["two"]


def test_who_waits_no_longer_is_not_waited_for(path: Path) -> None:
    ledger = Tenants(path)
    a, b = tenant("a"), tenant("b")
    take(ledger, a, 80)
    take(ledger, b, 80, wait_s=0.0)
    ledger.holds(a, {CARD: GIB}, given_back=True)
    assert take(ledger, a, 70) is None


def test_a_pipeline_that_holds_the_device_does_not_wait_behind_another(path: Path) -> None:
    """The one that waits may be waiting for it: each would wait for the other until its deadline."""
    ledger = Tenants(path, pipeline="one")
    engine = tenant("engine", "one", kind="engine")
    take(ledger, tenant("trainer", "one"), 40)
    take(ledger, tenant("other", "two"), 60)
    assert take(ledger, engine, 20) is None, "its weights come back beside the trainer's"
    assert take(ledger, engine, 40) is None, "what it holds is not counted twice"


def test_an_engine_that_stays_gives_its_trainer_no_way_past_the_line(path: Path) -> None:
    ledger = Tenants(path, pipeline="one")
    take(ledger, tenant("judge", "one", kind="engine"), 2)
    take(ledger, tenant("trainer", "one"), 70)
    assert take(ledger, tenant("other", "two"), 70) is not None
    ledger.leaves("trainer")
    assert "trainer other waits for it for longer" in str(take(ledger, tenant("trainer", "one"), 70))


# who has ended


def started() -> subprocess.Popen[str]:
    """A process that lives until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_tenant_whose_processes_have_ended_holds_nothing(path: Path) -> None:
    ledger, process = Tenants(path), started()
    try:
        take(ledger, tenant("a", processes=(by_pid(process.pid), by_pid(os.getpid()))), 80)
        take(ledger, tenant("engine", processes=(by_pid(process.pid),), kind="engine"), 80, device="GPU-2")
        assert take(ledger, tenant("b"), 1, device="GPU-2") is not None
    finally:
        process.kill()
        process.communicate()
    assert held(ledger) == {"a": 80}, "one of its processes lives"
    assert take(ledger, tenant("b"), 80, device="GPU-2") is None


@pytest.mark.parametrize("away", [Process("another-host", 7, 0.0), Process(node_name(), 7, 0.0, agent="n:1")])
def test_of_a_process_of_another_host_nothing_is_known_so_it_may_live(path: Path, away: Process) -> None:
    ledger = Tenants(path)
    take(ledger, tenant("a", processes=(away,)), 80)
    assert take(ledger, tenant("b"), 1) is not None
    ledger.leaves("a")
    assert take(ledger, tenant("b"), 1) is None


def test_nothing_is_known_of_another_host_by_a_pid_that_exists_here(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifecycle.store.tenants.pid_namespace", lambda: "")  # a kernel that has no namespaces
    ledger = Tenants(path)
    take(ledger, tenant("a", processes=(Process("another-host", os.getpid(), 0.0),)), 80)
    assert take(ledger, tenant("b"), 1) is not None


def test_a_pid_of_another_namespace_says_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Tenants(path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("lifecycle.store.tenants.pid_namespace", lambda: "pid:[1]")
        elsewhere.setattr("lifecycle.store.tenants.start_mark", lambda pid: "here/boot/1")
        take(ledger, tenant("a"), 80)
    assert take(ledger, tenant("b"), 1) is not None


def test_a_name_is_one_tenants(path: Path) -> None:
    ledger, process = Tenants(path), started()
    try:
        take(ledger, tenant("trainer", processes=(by_pid(process.pid),)), 1)
        with pytest.raises(ConfigurationError, match="'trainer' is the name of another tenant"):
            take(ledger, tenant("trainer"), 1)
    finally:
        process.kill()
        process.communicate()
    assert take(ledger, tenant("trainer"), 1) is None


# a file that another has


LOCKS = (
    "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('BEGIN IMMEDIATE'); print(flush=True); input()"
)


def test_a_tenant_of_another_container_of_this_host_lives(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host has another name, and one pid namespace with this: the mark of its process does not name the host."""
    take(Tenants(path), tenant("a"), 80)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("lifecycle.store.tenants.node_name", lambda: "another-container")
        mark = f"another-container/{start_mark(os.getpid()).partition('/')[2]}"
        elsewhere.setattr("lifecycle.store.tenants.start_mark", lambda pid: mark)
        assert take(Tenants(path), tenant("b"), 1) is not None
    assert held(Tenants(path)) == {"a": 80}


def test_a_file_of_another_host_names_processes_that_may_live(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(Tenants(path), tenant("a"), 80)
    monkeypatch.setattr("lifecycle.store.tenants.node_name", lambda: "another-host")
    monkeypatch.setattr("lifecycle.store.tenants.start_mark", lambda pid: "another-host/its-boot/7")
    assert take(Tenants(path), tenant("b"), 1) is not None


def test_one_name_and_one_pid_on_two_hosts_are_two_tenants(path: Path) -> None:
    ledger = Tenants(path)
    take(ledger, tenant("trainer", processes=(Process("pod-a", 1, 0.0),)), 60)
    with pytest.raises(ConfigurationError, match="'trainer' is the name of another tenant"):
        take(ledger, tenant("trainer", processes=(Process("pod-b", 1, 0.0),)), 60)


def test_a_budget_is_no_more_than_the_device_has(path: Path) -> None:
    assert "budget of GPU-1 is 81920 MiB" in str(take(Tenants(path, budgets={CARD: 500 * GIB}), tenant("a"), 81))


def test_a_process_that_was_forked_while_another_thread_was_in_the_file_can_ask(path: Path) -> None:
    ledger, asked = Tenants(path), path.with_name("asked")
    take(ledger, tenant("a"), 1)
    with ledger._file.asking():
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            asked.write_text(str(len(ledger.tenancies())))
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert asked.read_text() == "1"


def test_a_ledger_that_was_locked_by_a_dead_process_is_free(path: Path) -> None:
    ledger = Tenants(path)
    take(ledger, tenant("a"), 1)
    holder = subprocess.Popen([sys.executable, "-c", LOCKS, str(path)], stdin=-1, stdout=-1, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert take(ledger, tenant("b"), 1) is None
    assert held(ledger) == {"a": 1, "b": 1}


def test_a_ledger_that_a_living_process_keeps_locked_is_said_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_file, "BUSY_S", 0.1)
    ledger = Tenants(path)
    ledger.leaves("nobody")
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnusable, match="another process writes it and does not end that"):
            take(ledger, tenant("a"), 1)
        other.execute("ROLLBACK")
    other.close()
    assert take(ledger, tenant("a"), 1) is None


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(LedgerUnusable, match="LIFECYCLE_STATE_DIR names another folder"):
        Tenants(tmp_path / "file" / "below").leaves("a")
