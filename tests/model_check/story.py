"""A violation as a test that repeats it, written by `make model TRACE=FILE`."""

from __future__ import annotations

from explore import Broken

_TEST = '''"""A trace that the explorer found in "{name}".

{story}
"""

from __future__ import annotations

from explore import follow, repeated
from scenarios import all_of


def test_trace() -> None:
    assert str(repeated(all_of({engines}, {budget})[{key!r}], follow({path!r}))) == ""
'''


def as_test(broken: Broken, name: str, engines: int, budget: int, key: str) -> str:
    """The text of a test module that fails as long as the violation is there."""
    story = str(broken).replace("\\", "\\\\").replace('"""', "'''")
    lines = "\n".join(line[:116] for line in story.splitlines())
    return _TEST.format(name=name, story=lines, engines=engines, budget=budget, key=key, path=broken.path)
