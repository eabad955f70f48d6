"""The ledger of tenants from threads that block."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

import lifecycle
from lifecycle import FromDisk, Policy
from lifecycle.core.tenants import NoRoom
from lifecycle.engine import occupancy
from lifecycle.nodes.processes import node_name
from lifecycle.store import Tenants
from lifecycle.sync import Fleet, occupying

GIB = 1 << 30
MIB = 1 << 20
POLICY = Policy(residual_threshold_gib=0.25, poll_s=0.01)


def test_it_takes_what_the_asynchronous_ones_take() -> None:
    assert inspect.signature(occupying).parameters == inspect.signature(occupancy.occupying).parameters
    ours, theirs = (inspect.signature(each.connect).parameters for each in (Fleet, lifecycle.Fleet))
    assert list(ours) == list(theirs)


def test_a_trainer_trains_while_its_engine_is_released(tmp_path: Path) -> None:
    host = f"host:{node_name()}"
    tenants = Tenants(tmp_path / "tenants.sqlite3", budgets={host: 4 * GIB})
    with LoopbackProcess.start(weights_mib=96, kv_mib=96) as process:
        url, source = f"loopback://127.0.0.1:{process.port}", FromDisk(str(process.weights), "v1")
        with Fleet.connect([url], policy=POLICY, tenants=tenants) as fleet:
            (engine,) = tenants.tenancies()
            assert engine.size_bytes is not None
            assert engine.size_bytes > 192 * MIB
            full = 4 * GIB - engine.size_bytes + MIB  # too much beside an engine that serves
            with (
                pytest.raises(NoRoom, match="engine loopback"),
                occupying(tenants, {host: full}, name="trainer", deadline_s=0.1, policy=POLICY),
            ):
                raise AssertionError("it was let in")
            with (
                fleet.offloaded(weights=source),
                occupying(tenants, {host: full}, name="trainer", deadline_s=10.0, keeps_bytes=2 * GIB, policy=POLICY),
            ):
                sizes = {each.tenant.name: each.size_bytes for each in tenants.tenancies()}
                assert sizes["trainer"] == full
            assert [str(each.state) for each in fleet] == ["serving"]
