"""Interfaces of the writers and readers of files, the same for all formats, and what they exchange. Opens nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from repo.formats.arrays.streams import Page
from repo.formats.files.mapping import ColumnType, ReadPlan

__all__ = [
    "PAGE_BYTES",
    "PAGE_ROWS",
    "Bounds",
    "FileFacts",
    "FileReader",
    "FileWriter",
    "Group",
    "ReadPage",
    "Validation",
    "WrittenPage",
    "WrittenPages",
]

PAGE_ROWS = 245_760
PAGE_BYTES = 24_000_000
"""The maximum rows, and the approximate maximum bytes, of a page that is read. Several copies may exist at a time."""

WrittenPage = Page | Sequence[Sequence[Any]] | Any
"""Rows with the columns of the table `time_series_data`; or Arrow batches in which `series`, the place in a list of
series, comes instead of the names; or a `pyarrow.Table` with the columns of a file, for the writer of that package."""


@dataclass(frozen=True, slots=True)
class WrittenPages:
    """Points in order, with what is known about them in advance. They can be iterated once."""

    series: Sequence[tuple[str, str]]
    """Sensor and metric of all series that may occur, in order."""
    points: int
    """The approximate number of points."""
    pages: Iterable[WrittenPage]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The content of a file that was just written; times in µs, None if it has no points."""

    points: int
    bytes: int
    sha256: str
    first_us: int | None
    last_us: int | None
    first_seq: int | None
    last_seq: int | None


class Bounds:
    """The first and last of the written times and seqs, for `FileFacts`."""

    def __init__(self) -> None:
        self.times: tuple[int | None, int | None] = (None, None)
        self.seqs: tuple[int | None, int | None] = (None, None)

    def add(self, times: Sequence[int], seqs: Sequence[int]) -> None:
        """Include those of a page."""
        self.times = _wider(self.times, times)
        self.seqs = _wider(self.seqs, seqs)


def _wider(bounds: tuple[int | None, int | None], more: Sequence[int]) -> tuple[int | None, int | None]:
    every = [*(bound for bound in bounds if bound is not None), *more]
    return min(every, default=None), max(every, default=None)


class FileWriter(Protocol):
    """Writes files of points."""

    columnar: bool
    """Whether it accepts Arrow pages."""

    def write(self, descriptor: int, pages: WrittenPages, *, compression: str, note: str) -> FileFacts:
        """Write all pages into an empty file, and return what it then contains.

        Memory holds one page, the next page, and one row group. Raises what the pages raise, or OSError.
        """


@dataclass(frozen=True, slots=True)
class Group:
    """One series in a page: its numbers and texts, and its span in µs."""

    pair: tuple[str, str]
    rows: int
    numbers: int
    texts: int
    readings: int
    """Rows with a number, a text, or both (which is refused)."""
    first_us: int
    last_us: int


class ReadPage(Protocol):
    """Some rows of a file, in memory until the next page is read."""

    rows: int
    """The number of rows."""
    nulls: int
    """The number of rows without a series or time, which are left out of the rest of this object."""
    groups: list[Group]

    def leave_out(self, doomed: Sequence[tuple[tuple[str, str], bool]]) -> int:
        """Drop the texts (True) or the numbers (False) of series, and return their number."""

    def duplicates(self) -> int:
        """Return the number of rows with the series and time of another valid row."""

    def table(self) -> Any:
        """Return the rows as a table for `insert_table`, with all columns of a stored point except seq."""

    def identities(self) -> Sequence[tuple[str, str, int]]:
        """Return series and time of each row."""


@dataclass(frozen=True, slots=True)
class Validation:
    """The result of validating a whole file."""

    rows: int
    row_bytes: int = 0
    """The approximate memory per row, including its texts; 0 if unknown."""


class FileReader(Protocol):
    """A file of points that is open for reading. Raises `InvalidFile`, which names the file, for invalid content."""

    def types(self) -> dict[str, ColumnType]:
        """Return the top-level columns and their types."""

    def validate(self, plan: ReadPlan) -> Validation:
        """Decode everything in the plan, which detects damage."""

    def pages(self, plan: ReadPlan, validation: Validation) -> Iterator[ReadPage]:
        """Yield all rows in order; each page is valid until the next. `validation` is of the same file."""
