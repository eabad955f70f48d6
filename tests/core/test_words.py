"""The identifiers and phrases of tests/words.txt are gone from the library, its adapters, the README and the docs."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parents[2]
WORDS = ROOT / "tests" / "words.txt"
NOT_SEARCHED = ("docs/adr/", "docs/glossary.md", "lifecycle/adapters/")
#: What stands between two words of a phrase: spaces, or a line break with the mark of a comment.
GAP = r"\s+(?:#:?\s*|>\s*)?"

Kind = Literal["name", "text", "regex", "alias"]


class Source:
    """The text of a file or page, and the lines of its identifiers."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.names: dict[str, list[int]] = defaultdict(list)
        for line, name in python_names(text) if path.suffix == ".py" else page_names(text):
            self.names[name].append(line)


@dataclass(frozen=True, slots=True)
class Word:
    """One line of tests/words.txt. `instead` is what to say; of an alias, the file in which it may stand."""

    kind: Kind
    gone: str
    instead: str

    def lines(self, source: Source) -> list[int]:
        """The numbers of the lines on which it stands."""
        if self.kind == "name":
            return source.names.get(self.gone, [])
        return [source.text.count("\n", 0, match.start()) + 1 for match in self._pattern().finditer(source.text)]

    def _pattern(self) -> re.Pattern[str]:
        if self.kind == "regex":
            return re.compile(self.gone)
        phrase = GAP.join(map(re.escape, self.gone.split()))
        return re.compile(rf"(?<!\w){phrase}(?!\w)", re.IGNORECASE)


def python_names(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of each identifier of Python code; of docstrings and comments, those inside `code`."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            yield token.start[0], token.string
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            yield from ((token.start[0] + line - 1, name) for line, name in page_names(token.string))


def page_names(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of each identifier inside `code` and python blocks of a page."""
    for match in re.finditer(r"```python\n(.*?)```|(?<!`)`([^`\n]+)`(?!`)", text, re.DOTALL):
        part = 1 if match[1] is not None else 2
        first = text.count("\n", 0, match.start(part)) + 1
        for name in re.finditer(r"(?<![\w-])[A-Za-z_]\w*(?![\w-])", match[part]):
            yield first + match[part].count("\n", 0, name.start()), name[0]


def read_words(text: str) -> list[Word]:
    """Reads the lines of tests/words.txt."""
    words = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        kind, _, rest = line.partition(" ")
        gone, _, instead = rest.strip().rpartition(" " if kind == "alias" else " -> ")
        assert kind in ("name", "text", "regex", "alias"), line
        assert gone, line
        assert instead, line
        words.append(Word(kind, gone.strip(), instead.strip()))
    return words


def files(part: str) -> list[Path]:
    """The files of a package, a folder of pages, or the one page of that name."""
    top = ROOT / part
    found = [top] if top.is_file() else sorted(top.rglob("*.py" if part != "docs" else "*.md"))
    found += sorted(top.rglob("*.txt")) if part == "docs" else []
    return [path for path in found if not path.relative_to(ROOT).as_posix().startswith(NOT_SEARCHED)]


def found_in(path: Path, words: list[Word]) -> Iterator[str]:
    """A line for each place of the file at which a word of the list stands."""
    source, file = Source(path, path.read_text()), path.relative_to(ROOT).as_posix()
    allowed = {word.gone for word in words if word.kind == "alias" and word.instead == file}
    for word in words:
        if word.kind == "alias" or word.gone in allowed:
            continue
        if word.kind == "name" and path.stem == word.gone:
            yield f"{file}: the module {word.gone}; say {word.instead}"
        for line in word.lines(source):
            yield f"{file}:{line}: {word.gone}; say {word.instead}"


PACKAGES = sorted(path.name for path in (ROOT / "lifecycle").iterdir() if (path / "__init__.py").is_file())
PARTS = [
    "lifecycle",
    *(f"lifecycle/{name}" for name in PACKAGES if name != "adapters"),
    "adapters",
    "README.md",
    "docs",
]


@pytest.mark.parametrize("part", PARTS)
def test_the_words_are_gone(part: str) -> None:
    words = read_words(WORDS.read_text())
    paths = files(part)
    if part == "lifecycle":  # its packages are parts of their own
        paths = [path for path in paths if path.parent == ROOT / part]
    places = [place for path in paths for place in found_in(path, words)]
    assert not places, "\n".join([f"{len(places)} places in {part}; tests/words.txt says what is gone:", *places])


def test_every_alias_stands_where_it_is_allowed() -> None:
    words = read_words(WORDS.read_text())
    gone = {word.gone: word for word in words if word.kind != "alias"}
    for alias in (word for word in words if word.kind == "alias"):
        path = ROOT / alias.instead
        assert alias.gone in gone, f"alias {alias.gone}: no word of the list"
        lines = gone[alias.gone].lines(Source(path, path.read_text()))
        assert lines, f"alias {alias.gone} {alias.instead}: it does not stand there any more; remove the line"


def test_no_word_is_listed_twice() -> None:
    words = read_words(WORDS.read_text())
    assert len(set(words)) == len({(word.kind, word.gone, word.kind == "alias" and word.instead) for word in words})


@pytest.mark.parametrize(
    ("word", "text", "lines"),
    [
        (Word("name", "look", ""), "x = look(engine)\n# a look is free\n", [1]),
        (Word("name", "look", ""), '"""A look."""\n\n# as `look(engine)`\n', [3]),
        (Word("name", "room", ""), "host_has_room = 1\n", []),
        (Word("text", "first sight", ""), "# at first\n# sight it is\ny = 'First sight'\n", [1, 3]),
        (Word("text", "way home", ""), "# the highway home\n", []),
        (Word("regex", r"\bmemory=(?!=)", ""), "f(memory=1)\nmemory = 2\nassert memory==3\n", [1]),
    ],
)
def test_a_word_is_found_in_code(word: Word, text: str, lines: list[int]) -> None:
    assert word.lines(Source(Path("code.py"), text)) == lines


@pytest.mark.parametrize(
    ("word", "text", "lines"),
    [
        (Word("name", "look", ""), "A look at `look()`.\n", [1]),
        (Word("name", "Memory", ""), "Memory\n\n```python\nfrom lifecycle import Memory\n```\n", [4]),
        (Word("name", "declare", ""), "`lifecycle declare-state`\n", []),
        (Word("text", "way home", ""), "the way\n> home\n", [1]),
    ],
)
def test_a_word_is_found_in_a_page(word: Word, text: str, lines: list[int]) -> None:
    assert word.lines(Source(Path("page.md"), text)) == lines


def test_the_list_is_read() -> None:
    lines = "# a comment\n\nname  look -> reconcile\nalias look lifecycle/a.py\nregex a -> b|c -> d\n"
    assert read_words(lines) == [
        Word("name", "look", "reconcile"),
        Word("alias", "look", "lifecycle/a.py"),
        Word("regex", "a -> b|c", "d"),
    ]
