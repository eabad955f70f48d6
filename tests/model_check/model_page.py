"""docs/measured/model.md: how far the explorer walked, what it found, and the dead ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from explore import Found

_INTRO = """# The explorer: the last result

Written by `make model` (`tests/model_check/model_page.py`); do not edit. The shipped engine, fleet, recovery and leases
run on a loop of the explorer's own, which chooses what happens next; every choice within the budget of a scenario is
walked. A *deviation* is anything but the plain course: a call or a question that ends otherwise, an answer that comes
before an older one, time that passes first, and whatever a scenario lets happen. What must be so in every state is in
`tests/model_check/invariants.py`, and what nobody can see in `tests/model_check/truth.py`. From every end of every run
a further driver brings home what lives. What the tests find where the code is broken: [mutants.md](mutants.md).
"""


def page(
    found: Sequence[Found],
    seconds: float,
    facts: Mapping[str, str],
    *,
    put_back: Mapping[str, Found] | None = None,
    spin: Sequence[str] = (),
) -> str:
    """The whole page. `put_back` is what came of each fault that was put back, `spin` what SPIN says, by line."""
    violations = sum(sum(each.counts.values()) for each in found)
    states, transitions = sum(each.states for each in found), sum(each.transitions for each in found)
    rows = {
        **facts,
        "result": f"{states:,} states, {transitions:,} transitions, violations {violations}, in {seconds:.0f} s",
    }
    parts = [_INTRO, "\n| | |\n|---|---|\n", *(f"| {name} | {value} |\n" for name, value in rows.items())]
    parts += ["\n## Scenarios\n\n| scenario | walked | states | transitions | depth | runs | s | violations |\n"]
    parts += ["|---|---|---:|---:|---:|---:|---:|---:|\n", *map(_row, found)]
    return "".join([*parts, *_violations(found), *_dead_ends(found), *_put_back(put_back or {}), *_spin(spin)])


def _row(each: Found) -> str:
    walked = "to the end" if each.complete else "to its bound"
    figures = f"{each.states:,} | {each.transitions:,} | {each.depth} | {each.runs:,} | {each.seconds:.0f}"
    return f"| {each.name} | {walked} | {figures} | {sum(each.counts.values())} |\n"


def _violations(found: Sequence[Found]) -> list[str]:
    broken = [(each.name, one) for each in found for one in each.broken.values()]
    return [f"\n## {name}: VIOLATION\n\n{_story(one.what, one.story)}" for name, one in broken]


def _dead_ends(found: Sequence[Found]) -> list[str]:
    ends = {name: truths for each in found for name, truths in each.dead_ends_named().items()}
    parts = [f"\n## Dead ends: {len(ends)}\n\n"]
    parts += ["An engine lives, and nothing that is asked tells which of two truths is so.\n"] if ends else ["None.\n"]
    for name, truths in ends.items():
        parts += [f"\n- {name}\n", *(f"  - {each.truth}\n" for each in truths)]
    return parts


def _put_back(found: Mapping[str, Found]) -> list[str]:
    """Each with the trace that leads to it."""
    parts = [f"\n## Faults put back: {len(found)}\n\nThat it would find them (`tests/model_check/put_back.py`).\n"]
    for name, each in found.items():
        (broken,) = [*each.broken.values()][:1] or [None]
        parts.append(f"\n### {name}\n\n{each.name}: ")
        if broken is None:
            parts.append("NOT found.\n")
        else:
            parts.append(f"found after {each.states:,} states, in {len(broken.path)} steps.\n\n")
            parts.append(f"<details><summary>its trace</summary>\n\n{_story(broken.what, broken.story)}\n</details>\n")
    return parts if found else []


def _spin(lines: Sequence[str]) -> list[str]:
    """What each search of SPIN came to."""
    about = (
        "A model generated from the table, which shares no code with the library (`tests/model_check/spin_model.py`)"
    )
    how = "liveness is under weak fairness, and with no process that dies"
    said = "".join(f"- {line}\n" for line in lines)
    return [f"\n## SPIN\n\n{about}; {how}.\n\n{said}"] if lines else []


def _story(what: str, story: str) -> str:
    lines = "\n".join(line[:140] for line in f"{what}\n{story}".splitlines())
    return f"```text\n{lines}\n```\n"
