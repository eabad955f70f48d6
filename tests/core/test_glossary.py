"""docs/glossary.md: each word once, in alphabetical order; and each old word once, replaced by another."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text()


def test_the_words_stand_once_in_alphabetical_order() -> None:
    words = [re.sub(r"[ _]", "", word).lower() for word in re.findall(r"^- \*\*([^*]+)\*\*", TEXT, re.MULTILINE)]
    assert len(words) > 50
    assert words == sorted(set(words))


def test_every_word_has_one_or_two_sentences_and_at_most_a_source() -> None:
    for entry in re.split(r"\n(?=- \*\*)", TEXT.partition("## Old words")[0])[1:]:
        meaning = " ".join(entry.split()).partition(" Source: ")[0]
        assert len(re.findall(r"[.?!](?: |$)", meaning)) <= 2, meaning


def test_every_old_word_is_replaced_by_another() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \|$", TEXT.partition("## Old words")[2], re.MULTILINE)[1:]
    old = [word for word, _ in rows]
    assert len(old) == len(set(old))
    assert [word for word, new in rows if word == new] == []
