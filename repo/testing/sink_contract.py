"""What every sink must do, as pytest tests: that nothing is missing, repeated, reordered or refused without a reason.

    class TestFolderSink(SinkContract):
        @pytest.fixture
        def destination(self, tmp_path):
            return FolderDestination(tmp_path)

Each test gets a destination that is empty at first.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import inf
from threading import Thread
from typing import Any, ClassVar

import pytest

from repo.delivery.protocol import Batch, Lane, Outcome, RecordItem, Sink
from repo.errors import SinkUnreachable, StoreForked
from repo.testing.batches import Batches, Point

__all__ = ["Destination", "SinkContract"]

_START_US = 1_767_225_600_000_000
"""2026-01-01, UTC."""

StoredPoint = tuple[str, str, int, float | str | None]


class Destination(ABC):
    """Where a sink delivers to, as a test sees it."""

    step_us: ClassVar[int] = 1
    """The smallest step between two times that the destination keeps apart."""
    keeps_texts: ClassVar[bool] = True
    """Whether text readings arrive. If not, the sink need not refuse them."""
    keeps_missing: ClassVar[bool] = True
    """Whether points without a reading arrive. If not, the sink need not refuse them."""
    unacceptable: Point | None = None
    """A point that the destination refuses, if there is one."""

    @abstractmethod
    def sink(self) -> Sink:
        """Return a new sink for this destination, not yet open. Every call returns one with the same name."""

    @abstractmethod
    def points(self) -> Iterable[StoredPoint]:
        """Return the points that have arrived: `(sensor_id, metric_name, timestamp_us, value)`.

        A destination that keeps what is sent twice returns all of it, in the order of arrival.
        """

    def records(self) -> Iterable[tuple[str, Any]]:
        """Return the records that have arrived: `(record_id, data)`. Needed if the sink takes records."""
        raise NotImplementedError

    def cut(self) -> None:
        """Break the link to the destination, so that open sinks lose their connections."""
        raise NotImplementedError

    def mend(self) -> None:
        """Repair the link."""
        raise NotImplementedError


class SinkContract:
    """The tests. Give a subclass, whose name starts with `Test`, the fixture `destination`."""

    @pytest.fixture
    def sink(self, destination: Destination) -> Iterator[Sink]:
        """A sink that is not open yet."""
        sink = destination.sink()
        yield sink
        sink.close()

    @pytest.fixture
    def batches(self, sink: Sink) -> Batches:
        """The batches of a new store."""
        return Batches(sink.name)

    def test_it_has_a_name_and_says_what_it_can_do(self, destination: Destination, sink: Sink) -> None:
        """`name`, `exact` and `takes_records` do not depend on a connection."""
        assert isinstance(sink.name, str)
        assert sink.name
        assert destination.sink().name == sink.name
        assert isinstance(sink.exact, bool)
        assert isinstance(sink.takes_records, bool)

    def test_a_batch_arrives_whole(self, destination: Destination, sink: Sink, batches: Batches) -> None:
        """Every point, with its value, under its identity."""
        points = _numbers(destination, 2_000)
        assert sink.open(batches.store_id, batches.epoch) is None
        outcome = sink.send(batches.points(points))
        assert isinstance(outcome, Outcome)
        assert (outcome.refused, outcome.repeat) == ((), False)
        assert _sorted(destination.points()) == _sorted(points)

    def test_it_opens_and_closes_again_and_again(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """`close` is safe without `open` and twice; each new opening goes on where the last one ended."""
        sink.close()
        points = _numbers(destination, 9)
        for first in (0, 3, 6):
            _open(sink, batches)
            assert batches.deliver(sink, points[first : first + 3]) == {}
            sink.close()
            sink.close()
        other = destination.sink()
        _open(other, batches)
        other.close()
        assert _sorted(destination.points()) == _sorted(points)

    def test_a_batch_that_is_sent_again_leaves_nothing_out(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """A batch without an answer is sent again by another process. An exact destination recognizes it."""
        first, second = _numbers(destination, 5), _numbers(destination, 5, 5)
        _open(sink, batches)
        batch = batches.points(first)
        sink.send(batch)
        sink.close()
        again = destination.sink()
        again.open(batches.store_id, batches.epoch)
        outcome = again.send(replace(batch, attempt=2))
        batches.confirm(batch)
        batches.deliver(again, second)
        again.close()
        arrived = list(destination.points())
        assert set(arrived) == set(first + second)
        if sink.exact:
            assert outcome.repeat
            assert len(arrived) == 10

    def test_the_value_that_was_sent_last_counts(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """A point that was overwritten is sent again, with a higher seq."""
        points = _numbers(destination, 6)
        changed: list[Point] = [(sensor, metric, us, -7.5) for sensor, metric, us, *_ in points[:3]]
        _open(sink, batches)
        batches.deliver(sink, points)
        batches.deliver(sink, changed)
        final = {arrived[:3]: arrived for arrived in destination.points()}
        assert _sorted(final.values()) == _sorted(changed + points[3:])

    def test_older_points_may_follow_newer_ones(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """The live lane overtakes the backlog: a range of lower seqs follows one of higher seqs."""
        old, new = _numbers(destination, 100), _numbers(destination, 100, 100)
        _open(sink, batches)
        assert batches.deliver(sink, new, first_seq=101) == {}
        assert batches.deliver(sink, old[:50], first_seq=1, lane=Lane.BACKFILL) == {}
        assert batches.deliver(sink, old[50:], first_seq=51, lane=Lane.BACKFILL) == {}
        assert _sorted(destination.points()) == _sorted(old + new)

    def test_every_kind_of_point_arrives_or_is_refused_with_a_reason(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """Names with any printable character, extreme numbers and times, texts, missing readings, metadata."""
        step = destination.step_us
        names = [
            "a b",
            "a,b",
            "a=b",
            'a"b',
            "a\\b",
            "\\",
            "é日😀",
            "a/b",
            "+",
            "#",
            "$SYS",
            "{x}",
            "a'b",
            "%",
        ]
        longest = "x" * 255
        values: tuple[float | str | None, ...] = (0.1, -1e-300, 1.7976931348623157e308, 2.0**53, inf, -inf)
        values += ('on "b" \\ é', "", "x" * 5_000, None)
        points: list[Point] = [
            (name, f"m {name}", _START_US + step, 1.5) for name in names if len(name) < 250
        ]
        points += [(longest, longest, _START_US, 2.5)]
        points += [("W", f"m{at}", _START_US + at * step, value) for at, value in enumerate(values)]
        points += [("W", "old", -5 * step, 1.0), ("W", "far", 4_000_000_000_000_000, 1.0)]
        points += [("W", "meta", _START_US, 3.5, -5, '{"a":"\\"é","b":[1,null]}')]
        _open(sink, batches)
        refused = batches.deliver(sink, points)
        assert all(isinstance(reason, str) and reason for reason in refused.values())
        arrived = {one[:3]: one[3] for one in destination.points()}
        for row, (sensor, metric, us, value, *_) in enumerate(points):
            kept = not (
                (isinstance(value, str) and not destination.keeps_texts)
                or (value is None and not destination.keeps_missing)
            )
            if row in refused:
                assert (sensor, metric, us) not in arrived, "a refused point has arrived"
            elif kept:
                assert arrived[sensor, metric, us] == value
        usual = {row for row, point in enumerate(points) if point[:3] == ("W", "m0", _START_US)}
        assert not usual & refused.keys()

    def test_a_range_without_points_is_accepted(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """Points of a range may have been overwritten or deleted since it was first sent."""
        _open(sink, batches)
        empty = batches.points([], last_seq=50)
        assert sink.send(empty).refused == ()
        batches.confirm(empty)
        points = _numbers(destination, 3)
        assert batches.deliver(sink, points) == {}
        assert _sorted(destination.points()) == _sorted(points)

    def test_columns_may_be_any_sequences(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """Lists, tuples and arrays."""
        points = _numbers(destination, 10)
        batch = batches.points(points)
        sensors, metrics, times_us, values, texts, qualities, metadata, seqs = batch.columns
        numbers = (array("q", times_us), array("d", values), array("i", qualities), array("q", seqs))
        texts, metadata = tuple(texts), tuple(metadata)
        columns = (tuple(sensors), tuple(metrics), *numbers[:2], texts, numbers[2], metadata, numbers[3])
        _open(sink, batches)
        assert sink.send(replace(batch, columns=columns)).refused == ()
        assert _sorted(destination.points()) == _sorted(points)

    def test_it_may_be_made_and_used_by_different_threads(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """The forwarder uses it in a thread of its own, and may close it in another one."""
        points = _numbers(destination, 10)
        failures: list[BaseException] = []

        def use() -> None:
            try:
                _open(sink, batches)
                batches.deliver(sink, points)
            except BaseException as error:  # noqa: BLE001  raised again below
                failures.append(error)

        thread = Thread(target=use)
        thread.start()
        thread.join()
        assert failures == []
        sink.close()
        assert _sorted(destination.points()) == _sorted(points)

    def test_a_refused_point_does_not_keep_others_away(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """One bad item of a batch is refused alone."""
        if destination.unacceptable is None:
            pytest.skip("this destination refuses no point")
        points: list[Point] = list(_numbers(destination, 40))
        points.insert(17, destination.unacceptable)
        _open(sink, batches)
        assert batches.deliver(sink, points).keys() == {17}
        del points[17]
        assert _sorted(set(destination.points())) == _sorted(points)

    def test_a_broken_link_is_unreachable_and_nothing_is_missing_after_it(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """`SinkUnreachable` or an `OSError` from `open` and `send`; after the repair, `open` and `send` work again."""
        first, second = _numbers(destination, 5), _numbers(destination, 5, 5)
        _open(sink, batches)
        batches.deliver(sink, first)
        try:
            destination.cut()
        except NotImplementedError:
            pytest.skip("this destination has no link that a test can cut")
        batch = batches.points(second)
        with pytest.raises((SinkUnreachable, OSError)):
            sink.send(batch)
        with pytest.raises((SinkUnreachable, OSError)):
            _opened_and_sent(sink, batches, batch)
        destination.mend()
        sink.open(batches.store_id, batches.epoch)
        sink.send(replace(batch, attempt=3))
        arrived = list(destination.points())
        assert set(arrived) == set(first + second)
        assert not sink.exact or len(arrived) == 10

    def test_an_exact_sink_returns_the_token_of_the_last_batch(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """Each store and each epoch has its own."""
        if not sink.exact:
            pytest.skip("this sink keeps no position")
        assert sink.open(batches.store_id, batches.epoch) is None
        for points in (_numbers(destination, 3), []):
            batch = batches.points(points, last_seq=batches.last_seq + 3)
            sink.send(batch)
            batches.confirm(batch)
            assert sink.open(batches.store_id, batches.epoch) == batch.tokens.next
        assert sink.open(batches.store_id, batches.epoch + 1) is None
        assert sink.open("0" * 32, batches.epoch) is None

    def test_an_exact_sink_notices_a_copy_and_a_rollback(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """A token that the destination does not expect is `StoreForked`; nothing of the batch is stored."""
        if not sink.exact:
            pytest.skip("this sink keeps no position")
        points = _numbers(destination, 3)
        _open(sink, batches)
        copy = Batches(batches.sink, store_id=batches.store_id, epoch=batches.epoch)
        batches.deliver(sink, points)
        for unexpected in (copy, _with_token(copy, "0" * 32)):
            with pytest.raises(StoreForked):
                sink.send(unexpected.points(_numbers(destination, 3, 3)))
            _open(sink, batches)
        assert _sorted(destination.points()) == _sorted(points)

    def test_records_arrive(self, destination: Destination, sink: Sink, batches: Batches) -> None:
        """Each with its id and its data."""
        if not sink.takes_records:
            pytest.skip("this sink takes no records")
        data = [{"text": 'é "x" \\', "list": [1, None, 2.5]}, {}, {"deep": {"er": True}}]
        items = [
            RecordItem(f"record {at}", "source", json.dumps(one, ensure_ascii=False), _START_US + at)
            for at, one in enumerate(data)
        ]
        _open(sink, batches)
        batch = batches.records(items)
        assert sink.send(batch).refused == ()
        batches.confirm(batch)
        assert dict(destination.records()) == {f"record {at}": one for at, one in enumerate(data)}


def _open(sink: Sink, batches: Batches) -> None:
    """Open a sink as the forwarder does."""
    assert sink.open(batches.store_id, batches.epoch) == (batches.token if sink.exact else None)


def _opened_and_sent(sink: Sink, batches: Batches, batch: Batch) -> None:
    """Open and send: a sink may notice only when it sends that nobody listens."""
    sink.open(batches.store_id, batches.epoch)
    sink.send(batch)


def _numbers(destination: Destination, count: int, first: int = 0) -> list[Any]:
    """Return points of a few series, one step apart."""
    return [
        (f"W-{at % 5}", "flow" if at % 2 else "pressure", _START_US + at * destination.step_us, at / 8)
        for at in range(first, first + count)
    ]


def _sorted(points: Iterable[Any]) -> list[Any]:
    return sorted((tuple(point[:4]) for point in points), key=repr)


def _with_token(batches: Batches, token: str) -> Batches:
    other = Batches(batches.sink, store_id=batches.store_id, epoch=batches.epoch)
    other.token = token
    return other
