"""Cursors: the seqs that a destination has confirmed, as a low mark and a few ranges above it. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

__all__ = ["MOST_RANGES", "Cursor", "Span"]

MOST_RANGES = 16
"""Deliveries add no range to a cursor that has this many above its low mark."""


class Span(NamedTuple):
    """A range of seqs, both inclusive."""

    first: int
    last: int

    @property
    def seqs(self) -> int:
        """The number of its seqs."""
        return self.last - self.first + 1


class Cursor(NamedTuple):
    """Every seq up to `low`, and every seq of `ranges`, is confirmed.

    The ranges are in ascending order. At least one unconfirmed seq lies before each of them, so no two of them could be
    joined.
    """

    low: int
    ranges: tuple[Span, ...] = ()

    @classmethod
    def of(cls, low: int, ranges: Iterable[tuple[int, int]]) -> Self:
        """Build a cursor from ranges in any order, which may overlap."""
        cursor = cls(low)
        for first, last in ranges:
            cursor = cursor.confirm(first, last)
        return cursor

    def confirm(self, first: int, last: int) -> Self:
        """Return the cursor with the seqs from `first` to `last` confirmed, too. It never loses a confirmed seq.

        The result may have more than `MOST_RANGES`.
        """
        low, ranges = self
        kept: list[Span] = []
        for span in ranges:
            if span.last + 1 < first or span.first > last + 1:
                kept.append(span)
            else:
                first, last = min(first, span.first), max(last, span.last)
        if first <= low + 1:
            low = max(low, last)
        elif first <= last:
            kept.append(Span(first, last))
        return type(self)(low, tuple(sorted(kept)))

    def gaps(self, through: int) -> list[Span]:
        """Return the unconfirmed ranges up to `through`, in ascending order."""
        gaps, after = [], self.low
        for span in self.ranges:
            if span.first > through:
                break
            gaps.append(Span(after + 1, span.first - 1))
            after = span.last
        if after < through:
            gaps.append(Span(after + 1, through))
        return gaps

    def behind(self, through: int) -> int:
        """Return the number of unconfirmed seqs up to `through`."""
        return sum(gap.seqs for gap in self.gaps(through))

    def has(self, first: int, last: int) -> bool:
        """Return whether every seq from `first` to `last` is confirmed."""
        return all(gap.last < first for gap in self.gaps(last))
