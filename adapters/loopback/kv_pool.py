"""The pages of the KV pool and the prefix cache that shares them. Keys and values themselves are on the ranks."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from .shape import PAGE_TOKENS


class PagePool:
    """Pages with reference counts; a page with none is free."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = deque(range(pages))
        self._references = [0] * pages

    @property
    def used(self) -> int:
        return self.pages - len(self._free)

    def take(self) -> int | None:
        """Takes a free page with one reference; None where none is free."""
        if not self._free:
            return None
        page = self._free.popleft()
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """Adds a reference to the page."""
        self._references[page] += 1

    def give_back(self, page: int) -> None:
        """Removes a reference from the page, which is free after the last."""
        self._references[page] -= 1
        if not self._references[page]:
            self._free.append(page)

    def references(self, page: int) -> int:
        return self._references[page]


class PrefixCache:
    """Full pages of earlier requests, found by all tokens up to the end of the page.

    The cache does not depend on the weights: after an update without a flush it returns keys and values of the old
    weights, as SGLang's does.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._pages: OrderedDict[bytes, int] = OrderedDict()  # least recently used first

    def match(self, tokens: Sequence[int]) -> list[int]:
        """The pages of the longest cached prefix, each with a reference more. At least one token is left to compute."""
        found = []
        for key in _keys(tokens[: len(tokens) - 1]):
            if key not in self._pages:
                break
            self._pages.move_to_end(key)
            self._pool.share(self._pages[key])
            found.append(self._pages[key])
        return found

    def insert(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Adds the full pages of `tokens`; those already cached are left as they are."""
        for key, page in zip(_keys(tokens), pages, strict=False):
            if key not in self._pages:
                self._pool.share(page)
                self._pages[key] = page

    def evict(self) -> bool:
        """Frees the least recently used page that only the cache holds. Returns False where there is none."""
        for key, page in self._pages.items():
            if self._pool.references(page) == 1:
                del self._pages[key]
                self._pool.give_back(page)
                return True
        return False

    def evictable(self) -> int:
        """The number of pages that only the cache holds."""
        return sum(self._pool.references(page) == 1 for page in self._pages.values())

    def clear(self) -> None:
        """Empties the cache."""
        for page in self._pages.values():
            self._pool.give_back(page)
        self._pages.clear()


def _keys(tokens: Sequence[int]) -> Iterator[bytes]:
    """One key for each full page: a hash of all tokens up to its end."""
    chain = hashlib.blake2b(digest_size=16)
    for end in range(PAGE_TOKENS, len(tokens) + 1, PAGE_TOKENS):
        chain.update(array("H", tokens[end - PAGE_TOKENS : end]).tobytes())
        yield chain.digest()
