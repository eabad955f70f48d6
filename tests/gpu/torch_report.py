"""Renders the figures of torch_cycles.py as a page, and lists the targets that they miss."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

GIB = 1 << 30
MIB = 1 << 20

#: Targets: the share of memory that is released, the growth in bytes (a page of the driver), the share of a plain
#: copy's speed.
RECLAIM, GROWTH_BYTES, OF_PLAIN = 0.99, 2 * MIB, 0.95


def missed(figures: dict[str, Any]) -> dict[str, list[str]]:
    """The targets that are missed, by subject; a list is empty where all targets of the subject are met."""
    return {
        "every part ran": list(_broken(figures)),
        "logits": list(_other_logits(figures)),
        "reclaim": list(_kept_back(figures)),
        "growth": list(_grown(figures)),
        "staging": list(_slow(figures)),
    }


def _broken(figures: dict[str, Any]) -> Iterator[str]:
    parts = {"bare": figures["bare"], **_rings(figures), "copies": figures.get("copies", {})}
    for name, part in parts.items():
        if "error" in part:
            yield f"{name} ended with {part.get('returncode')}: {part['error'][-400:]}"


def _rings(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every part that ran cycles, by hook mode or by what kept the weights."""
    return {f"{kind} {name}": each for kind in ("ring", "backups") for name, each in figures[kind].items()}


def _other_logits(figures: dict[str, Any]) -> Iterator[str]:
    for name, ring in _rings(figures).items():
        if ring.get("identical_logits", 0) < ring.get("cycles", 1):
            yield f"{name}: identical in {ring.get('identical_logits', 0)} of {ring.get('cycles', 0)} cycles"


def _kept_back(figures: dict[str, Any]) -> Iterator[str]:
    for name, ring in figures["ring"].items():
        share = reclaimed(ring, figures["bare"].get("context_bytes"))
        if share is None or share < RECLAIM:
            yield f"{name}: {'unknown' if share is None else f'{share:.2%}'} came back, target {RECLAIM:.0%}"


def reclaimed(ring: dict[str, Any], bare: int | None) -> float | None:
    """The least share, in any cycle, of memory beyond the bare context that was released; None if not measured."""
    at = ring.get("bytes_at")
    if at is None or bare is None:
        return None
    return min((up - down) / (up - bare) for up, down in zip(at["serving"], at["released"], strict=True))


def _grown(figures: dict[str, Any]) -> Iterator[str]:
    for name, ring in figures["ring"].items():
        later = growth_bytes(ring)
        if later is None or later > GROWTH_BYTES:
            yield f"{name}: {_mib(later)} from the second cycle to the last, target 0"


def growth_bytes(ring: dict[str, Any], since: int = 1) -> int | None:
    """Bytes that the last release left more than that of cycle `since` (0: the first); None where not measured."""
    if "bytes_at" not in ring:
        return None
    released: list[int] = ring["bytes_at"]["released"]
    return released[-1] - released[min(since, len(released) - 1)]


def _slow(figures: dict[str, Any]) -> Iterator[str]:
    copies = figures.get("copies", {})
    for way in ("to_host_gb_s", "to_device_gb_s") if "staging" in copies else ():
        share = copies["staging"][way] / copies["plain_pinned"][way]
        if share < OF_PLAIN:
            yield f"{way}: {share:.1%} of a plain pinned copy, target {OF_PLAIN:.0%}"


def page(figures: dict[str, Any]) -> str:
    """The figures in Markdown, each against its target."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    yield "# torch in this process, measured"
    yield ""
    yield from (f"- {key}: {value}" for key, value in figures["machine"].items())
    asked = figures["asked"]
    sizes = f"--gib {asked['gib']} --kv-gib {asked['kv_gib']} --cycles {asked['cycles']}"
    yield f"- made by `tests/gpu/torch_cycles.py --device {asked['device']} {sizes}`"
    yield ""
    bare, with_cublas = (figures["bare"].get(name) for name in ("context_bytes", "with_cublas_bytes"))
    yield f"A process with a bare torch context holds {_mib(bare)}, one that has multiplied {_mib(with_cublas)}."
    for name, ring in figures["ring"].items():
        yield from _ring(name, ring, bare)
    yield from _contents(figures)
    if "copies" in figures:
        yield from _copies(figures["copies"])


def _ring(name: str, ring: dict[str, Any], bare: int | None) -> Iterator[str]:
    yield ""
    yield f"## Hook mode {name}"
    yield ""
    if "bytes_at" not in ring:
        yield f"Failed: `{ring.get('error', '')[-400:]}`"
        return
    at = ring["bytes_at"]
    tags = ", ".join(f"{tag} {_mib(size)}" for tag, size in ring["tags_bytes"].items())
    yield f"Regions: {tags}. Outside regions torch's allocator holds {_mib(ring['allocator_outside_regions_bytes'])}."
    yield ""
    yield "| state | resident, first cycle | last cycle |"
    yield "|---|---|---|"
    yield from (f"| {state} | {_mib(sizes[0])} | {_mib(sizes[-1])} |" for state, sizes in at.items())
    yield ""
    share = reclaimed(ring, bare)
    if share is not None:
        least = f"least of {ring['cycles']}; target on a GPU: {RECLAIM:.0%}"
        yield f"- reclaim: {share:.2%} of what was held beyond the bare context ({least})"
    growth, later = ((growth_bytes(ring, since) or 0) / MIB for since in (0, 1))
    growth_text = f"{growth:.1f} MiB, from the second on {later:.1f} (target 0)"
    yield f"- growth of the residual over {ring['cycles']} cycles: {growth_text}"
    yield f"- logits identical, eager and by graph: {ring['identical_logits']} of {ring['cycles']} cycles"
    seconds = ", ".join(f"{name} {statistics.median(each):.3f}" for name, each in ring["command_s"].items())
    yield f"- seconds for each command, proofs included (median): {seconds}"
    calls = ", ".join(f"{name} {statistics.median(each):.3f}" for name, each in ring["call_s"].items())
    yield f"- seconds for each effect (median): {calls}"


def _contents(figures: dict[str, Any]) -> Iterator[str]:
    """Staging against the saver's own backups: from the contents on the device to the memory given back, and again."""
    rings = {"host staging": next(iter(figures["ring"].values())), **figures["backups"]}
    yield from ("", "## Weights kept through a release", "")
    yield "| kept by | to host and released, s | GB/s | mapped and back, s | GB/s | identical logits |"
    yield "|---|---|---|---|---|---|"
    for name, ring in rings.items():
        if "call_s" not in ring:
            yield f"| {name} | failed: {ring.get('error', '')[-200:]!r} | | | | |"
            continue
        out, back = (_seconds(ring, each) for each in (("stage", "release"), ("restore", "unstage")))
        size = ring["model_bytes"] / 1e9
        same = f"{ring['identical_logits']} of {ring['cycles']}"
        yield f"| {name} | {out:.3f} | {size / out:.1f} | {back:.3f} | {size / back:.1f} | {same} |"


def _seconds(ring: dict[str, Any], names: tuple[str, ...]) -> float:
    """The median seconds of these effects on the weights together, without the first cycle, which allocates."""
    calls = ring["call_s"]
    return sum(statistics.median(calls[f"{name} weights"][1:]) for name in names if f"{name} weights" in calls)


def _copies(copies: dict[str, Any]) -> Iterator[str]:
    yield from ("", "## Copies alone", "")
    if "staging" not in copies:
        yield f"Failed: `{copies.get('error', '')[-400:]}`"
        return
    size = f"{copies['tensors']} tensors, {copies['bytes'] / GIB:.2f} GiB"
    yield f"{size}; the first stage, which allocates, took {copies['first_stage_s']:.2f} s."
    yield ""
    yield "| | to host, GB/s | of plain | to device, GB/s | of plain |"
    yield "|---|---|---|---|---|"
    plain = copies["plain_pinned"]
    for name in ("staging", "plain_pinned", "cpu_per_tensor"):
        each = copies[name]
        shares = [each[way] / plain[way] for way in ("to_host_gb_s", "to_device_gb_s")]
        there = f"{each['to_host_gb_s']:.1f} {_range(each['to_host_range'])} | {shares[0]:.1%}"
        back = f"{each['to_device_gb_s']:.1f} {_range(each['to_device_range'])} | {shares[1]:.1%}"
        yield f"| {name.replace('_', ' ')} | {there} | {back} |"
    yield ""
    yield f"Medians (range). The target of staging is {OF_PLAIN:.0%} of plain."


def _range(ends: list[float]) -> str:
    return f"({ends[0]:.1f}-{ends[1]:.1f})"


def _mib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / MIB:.0f} MiB"
