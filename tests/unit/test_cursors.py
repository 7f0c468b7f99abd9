"""The arithmetic of cursors, against sets of seqs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repo.cursors import Cursor, Span

_spans = st.tuples(st.integers(-5, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
_cursors = st.tuples(st.integers(-5, 20), st.lists(_spans, max_size=10))


def _seqs(cursor: Cursor) -> set[int]:
    """Return the confirmed seqs from -20 on."""
    found = set(range(-20, cursor.low + 1))
    for first, last in cursor.ranges:
        found.update(range(first, last + 1))
    return found


@given(_cursors, _spans, st.integers(-10, 80))
def test_a_cursor_has_the_seqs_that_were_confirmed_and_its_shortest_form(
    start: tuple[int, list[tuple[int, int]]], span: tuple[int, int], through: int
) -> None:
    low, spans = start
    expected = set(range(-20, low + 1))
    for first, last in spans:
        expected.update(range(first, last + 1))
    cursor = Cursor.of(low, spans)
    assert _seqs(cursor) == expected

    confirmed = cursor.confirm(*span)
    assert _seqs(confirmed) == expected | set(range(span[0], span[1] + 1))
    assert cursor.has(*span) == (set(range(span[0], span[1] + 1)) <= expected)

    before = confirmed.low
    for first, last in confirmed.ranges:
        assert before + 1 < first <= last
        before = last

    gaps = confirmed.gaps(through)
    missing = [seq for gap in gaps for seq in range(gap.first, gap.last + 1)]
    assert missing == sorted(set(range(-20, through + 1)) - _seqs(confirmed))
    assert confirmed.behind(through) == len(missing)
    assert all(gap.seqs > 0 for gap in gaps)


def test_confirming_an_empty_range_changes_nothing() -> None:
    cursor = Cursor(10, (Span(20, 30),))
    for first in (5, 11, 15, 20, 25, 31, 40):
        assert cursor.confirm(first, first - 1) == cursor


def test_a_range_that_fills_the_last_gap_moves_the_low_mark() -> None:
    cursor = Cursor(10).confirm(20, 30).confirm(40, 50)
    assert tuple(cursor) == (10, ((20, 30), (40, 50)))
    assert tuple(cursor.confirm(31, 39)) == (10, ((20, 50),))
    assert tuple(cursor.confirm(11, 39)) == (50, ())
