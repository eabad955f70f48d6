"""The table, drawn: Mermaid and SVG of the ring and of the full machine, and the rows as a table."""

from __future__ import annotations

import math
from html import escape

from ..core.states import RING, STABLE, TRANSIENT, UNCLAIMED, State
from ..rules.machine import edges
from ..rules.table import CLAIMS, OPERATIONS

WHATS = ("ring", "full")
FORMATS = ("mermaid", "svg", "table")


def draw(what: str, form: str) -> str:
    """The diagram of `what` in this form; ValueError names those there are."""
    if what not in WHATS or form not in FORMATS:
        raise ValueError(f"no diagram {what!r} as {form!r}: one of {', '.join(WHATS)} as {', '.join(FORMATS)}")
    if form == "table":
        return table()
    return {"mermaid": mermaid, "svg": svg}[form](what)


def arrows(what: str) -> list[tuple[State, State, str]]:
    """The edges of a diagram: source, destination, label; those between the same states share one arrow."""
    if what == "ring":
        found = [(row.source, row.dest, row.command) for row in OPERATIONS]
    else:
        # What holds for every state (observed, contradicted, failed) is said in a note: drawn, it hides the rest.
        found = [(source, dest, name) for name, source, dest in edges() if not _everywhere(name)]
    merged: dict[tuple[State, State], list[str]] = {}
    for source, dest, label in found:
        labels = merged.setdefault((source, dest), [])
        if label not in labels:
            labels.append(label)
    return [(source, dest, ", ".join(labels)) for (source, dest), labels in merged.items()]


def _everywhere(name: str) -> bool:
    return name in ("failed", "contradicted") or name.startswith(("observed_", "asserted_"))


NOTE = (
    "an arrow without a word: it succeeded. every transient state may fail, every stable one may be contradicted: "
    "both become failed. detached, failed and gone become what is observed; failed also what an operator declares."
)


def mermaid(what: str) -> str:
    """A Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.SERVING}: observed"]
    lines += [f"    {source} --> {dest}: {label}" for source, dest, label in arrows(what)]
    if what == "full":
        lines += [f"    note right of {State.FAILED}: {NOTE.replace(':', ',').replace(';', ',')}"]
        lines += [
            f"    {State.FAILED} --> {State.SERVING}: observed, asserted",
            f"    {State.GONE} --> {State.SERVING}: observed",
        ]
        lines += ["    classDef transient fill:#eee,stroke:#999", f"    class {','.join(sorted(TRANSIENT))} transient"]
    return "\n".join(lines) + "\n"


def table() -> str:
    """The rows, as a Markdown table."""
    lines = ["| command | source | via | dest | guards (before) | proofs (after) |", "|---|---|---|---|---|---|"]
    for row in OPERATIONS:
        guards = ", ".join(guard.name for guard in row.guards)
        proofs = ", ".join(proof.name for proof in row.proofs)
        lines.append(f"| {row.command} | {row.source} | {row.via} | {row.dest} | {guards} | {proofs} |")
    return "\n".join(lines) + "\n"


# SVG: the ring clockwise from the top; a transient stands between the states that it joins, further in.

_WIDTH, _HEIGHT, _BOX_W, _BOX_H = 1320, 820, 150, 34
_BESIDE = 230.0
_CENTRE = (_WIDTH / 2, _HEIGHT / 2 - 40)
_RADIUS = (400.0, 310.0)
Point = tuple[float, float]

_STYLE = """text{font:13px system-ui,sans-serif;fill:#1b1f24}.label{font-size:11px;fill:#57606a}
.box{fill:#fff;stroke:#1b1f24;stroke-width:1.4}.transient{fill:#f3f4f6;stroke:#8c959f;stroke-dasharray:4 3}
.edge{fill:none;stroke:#57606a;stroke-width:1.2;marker-end:url(#tip)}.halo{stroke:#fff;stroke-width:4;paint-order:stroke}
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.label{fill:#9da7b3}.box{fill:#161b22;
stroke:#e6edf3}.transient{fill:#21262d}.edge{stroke:#9da7b3}.halo{stroke:#0d1117}}"""


def svg(what: str) -> str:
    """A picture that needs nothing from the network."""
    places = _places(what)
    parts = [_arrow(places[source], places[dest], _drawn(label)) for source, dest, label in arrows(what)]
    parts += [_box(state, place) for state, place in places.items()]
    note = "" if what == "ring" else f'<text class="label" x="20" y="{_HEIGHT - 14}">{escape(NOTE)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="The lifecycle of an inference engine: {what}"><style>{_STYLE}</style>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#8c959f"/></marker></defs>\n'
        + "\n".join(parts)
        + f"\n{note}\n</svg>\n"
    )


def _places(what: str) -> dict[State, Point]:
    places = {state: _on_ring(index / len(RING), 1.0) for index, state in enumerate(RING)}
    if what == "ring":
        return places
    for index, state in enumerate(sorted(STABLE & UNCLAIMED)):
        places[state] = (_WIDTH / 2 + (index - 1) * 180, _HEIGHT - 60)
    return places | _places_under_way(places)


def _places_under_way(places: dict[State, Point]) -> dict[State, Point]:
    """A transient of the ring between the states that it joins; one that leads back, outside of its state."""
    under_way: dict[State, Point] = {}
    for row in OPERATIONS:
        if row.via in under_way:
            continue
        index, (x, y) = RING.index(row.source), places[row.source]
        if row.source is row.dest:
            side = 1 if x > _CENTRE[0] else -1
            beside = sum(1 for other in under_way.values() if other[0] == x + side * _BESIDE)
            under_way[row.via] = (x + side * _BESIDE, y - 44 + 88 * beside)
        else:
            under_way[row.via] = _on_ring((index + 0.5) / len(RING), 1.0)
    return under_way


def _on_ring(turn: float, scale: float) -> Point:
    angle = 2 * math.pi * turn - math.pi / 2
    return (_CENTRE[0] + scale * _RADIUS[0] * math.cos(angle), _CENTRE[1] + scale * _RADIUS[1] * math.sin(angle))


def _middle(one: Point, other: Point) -> Point:
    return ((one[0] + other[0]) / 2, (one[1] + other[1]) / 2)


def _box(state: State, place: Point) -> str:
    x, y = place
    kind = "box" if state.stable else "box transient"
    claim = escape(CLAIMS.get(state, "under way"))
    return (
        f'<g><title>{claim}</title><rect class="{kind}" x="{x - _BOX_W / 2:.0f}" y="{y - _BOX_H / 2:.0f}" '
        f'width="{_BOX_W}" height="{_BOX_H}" rx="8"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{state}</text></g>'
    )


def _arrow(source: Point, dest: Point, label: str) -> str:
    if source == dest:
        x, y = source[0] + _BOX_W / 2, source[1]
        path = f"M{x:.0f} {y - 8:.0f} c44 -26 44 42 0 18"
        return f'<path class="edge" d="{path}"/>' + _label((x + 50, y - 24), label)
    bend = _bend(source, dest)
    begin, end = _border(source, bend), _border(dest, bend)
    curve = f"M{begin[0]:.0f} {begin[1]:.0f} Q{bend[0]:.0f} {bend[1]:.0f} {end[0]:.0f} {end[1]:.0f}"
    return f'<path class="edge" d="{curve}"/>' + _label(_middle(_middle(begin, end), bend), label)


def _bend(source: Point, dest: Point) -> Point:
    """A point to the left of the straight line, so that there and back do not lie on each other."""
    (x, y), (dx, dy) = _middle(source, dest), (dest[0] - source[0], dest[1] - source[1])
    return (x + 0.14 * dy, y - 0.14 * dx)


def _border(box: Point, towards: Point) -> Point:
    dx, dy = towards[0] - box[0], towards[1] - box[1]
    scale = min(_BOX_W / 2 / abs(dx) if dx else math.inf, _BOX_H / 2 / abs(dy) if dy else math.inf)
    return (box[0] + dx * scale, box[1] + dy * scale)


def _drawn(label: str) -> str:
    """What an arrow says: that a command succeeded goes without saying."""
    return "" if label == "succeeded" else label


def _label(place: Point, text: str) -> str:
    return f'<text class="label halo" x="{place[0]:.0f}" y="{place[1]:.0f}" text-anchor="middle">{escape(text)}</text>'
