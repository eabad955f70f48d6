"""Checksums by model role: of reports in the form of SGLang's, and of a running server."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from engines import post, url
from lifecycle.adapters.sglang.checksums import by_role, of_engine

from lifecycle import Fact, Fleet, FleetError, FromDisk, Policy, Proved


def digest(*parts: str) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def rank(*roles: str, **checksums: str) -> dict[str, Any]:
    """One rank's part of a report. Source: sglang 0.5.23, weight_updater._merge_checksum_payloads."""
    named = {name.replace("__", "."): value for name, value in checksums.items()}
    return {"checksums": named, "per_gpu_checksum": "x", "parallelism_info": [{"role": role} for role in roles]}


def report(*ranks: dict[str, Any]) -> dict[str, Any]:
    return {"success": True, "message": "Success.", "ranks": list(ranks), "per_engine_checksum": "all"}


def test_the_target_alone() -> None:
    checked = report(rank("target", b="2", a="1"))
    assert by_role(checked) == {"target": digest(digest("a1b2"))}
    assert of_engine(checked) == "all"


def test_ranks_in_turn() -> None:
    checked = report(rank("target", a="1"), rank("target", a="2"))
    assert by_role(checked) == {"target": digest(digest("a1"), digest("a2"))}


@pytest.mark.parametrize("role", ["draft", "draft_step_0"])
def test_a_draft_is_separated_from_the_target(role: str) -> None:
    checked = report(rank("target", role, a="1", **{f"{role}__a": "7"}))
    assert by_role(checked) == {"target": digest(digest("a1")), "draft": digest(digest(f"{role}.a7"))}


def test_several_drafts_are_one_role() -> None:
    steps = {"draft_step_0__a": "7", "draft_step_1__a": "8"}
    checked = report(rank("target", "draft_step_0", "draft_step_1", a="1", **steps))
    assert by_role(checked)["draft"] == digest(digest("draft_step_0.a7draft_step_1.a8"))


@pytest.mark.parametrize("name", ["draft__a", "target__a"])
def test_a_tensor_of_the_target_may_be_named_like_a_role(name: str) -> None:
    assert set(by_role(report(rank("target", **{name: "1"})))) == {"target"}


@pytest.mark.parametrize("checked", [{}, {"success": True}, {"ranks": None, "per_engine_checksum": None}])
def test_a_report_without_ranks(checked: dict[str, Any]) -> None:
    assert by_role(checked) == {}
    assert of_engine(checked) is None


@pytest.mark.parametrize("ranks", [1, 2])
async def test_what_is_computed_is_what_the_server_answers(start, policy: Policy, ranks: int) -> None:
    process = start(ranks=ranks)
    checked = post(process, "/weights_checker", {"selector": "target"})
    assert post(process, "/weights_checker", {"selector": "draft"}) == {"success": True, "message": "Success."}
    async with Fleet.connect([url(process, name="e", checksum="true")], policy=policy) as fleet:
        seen = await fleet["e"].adapter.observe(frozenset({Fact.CHECKSUM}), deadline_s=10)
    assert seen.checksum == checked["per_engine_checksum"]
    assert seen.checksums == {"target": checked["per_engine_checksum"]}


async def test_target_by_name_and_no_draft(start, checkpoint: Path, policy: Policy) -> None:
    checksum = str(post(start(weights=checkpoint), "/weights_checker", {})["per_engine_checksum"])
    right = FromDisk(str(checkpoint), "step-2", checksum={"target": checksum, "draft": "0" * 64})
    wrong = FromDisk(str(checkpoint), "step-2", checksum={"target": "0" * 64})
    async with Fleet.connect([url(start(), name="e", checksum="true")], policy=policy) as fleet:
        engine = fleet["e"]
        await fleet.pause()
        await fleet.drain()
        with pytest.raises(FleetError, match=f"the checksum of its target is {checksum}, not 000"):
            await fleet.update_weights(wrong)
        record = await engine.update_weights(right, force=True)
        verdict = record.verdicts["weights_match"]
        assert isinstance(verdict, Proved)
        assert verdict.reason.endswith("draft: not applicable, it has none")
