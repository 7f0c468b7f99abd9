"""Which gap of the backlog is sent next, and whose turn it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo.cursors import MOST_RANGES, Cursor, Span
from repo.delivery.lanes import BATCH_ROWS, SHORT_BATCHES, LaneWork, Order, Turns, split
from repo.delivery.protocol import Lane

BATCH = 1_000_000


def test_a_short_backlog_is_one_lane_oldest_first() -> None:
    cursor = Cursor(100).confirm(50_000, 60_000)
    assert split(cursor, 90_000) == {Lane.LIVE: LaneWork(Span(101, 49_999))}
    assert split(Cursor(100), 100) == {}
    assert split(Cursor(100), 50) == {}


def test_a_long_backlog_leaves_a_gap_behind_the_live_lane() -> None:
    lanes = split(Cursor(0), 1_000_000)
    assert lanes == {
        Lane.LIVE: LaneWork(Span(1_000_000 - BATCH_ROWS + 1, 1_000_000)),
        Lane.BACKFILL: LaneWork(Span(1, 1_000_000 - BATCH_ROWS)),
    }
    assert split(Cursor(0), 1_000_000, two=False) == {Lane.LIVE: LaneWork(Span(1, 1_000_000))}

    # The live lane continues where it ended, and leaves no second gap for a few readings.
    cursor = Cursor(0).confirm(*lanes[Lane.LIVE].gap)
    assert split(cursor, 1_000_000) == {Lane.BACKFILL: LaneWork(Span(1, 1_000_000 - BATCH_ROWS))}
    assert split(cursor, 1_000_200)[Lane.LIVE] == LaneWork(Span(1_000_001, 1_000_200))


def test_back_fill_sends_the_newest_gap_from_its_end_if_that_is_wanted() -> None:
    cursor = Cursor(0).confirm(300_000, 310_000).confirm(800_000, 900_000)
    assert split(cursor, 900_000, order="newest") == {
        Lane.BACKFILL: LaneWork(Span(310_001, 799_999), from_end=True)
    }
    assert split(cursor, 900_000)[Lane.BACKFILL] == LaneWork(Span(1, 299_999))


def test_with_the_most_ranges_no_new_gap_is_left() -> None:
    cursor = Cursor(0)
    for at in range(1, MOST_RANGES + 1):
        cursor = cursor.confirm(at * 1_000_000, at * 1_000_000 + 10)
    end = MOST_RANGES * 1_000_000 + 10
    lanes = split(cursor, end + 5_000_000)
    assert lanes[Lane.LIVE] == LaneWork(Span(end + 1, end + 5_000_000))
    assert lanes[Lane.BACKFILL] == LaneWork(Span(1, 999_999))


@given(
    st.lists(st.tuples(st.integers(0, 3 * SHORT_BATCHES * BATCH_ROWS), st.integers(1, 40)), max_size=40),
    st.sampled_from(["oldest", "newest"]),
    st.booleans(),
)
def test_everything_is_sent_once_with_few_ranges(
    arrivals: list[tuple[int, int]], order: Order, two: bool
) -> None:
    cursor, through, turns = Cursor(0), 0, Turns()
    for arrived, batches in [*arrivals, (0, 100_000)]:
        through += arrived
        for _ in range(batches):
            lanes = split(cursor, through, two=two, order=order)
            if not lanes:
                break
            lane = turns.next(lanes)
            gap, from_end = lanes[lane]
            size = min(gap.seqs, 4_000 if lane is Lane.LIVE else BATCH_ROWS)
            span = Span(gap.last - size + 1, gap.last) if from_end else Span(gap.first, gap.first + size - 1)
            assert cursor.gaps(span.last)[-1].first <= span.first, "sent twice"
            cursor = cursor.confirm(*span)
            turns.sent(lane, size * 100, emptied=size == gap.seqs)
            assert len(cursor.ranges) <= (MOST_RANGES if two else 0)
    assert cursor == (through, ())


@given(
    st.floats(0.05, 0.95),
    st.lists(st.tuples(st.integers(1, BATCH), st.integers(1, BATCH)), min_size=1, max_size=20),
)
def test_back_fill_gets_its_share_while_both_lanes_are_full(
    share: float, sizes: list[tuple[int, int]]
) -> None:
    turns = Turns(share)
    sent = {Lane.LIVE: 0, Lane.BACKFILL: 0}
    for at in range(300):
        live, backfill = sizes[at % len(sizes)]
        lane = turns.next(sent)
        size = live if lane is Lane.LIVE else backfill
        sent[lane] += size
        turns.sent(lane, size, emptied=False)
        total = sum(sent.values())
        assert abs(sent[Lane.BACKFILL] - share * total) <= BATCH


@pytest.mark.parametrize("size", [200, BATCH])
def test_a_few_live_readings_wait_for_one_batch_and_back_fill_for_one_of_theirs(size: int) -> None:
    turns, order = Turns(), []
    for _ in range(10):
        assert turns.next([Lane.BACKFILL]) is Lane.BACKFILL
        turns.sent(Lane.BACKFILL, size, emptied=False)
    for _ in range(10):
        lane = turns.next([Lane.BACKFILL, Lane.LIVE])
        turns.sent(lane, 50 if lane is Lane.LIVE else size, emptied=lane is Lane.LIVE)
        order.append(lane)
    assert order == [Lane.LIVE, Lane.BACKFILL] * 5


def test_a_lane_gathers_no_credit_while_it_has_nothing_to_send() -> None:
    turns = Turns(0.5)
    for _ in range(100):
        assert turns.next([Lane.LIVE]) is Lane.LIVE
        turns.sent(Lane.LIVE, BATCH, emptied=False)
    order = []
    for _ in range(6):
        lane = turns.next([Lane.LIVE, Lane.BACKFILL])
        turns.sent(lane, BATCH, emptied=False)
        order.append(lane)
    assert order.count(Lane.BACKFILL) == 3


def test_records_take_turns_with_the_points() -> None:
    turns, order = Turns(), []
    for _ in range(40):
        lane = turns.next([Lane.RECORDS, Lane.BACKFILL, Lane.LIVE])
        turns.sent(lane, BATCH, emptied=False)
        order.append(lane)
    assert order[:3] == [Lane.LIVE, Lane.RECORDS, Lane.BACKFILL]
    assert min(map(order.count, Lane)) >= 4
