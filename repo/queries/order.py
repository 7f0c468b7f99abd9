"""The order of the points in the column file: which spans of seqs are sorted by series, then time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from repo.cursors import Span

__all__ = ["UNSORTED", "Order", "Slice"]


class Slice(NamedTuple):
    """A closed span of seqs; `repo.models.Slice` defines the fields."""

    first_seq: int
    last_seq: int
    rows: int
    sorted_through: int

    @property
    def is_sorted(self) -> bool:
        """Whether its points are sorted; if not, they are too large to be sorted in memory."""
        return self.sorted_through >= self.last_seq

    @property
    def span(self) -> Span:
        """Its seqs."""
        return Span(self.first_seq, self.last_seq)


class Order:
    """The slices of a column file, by their seqs. Immutable.

    Read in the order of the table, as a SELECT without ORDER BY returns them, the points of a sorted slice are in order
    of sensor, metric and time. Points that were written later have seqs above those of every slice.
    """

    def __init__(self, slices: Iterable[Slice] = ()) -> None:
        self.slices = tuple(sorted(slices))
        self._firsts = [one.first_seq for one in self.slices]

    @property
    def first_seq(self) -> int | None:
        """The first seq of the first slice, which is not above that of any point; None without slices."""
        return self._firsts[0] if self.slices else None

    @property
    def last_seq(self) -> int | None:
        """The last seq of the last slice; None without slices."""
        return self.slices[-1].last_seq if self.slices else None

    def covering(self, seq: int) -> Slice | None:
        """Return the slice that a seq belongs to; None if it belongs to none."""
        at = bisect_right(self._firsts, seq) - 1
        return self.slices[at] if at >= 0 and seq <= self.slices[at].last_seq else None

    def gaps(self, first: int, last: int, *, skipped: bool = False) -> Iterator[Span]:
        """Yield the spans from `first` to `last` that belong to no slice or, with `skipped`, to no sorted one."""
        at = first
        for one in self.slices:
            if one.last_seq < at or (skipped and not one.is_sorted):
                continue
            if one.first_seq > last:
                break
            if one.first_seq > at:
                yield Span(at, one.first_seq - 1)
            at = one.last_seq + 1
        if at <= last:
            yield Span(at, last)

    def is_sorted(self, first: int, last: int) -> bool:
        """Return whether every point with a seq from `first` to `last` belongs to a sorted slice."""
        if self.first_seq is not None:
            first = max(first, self.first_seq)
        return next(self.gaps(first, last, skipped=True), None) is None


UNSORTED = Order()
"""The order of a file without slices, and of points that are merged from several places."""
