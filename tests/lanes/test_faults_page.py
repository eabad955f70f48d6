"""The page of faults has every point, and names those that did not come home."""

from __future__ import annotations

from faults_page import page, points

LINES = (
    "fault | Kept, equal tags | pause: pause_generation | sent | driver | drained | home",
    "fault | Kept, equal tags | pause: pause_generation | sent | driver | paused | home",
    "fault | Kept, equal tags | pause: pause_generation | sent | engine | serving + restarted | FAILED",
    "fault | FromDisk, equal tags | pause: pause_generation | before | second driver | serving | refused",
    "faults, home, Kept, equal tags: 2",
)


def test_the_page_counts_points_and_names_what_is_not_home() -> None:
    text = page(points(LINES), {"commit": "0123456789"})
    assert "| result | 4 points: 2 home, 1 refused, 1 FAILED |" in text
    assert "## Kept, equal tags\n\nHome: 2 of 3.\n" in text
    assert "| effect | point | driver | engine |\n" in text
    assert "| pause: pause_generation | sent | 1 drained, 1 paused | 1 **FAILED** (serving + restarted) |" in text
    assert "| pause: pause_generation | before | 1 **refused** (serving) |" in text
