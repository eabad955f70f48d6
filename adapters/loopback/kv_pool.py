"""The KV pool's bookkeeping: pages, and the prefix cache that shares them. The contents live on the ranks."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from .shape import PAGE_TOKENS


class PagePool:
    """Pages with a count of holders; a page without one is free."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = deque(range(pages))
        self._holders = [0] * pages

    @property
    def used(self) -> int:
        return self.pages - len(self._free)

    def take(self) -> int | None:
        """A page with one holder, or None when all are held."""
        if not self._free:
            return None
        page = self._free.popleft()
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """The page has one holder more."""
        self._holders[page] += 1

    def give_back(self, page: int) -> None:
        """The page has one holder less, and is free if that was the last."""
        self._holders[page] -= 1
        if not self._holders[page]:
            self._free.append(page)

    def holders(self, page: int) -> int:
        return self._holders[page]


class PrefixCache:
    """Full pages of earlier requests, found by the tokens that led to them.

    It knows nothing of weights: after an update without a flush it serves keys and values of the old ones, as
    SGLang's does.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._pages: OrderedDict[bytes, int] = OrderedDict()  # least recently used first

    def match(self, tokens: Sequence[int]) -> list[int]:
        """The cached pages of the longest known prefix, each held once more; at least one token is left to compute."""
        found = []
        for key in _keys(tokens[: len(tokens) - 1]):
            if key not in self._pages:
                break
            self._pages.move_to_end(key)
            self._pool.share(self._pages[key])
            found.append(self._pages[key])
        return found

    def insert(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """The full pages of `tokens` can be found; those already known stay as they are."""
        for key, page in zip(_keys(tokens), pages, strict=False):
            if key not in self._pages:
                self._pool.share(page)
                self._pages[key] = page

    def evict(self) -> bool:
        """The least recently used page that only the cache holds is free; False if there is none."""
        for key, page in self._pages.items():
            if self._pool.holders(page) == 1:
                del self._pages[key]
                self._pool.give_back(page)
                return True
        return False

    def evictable(self) -> int:
        """How many pages only the cache holds."""
        return sum(self._pool.holders(page) == 1 for page in self._pages.values())

    def clear(self) -> None:
        """Nothing is cached."""
        for page in self._pages.values():
            self._pool.give_back(page)
        self._pages.clear()


def _keys(tokens: Sequence[int]) -> Iterator[bytes]:
    """One key for each full page, of all tokens up to its end."""
    chain = hashlib.blake2b(digest_size=16)
    for end in range(PAGE_TOKENS, len(tokens) + 1, PAGE_TOKENS):
        chain.update(array("H", tokens[end - PAGE_TOKENS : end]).tobytes())
        yield chain.digest()
