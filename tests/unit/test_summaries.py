"""Summaries of many series: rows as they were read, until one is looked at."""

from __future__ import annotations

import gc

from repo.queries.selection import Summary
from repo.queries.summaries import Summaries

A, B, C = ("a", "m"), ("b", "m"), ("c", "m")
ROWS = [(*A, 3, 10, 30, 1.5, None, 100, None, 7), (*B, 1, 5, 5, None, "OPEN", None, '{"k":1}', 8)]
FIRST = Summary(3, 10, 30, 1.5, None, 100, None, 7)
SECOND = Summary(1, 5, 5, None, "OPEN", None, '{"k":1}', 8)


def test_summaries_are_a_mapping_of_series_whose_copies_change_by_themselves() -> None:
    read = Summaries(ROWS)
    assert read == {A: FIRST, B: SECOND}
    assert (list(read), len(read), A in read, C in read, read.get(C)) == ([A, B], 2, True, False, None)
    copied = Summaries.copied(read)
    copied[C] = copied[A] = SECOND
    del copied[B]
    assert copied == {A: SECOND, C: SECOND}
    assert read == {A: FIRST, B: SECOND}
    assert Summaries.copied({C: FIRST}) == {C: FIRST}


def test_the_garbage_collector_forgets_summaries_that_were_only_read() -> None:
    read = Summaries(tuple(map(tuple, ROWS)))
    gc.collect()
    assert not any(map(gc.is_tracked, read._rows.values()))


def test_the_series_of_each_name_are_counted_again_after_series_came_or_went() -> None:
    read = Summaries(ROWS)
    assert read.names() == ({"a": 1, "b": 1}, {"m": 2})
    copied = Summaries.copied(read)
    copied["a", "n"] = FIRST
    copied[A] = SECOND
    assert copied.names() == ({"a": 2, "b": 1}, {"m": 2, "n": 1})
    del copied[A]
    assert copied.names() == ({"a": 1, "b": 1}, {"m": 1, "n": 1})
    assert read.names() == ({"a": 1, "b": 1}, {"m": 2})
