"""docs/measured/model.md: how far the explorer walked, the dead ends, and the traces of faults that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from explore import Found
from known import KNOWN

_INTRO = """# The explorer: the last result

Written by `make model` (`tests/model_check/model_page.py`); do not edit. The shipped engine, fleet, recovery and leases
run on a loop of the explorer's own, which chooses what happens next; every choice within the budget of a scenario is
walked. A *deviation* is anything but the plain course: a call or a question that ends otherwise, an answer that comes
before an older one, time that passes first, and whatever a scenario lets happen. What must be so in every state is in
`tests/model_check/invariants.py`, and what nobody can see in `tests/model_check/truth.py`. From every end of every run
a further driver brings home what lives.
"""


def page(found: Sequence[Found], seconds: float, facts: Mapping[str, str]) -> str:
    """The whole page."""
    violations = sum(sum(each.counts.values()) for each in found)
    known = sum(sum(each.known.values()) for each in found)
    states, transitions = sum(each.states for each in found), sum(each.transitions for each in found)
    rows = {
        **facts,
        "result": f"{states:,} states, {transitions:,} transitions, violations {violations}, "
        f"instances of the {len(KNOWN)} known faults below {known}, in {seconds:.0f} s",
    }
    parts = [_INTRO, "\n| | |\n|---|---|\n", *(f"| {name} | {value} |\n" for name, value in rows.items())]
    parts += [
        "\n## Scenarios\n\n| scenario | walked | states | transitions | depth | runs | s | violations | known |\n"
    ]
    parts += ["|---|---|---:|---:|---:|---:|---:|---:|---:|\n", *map(_row, found)]
    return "".join([*parts, *_violations(found), *_dead_ends(found), *_known(found)])


def _row(each: Found) -> str:
    walked = "to the end" if each.complete else "to its bound"
    figures = f"{each.states:,} | {each.transitions:,} | {each.depth} | {each.runs:,} | {each.seconds:.0f}"
    return f"| {each.name} | {walked} | {figures} | {sum(each.counts.values())} | {sum(each.known.values())} |\n"


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


def _known(found: Sequence[Found]) -> list[str]:
    parts = [f"\n## Known faults: {len(KNOWN)}\n\nFaults of the library that are not mended yet (`known.py`).\n"]
    for each in KNOWN:
        stories = [came.stories[each.name] for came in found if each.name in came.stories]
        count = sum(came.known.get(each.name, 0) for came in found)
        parts.append(f"\n### {each.name}\n\n{count} runs came to it.\n")
        if stories:
            shortest = min(stories, key=lambda story: len(story.path))
            parts.append(f"\n{_story(shortest.what, shortest.story)}")
    return parts


def _story(what: str, story: str) -> str:
    lines = "\n".join(line[:140] for line in f"{what}\n{story}".splitlines())
    return f"```text\n{lines}\n```\n"
