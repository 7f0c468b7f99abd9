"""Results: what a range query gives, read a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from repo.repositories.points import PointDict, point_dict
from repo.repositories.reading import Position

__all__ = ["PAGE_ROWS", "Result"]

PAGE_ROWS = 65_536
"""Rows of a page: about 30 MB as dicts, and some 50 ms under the lease."""


class Result:
    """The points that a query selects, in order of time, then names.

    Iterating runs the query, a page at a time, each page in a transaction of its own: nothing is held between
    pages, so a write that comes meanwhile may show in later ones. It can be iterated again. Not thread-safe.
    """

    def __init__(self, fetch: Callable[[Position | None, int], Sequence[Any]]) -> None:
        self._fetch = fetch

    def pages(self, rows: int = PAGE_ROWS) -> Iterator[list[PointDict]]:
        """Yield the points in lists of at most `rows`."""
        position = None
        while page := self._fetch(position, rows):
            yield [point_dict(row) for row in page]
            if len(page) < rows:
                return
            position = Position(page[-1][2], page[-1][0], page[-1][1])

    def __iter__(self) -> Iterator[PointDict]:
        for page in self.pages():
            yield from page

    def all(self) -> list[PointDict]:
        """Return all points at once; mind the memory (about 450 bytes a point)."""
        return list(self)
