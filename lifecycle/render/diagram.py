"""The diagrams: the ring and the full machine as Mermaid and as SVG, and the rows of the table as Markdown."""

from __future__ import annotations

import math
from html import escape

from ..core.states import RING, STABLE, TRANSIENT, UNCLAIMED, State
from ..rules.machine import edges
from ..rules.table import CLAIMS, OPERATIONS

DIAGRAMS = ("ring", "full")
FORMATS = ("mermaid", "svg", "table")


def draw(diagram: str, form: str) -> str:
    """One of DIAGRAMS in one of FORMATS; ValueError lists both. The table is the same for every diagram."""
    if diagram not in DIAGRAMS or form not in FORMATS:
        raise ValueError(f"no diagram {diagram!r} as {form!r}: one of {', '.join(DIAGRAMS)} as {', '.join(FORMATS)}")
    if form == "table":
        return table()
    return {"mermaid": mermaid, "svg": svg}[form](diagram)


def arrows(diagram: str) -> list[tuple[State, State, str]]:
    """The edges of a diagram: source, destination, label. Edges between the same two states share one arrow."""
    if diagram == "ring":
        triggers = [(row.source, row.dest, row.command) for row in OPERATIONS]
    else:
        # Edges that every state has (failed, contradicted, observed, asserted) would hide the others: NOTE has them.
        drawn = {"succeeded", *(row.command for row in OPERATIONS)}
        triggers = [(source, dest, trigger) for trigger, source, dest in edges() if trigger in drawn]
    labels: dict[tuple[State, State], list[str]] = {}
    for source, dest, trigger in triggers:
        of_pair = labels.setdefault((source, dest), [])
        if trigger not in of_pair:
            of_pair.append(trigger)
    return [(source, dest, ", ".join(of_pair)) for (source, dest), of_pair in labels.items()]


NOTE = (
    "an arrow without a label: the command succeeded. every transient state may fail, every stable one may be "
    "contradicted: both become failed. detached, failed and gone become what is observed; failed also what an operator "
    "asserts."
)


def mermaid(diagram: str) -> str:
    """A Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.SERVING}: observed"]
    lines += [f"    {source} --> {dest}: {label}" for source, dest, label in arrows(diagram)]
    if diagram == "full":
        lines += [f"    note right of {State.FAILED}: {NOTE.replace(':', ',').replace(';', ',')}"]
        lines += [
            f"    {State.FAILED} --> {State.SERVING}: observed, asserted",
            f"    {State.GONE} --> {State.SERVING}: observed",
        ]
        lines += ["    classDef transient fill:#eee,stroke:#999", f"    class {','.join(sorted(TRANSIENT))} transient"]
    return "\n".join(lines) + "\n"


def table() -> str:
    """The rows of the table as a Markdown table."""
    lines = ["| command | source | via | dest | guards (before) | proofs (after) |", "|---|---|---|---|---|---|"]
    for row in OPERATIONS:
        guards = ", ".join(guard.name for guard in row.guards)
        proofs = ", ".join(proof.name for proof in row.proofs)
        lines.append(f"| {row.command} | {row.source} | {row.via} | {row.dest} | {guards} | {proofs} |")
    return "\n".join(lines) + "\n"


# SVG, in pixels. The ring's states lie on an ellipse, clockwise from the top, and a transient state halfway between the
# two that it joins. A transient state that leads back to its own source lies outside of it, to the left or right.

_WIDTH, _HEIGHT, _BOX_W, _BOX_H = 1320, 820, 150, 34
_CENTRE = (_WIDTH / 2, _HEIGHT / 2 - 40)
_RADII = (400.0, 310.0)
#: From a state to a transient state that leads back to it: how far aside, how far above, and between two of them.
_LOOP_ASIDE, _LOOP_ABOVE, _LOOP_SPACING = 230.0, 44, 88
Point = tuple[float, float]

_STYLE = """text{font:13px system-ui,sans-serif;fill:#1b1f24}.label{font-size:11px;fill:#57606a}
.box{fill:#fff;stroke:#1b1f24;stroke-width:1.4}.transient{fill:#f3f4f6;stroke:#8c959f;stroke-dasharray:4 3}
.edge{fill:none;stroke:#57606a;stroke-width:1.2;marker-end:url(#tip)}.halo{stroke:#fff;stroke-width:4;paint-order:stroke}
@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#e6edf3}.label{fill:#9da7b3}.box{fill:#161b22;
stroke:#e6edf3}.transient{fill:#21262d}.edge{stroke:#9da7b3}.halo{stroke:#0d1117}}"""


def svg(diagram: str) -> str:
    """A self-contained SVG picture: no script, no font or style from the network."""
    positions = _positions(diagram)
    parts = [_arrow(positions[source], positions[dest], _shown_label(label)) for source, dest, label in arrows(diagram)]
    parts += [_box(state, position) for state, position in positions.items()]
    note = "" if diagram == "ring" else f'<text class="label" x="20" y="{_HEIGHT - 14}">{escape(NOTE)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="The lifecycle of an inference engine: {diagram}"><style>{_STYLE}</style>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 8 4 0 8z" fill="#8c959f"/></marker></defs>\n'
        + "\n".join(parts)
        + f"\n{note}\n</svg>\n"
    )


def _positions(diagram: str) -> dict[State, Point]:
    """The centre of each state's box. States without claims stand in a line below the ring."""
    positions = {state: _on_ellipse(index / len(RING)) for index, state in enumerate(RING)}
    if diagram == "ring":
        return positions
    for index, state in enumerate(sorted(STABLE & UNCLAIMED)):
        positions[state] = (_WIDTH / 2 + (index - 1) * 180, _HEIGHT - 60)
    return positions | _transient_positions(positions)


def _transient_positions(stable: dict[State, Point]) -> dict[State, Point]:
    positions: dict[State, Point] = {}
    for row in OPERATIONS:
        if row.via in positions:
            continue
        if row.source is row.dest:
            x, y = stable[row.source]
            aside = x + (_LOOP_ASIDE if x > _CENTRE[0] else -_LOOP_ASIDE)
            already = sum(1 for other in positions.values() if other[0] == aside)
            positions[row.via] = (aside, y - _LOOP_ABOVE + _LOOP_SPACING * already)
        else:
            positions[row.via] = _on_ellipse((RING.index(row.source) + 0.5) / len(RING))
    return positions


def _on_ellipse(turn: float) -> Point:
    """The point after this part of a clockwise turn from the top (0 to 1)."""
    angle = 2 * math.pi * turn - math.pi / 2
    return (_CENTRE[0] + _RADII[0] * math.cos(angle), _CENTRE[1] + _RADII[1] * math.sin(angle))


def _midpoint(one: Point, other: Point) -> Point:
    return ((one[0] + other[0]) / 2, (one[1] + other[1]) / 2)


def _box(state: State, centre: Point) -> str:
    x, y = centre
    kind = "box" if state.stable else "box transient"
    tooltip = escape(CLAIMS.get(state, "a command is under way"))
    return (
        f'<g><title>{tooltip}</title><rect class="{kind}" x="{x - _BOX_W / 2:.0f}" y="{y - _BOX_H / 2:.0f}" '
        f'width="{_BOX_W}" height="{_BOX_H}" rx="8"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{state}</text></g>'
    )


def _arrow(source: Point, dest: Point, label: str) -> str:
    if source == dest:
        x, y = source[0] + _BOX_W / 2, source[1]
        path = f"M{x:.0f} {y - 8:.0f} c44 -26 44 42 0 18"
        return f'<path class="edge" d="{path}"/>' + _label((x + 50, y - 24), label)
    control = _control_point(source, dest)
    begin, end = _box_border(source, control), _box_border(dest, control)
    curve = f"M{begin[0]:.0f} {begin[1]:.0f} Q{control[0]:.0f} {control[1]:.0f} {end[0]:.0f} {end[1]:.0f}"
    return f'<path class="edge" d="{curve}"/>' + _label(_midpoint(_midpoint(begin, end), control), label)


def _control_point(source: Point, dest: Point) -> Point:
    """The control point of the curve, left of the straight line, so that two opposite arrows stay apart."""
    (x, y), (dx, dy) = _midpoint(source, dest), (dest[0] - source[0], dest[1] - source[1])
    return (x + 0.14 * dy, y - 0.14 * dx)


def _box_border(centre: Point, towards: Point) -> Point:
    """Where the line from a box's centre to `towards` crosses its border."""
    dx, dy = towards[0] - centre[0], towards[1] - centre[1]
    scale = min(_BOX_W / 2 / abs(dx) if dx else math.inf, _BOX_H / 2 / abs(dy) if dy else math.inf)
    return (centre[0] + dx * scale, centre[1] + dy * scale)


def _shown_label(label: str) -> str:
    """`succeeded` is the usual end of a command, so its arrow has no label (NOTE says so)."""
    return "" if label == "succeeded" else label


def _label(centre: Point, text: str) -> str:
    return (
        f'<text class="label halo" x="{centre[0]:.0f}" y="{centre[1]:.0f}" text-anchor="middle">{escape(text)}</text>'
    )
