"""One page of points by seq, for deliveries: limited in rows and in characters. Opens and commits nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection

from repo.cursors import Span
from repo.engines.base import Shape
from repo.queries import point_sql
from repo.queries.pages import LISTS

__all__ = ["PAGE_CHARS", "PAGE_SEQS", "SeqPage", "read_seq_page"]

PAGE_SEQS = 65_536
"""The seqs of a page: 10 MB as columns of Python values. Wider ones are hardly faster, narrower ones slower."""

PAGE_CHARS = 4_000_000
"""The most characters of texts and metadata in a page of several points; each takes one to four bytes."""

_STEP = 4
"""How much wider the next piece is, after one without points."""

_PIECES = 8
"""How many pieces without points are read at most under one lease."""


class SeqPage(NamedTuple):
    """The points of a range of seqs, in ascending order of seq."""

    span: Span
    """The part of the requested range that was read: its beginning or, backwards, its end."""
    columns: list[Sequence[Any]]
    """`sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata, seq`."""
    watermark: int
    """The seq through which the page shows all writes."""


def read_seq_page(
    connection: Connection,
    known: Iterable[tuple[str, str]],
    span: Span,
    watermark: int,
    *,
    seqs: int = PAGE_SEQS,
    backwards: bool = False,
) -> SeqPage:
    """Read the first points of a range, or with `backwards` the last ones; `known` are the names of all series.

    The page covers about `seqs` seqs, fewer where texts are long, and more where there are no points. It may be empty.
    """
    first, last = span
    width = seqs
    for _ in range(_PIECES):
        part = (
            Span(max(first, last - width + 1), last)
            if backwards
            else Span(first, min(last, first + width - 1))
        )
        part = _narrowed(connection, part, backwards)
        query = point_sql.in_seq(connection, part.first - 1, part.last, known)
        columns = LISTS.fetch(connection, query, Shape(part.seqs, seqs))
        if columns is None:  # a wide piece that has points
            width = seqs
            continue
        if backwards:
            last = part.first - 1
        else:
            first = part.last + 1
        if LISTS.size(columns) or first > last:
            break
        if not backwards and part.last < 0:  # points of the legacy program may begin far after the first seq
            first = min(last + 1, max(first, point_sql.first_seq(connection)))
            if first > last:
                break
        width *= _STEP
    else:
        columns = [[] for _ in range(8)]
    covered = Span(last + 1, span.last) if backwards else Span(span.first, first - 1)
    return SeqPage(covered, columns, watermark)


def _narrowed(connection: Connection, part: Span, backwards: bool) -> Span:
    """Return the part of a range whose texts are short enough, or one seq."""
    while part.seqs > 1:
        chars = point_sql.text_chars(connection, part.first - 1, part.last)
        if chars <= PAGE_CHARS:
            break
        kept = max(1, min(part.seqs // 2, part.seqs * PAGE_CHARS // chars))
        part = Span(part.last - kept + 1, part.last) if backwards else Span(part.first, part.first + kept - 1)
    return part
