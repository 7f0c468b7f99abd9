"""File formats: what a writer is given and a reader yields, whatever the format. Opens nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from repo.formats.arrays.streams import Page
from repo.formats.files.mapping import ColumnType, Plan

__all__ = [
    "PAGE_BYTES",
    "PAGE_ROWS",
    "Bounds",
    "FileFacts",
    "FileReader",
    "FileWriter",
    "Group",
    "Look",
    "Pages",
    "ReadPage",
    "WrittenPage",
]

PAGE_ROWS = 245_760
PAGE_BYTES = 24_000_000
"""A page that is read has at most so many rows, and about so many bytes: several copies of it may exist at a time."""

WrittenPage = Page | Sequence[Sequence[Any]]
"""Rows with the columns of the table `time_series_data`, or Arrow batches in which `series`, the place in a list of
series, comes instead of the names."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Points in order, with what is known of them beforehand; to be gone through once."""

    series: Sequence[tuple[str, str]]
    """Sensor and metric of all that may come, in order."""
    points: int
    """About how many there are."""
    pages: Iterable[WrittenPage]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What was found in a file that was just written; times in µs, None where it has no points."""

    points: int
    bytes: int
    sha256: str
    first_us: int | None
    last_us: int | None
    first_seq: int | None
    last_seq: int | None


class Bounds:
    """The first and last of the times and seqs that were written, for `FileFacts`."""

    def __init__(self) -> None:
        self.times: tuple[int | None, int | None] = (None, None)
        self.seqs: tuple[int | None, int | None] = (None, None)

    def add(self, times: Sequence[int], seqs: Sequence[int | None]) -> None:
        """Take those of a page in."""
        self.times = _wider(self.times, times)
        self.seqs = _wider(self.seqs, [seq for seq in seqs if seq is not None])


def _wider(bounds: tuple[int | None, int | None], more: Sequence[int]) -> tuple[int | None, int | None]:
    every = [*(bound for bound in bounds if bound is not None), *more]
    return min(every, default=None), max(every, default=None)


class FileWriter(Protocol):
    """A tool that writes files of points."""

    columnar: bool
    """Whether it takes Arrow pages."""

    def write(self, descriptor: int, pages: Pages, *, compression: str, note: str) -> FileFacts:
        """Write all pages into an empty file, and look at what is in it then.

        In memory there are one page, the one that is read meanwhile, and one row group. Raises what the pages
        raise, or OSError.
        """


@dataclass(frozen=True, slots=True)
class Group:
    """What a page holds of one series: numbers and texts, and its span in µs."""

    pair: tuple[str, str]
    rows: int
    numbers: int
    texts: int
    readings: int
    """Rows with a number, a text, or, to be refused, both."""
    first_us: int
    last_us: int


class ReadPage(Protocol):
    """Some rows of a file, in memory until the next page is read."""

    rows: int
    """How many there were."""
    nulls: int
    """How many of them name no series or no time; the rest of this object leaves them out."""
    groups: list[Group]

    def leave_out(self, doomed: Sequence[tuple[tuple[str, str], bool]]) -> int:
        """Drop the texts (True) or the numbers (False) of series, and return how many those were."""

    def duplicates(self) -> int:
        """Return how many have the series and time of another one, which is not left out, nor to be refused."""

    def table(self) -> Any:
        """Return the rows as `insert_table` takes them, with the columns of a stored point but seq."""

    def identities(self) -> Sequence[tuple[str, str, int]]:
        """Return series and time of each row."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a whole file found."""

    rows: int
    row_bytes: int = 0
    """About what a row takes in memory, its texts included; 0 where it is not told."""


class FileReader(Protocol):
    """A file of points that is open for reading. What it finds wrong it raises as `InvalidFile`, naming the file."""

    def types(self) -> dict[str, ColumnType]:
        """Return the columns at the top, and their types."""

    def look(self, plan: Plan) -> Look:
        """Decode everything that the plan wants, so that damage is found."""

    def pages(self, plan: Plan, look: Look) -> Iterator[ReadPage]:
        """Yield all rows, in order, each page until the next is taken; `look` is what was seen of the same file."""
