"""One page of points by seq, for deliveries: limited in rows and in characters. Opens and commits nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from repo.cursors import Span
from repo.engines.registry import traits_of
from repo.queries import point_sql
from repo.queries.point_sql import Query

__all__ = ["PAGE_CHARS", "PAGE_SEQS", "SeqPage", "read_seq_page"]

PAGE_SEQS = 122_880
"""The seqs of a page: a row group of DuckDB, and 6 MB as machine numbers. Where the columns are Python values, half as
many take 10 MB."""

PAGE_CHARS = 4_000_000
"""The maximum number of characters of texts and metadata in a page of several points; each takes one to four bytes."""

_STEP = 4
"""How much wider the next piece is, after one without points."""

_PIECES = 8
"""How many pieces without points are read at most under one lease."""


class SeqPage(NamedTuple):
    """The points of a range of seqs, in ascending order of seq."""

    span: Span
    """The part of the requested range that was read: its beginning or, backwards, its end."""
    columns: Sequence[Sequence[Any]]
    """`sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata, seq`."""
    watermark: int
    """The seq through which the page shows all writes."""


def read_seq_page(
    connection: Connection,
    known: Iterable[tuple[str, str]],
    span: Span,
    watermark: int,
    fetch: Callable[[Connection, Query, int], Sequence[Sequence[Any]]],
    *,
    backwards: bool = False,
) -> SeqPage:
    """Read the first points of a range, or with `backwards` the last ones; `known` are the names of all series.

    `fetch` runs a query of about that many rows, and returns its columns. The page covers about `PAGE_SEQS` seqs, fewer
    where texts are long, and more where there are no points. It may be empty.
    """
    most = PAGE_SEQS if traits_of(connection).arrow is not None else PAGE_SEQS // 2
    rest, width = span, most
    columns: Sequence[Sequence[Any]] = [[] for _ in range(8)]
    for _ in range(_PIECES):
        part, points = _narrowed(connection, _piece(rest, width, backwards), backwards)
        if points > most:  # a wide piece that has points
            width = most
            continue
        rest = Span(rest.first, part.first - 1) if backwards else Span(part.last + 1, rest.last)
        if points:
            query = point_sql.in_seq(connection, part.first - 1, part.last, known)
            columns = fetch(connection, query, points)
            break
        if rest.seqs > 0 and (rest.last if backwards else part.last) < 0:
            # The points of the legacy program may begin far after the first seq.
            first = point_sql.first_seq(connection)
            if not backwards:
                rest = Span(min(rest.last + 1, max(rest.first, first)), rest.last)
            elif rest.last < first:
                rest = Span(rest.first, rest.first - 1)
        if rest.seqs < 1:
            break
        width *= _STEP
    covered = Span(rest.last + 1, span.last) if backwards else Span(span.first, rest.first - 1)
    return SeqPage(covered, columns, watermark)


def _piece(span: Span, width: int, from_end: bool) -> Span:
    """Return the first seqs of a range, or the last ones."""
    if from_end:
        return Span(max(span.first, span.last - width + 1), span.last)
    return Span(span.first, min(span.last, span.first + width - 1))


def _narrowed(connection: Connection, part: Span, from_end: bool) -> tuple[Span, int]:
    """Return the part of a range whose texts are short enough, or one seq; and its points."""
    while True:
        points, chars = point_sql.size_in_seq(connection, part.first - 1, part.last)
        if chars <= PAGE_CHARS or part.seqs == 1:
            return part, points
        part = _piece(part, max(1, min(part.seqs // 2, part.seqs * PAGE_CHARS // chars)), from_end)
