"""Counting refused items: what is too many, and how much is remembered."""

from __future__ import annotations

import sys

from repo.delivery.refusals import MOST_QUARANTINED, MOST_REFUSED, WINDOW_ITEMS, Refusals


def test_only_the_last_items_count() -> None:
    refusals = Refusals("hub")
    refusals.add(10_000, MOST_REFUSED)
    assert refusals.too_many(10_000, 1, 0) is not None
    for _ in range(WINDOW_ITEMS // 10_000 - 1):
        refusals.add(10_000, 0)
    assert refusals.too_many(1, 1, 0) is None, "the first batch is not among the last items"
    assert refusals.too_many(1, MOST_REFUSED + 1, 0) is not None
    assert refusals.too_many(1, 1, MOST_QUARANTINED) is not None
    assert refusals.too_many(1, 0, MOST_QUARANTINED) is None


def test_batches_without_refusals_are_not_remembered_for_ever() -> None:
    refusals = Refusals("hub")
    for _ in range(50_000):
        refusals.add(10_000, 0)
        refusals.add(0, 0)
    assert sys.getsizeof(refusals._recent) < 10_000
