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
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from repo.delivery.protocol import Batch, Lane, Outcome, RecordItem, Sink
from repo.errors import SinkUnreachable, StoreForked
from repo.formats.arrays.columns import Coded
from repo.testing.batches import Batches, Point
from repo.testing.crashes import Line, crashed_at, files_of, lines_of

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
        assert isinstance(sink.name, str), f"`name` must be a text; it is {sink.name!r}"
        assert sink.name, "`name` is empty"
        other = destination.sink().name
        assert other == sink.name, (
            f"each sink of a destination needs the same name: {sink.name!r}, then {other!r}"
        )
        for said in ("exact", "takes_records"):
            value = getattr(sink, said)
            assert isinstance(value, bool), f"`{said}` must be True or False; it is {value!r}"

    def test_a_batch_arrives_whole(self, destination: Destination, sink: Sink, batches: Batches) -> None:
        """Every point, with its value, under its identity."""
        points = _numbers(destination, 2_000)
        held = sink.open(batches.store_id, batches.epoch)
        assert held is None, f"nothing was sent yet, so `open` must return None; it returned {held!r}"
        outcome = sink.send(batches.points(points))
        assert isinstance(outcome, Outcome), f"`send` must return an Outcome; it returned {outcome!r}"
        _none_refused(outcome)
        assert not outcome.repeat, "`send` said that the destination had the first batch already (`repeat`)"
        _check_arrived(destination, points)

    def test_it_opens_and_closes_again_and_again(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """`close` is safe without `open` and twice; each new opening continues where the last one ended."""
        sink.close()
        points = _numbers(destination, 9)
        for first in (0, 3, 6):
            _open(sink, batches)
            _none_refused(batches.deliver(sink, points[first : first + 3]))
            sink.close()
            sink.close()
        other = destination.sink()
        _open(other, batches)
        other.close()
        _check_arrived(destination, points)

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
        if sink.exact:
            assert outcome.repeat, "the destination has this batch, so its repeat needs Outcome(repeat=True)"
        _check_arrived(destination, first + second, once=sink.exact)

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
        _check_same(final.values(), changed + points[3:])

    def test_older_points_may_follow_newer_ones(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """The live lane overtakes the backlog: a range of lower seqs follows one of higher seqs."""
        old, new = _numbers(destination, 100), _numbers(destination, 100, 100)
        _open(sink, batches)
        _none_refused(batches.deliver(sink, new, first_seq=101))
        _none_refused(batches.deliver(sink, old[:50], first_seq=1, lane=Lane.BACKFILL))
        _none_refused(batches.deliver(sink, old[50:], first_seq=51, lane=Lane.BACKFILL))
        _check_arrived(destination, old + new)

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
        for row, reason in refused.items():
            said = f"{points[row][:4]} was refused without a reason: it is {reason!r}"
            assert isinstance(reason, str), said
            assert reason, said
        arrived = {one[:3]: one[3] for one in destination.points()}
        for row, (sensor, metric, us, value, *_) in enumerate(points):
            kept = not (
                (isinstance(value, str) and not destination.keeps_texts)
                or (value is None and not destination.keeps_missing)
            )
            if row in refused:
                said = f"{(sensor, metric, us)} was refused ({refused[row]}), and is at the destination"
                assert (sensor, metric, us) not in arrived, said
            elif kept:
                said = (
                    f"{(sensor, metric, us)} was neither refused nor stored; return it in `Outcome.refused`"
                )
                assert (sensor, metric, us) in arrived, said
                found = arrived[sensor, metric, us]
                assert found == value, (
                    f"{(sensor, metric, us)} has the value {found!r} there; {value!r} was sent"
                )
        usual = next(row for row, point in enumerate(points) if point[:3] == ("W", "m0", _START_US))
        assert usual not in refused, f"the value 0.1 under ordinary names was refused: {refused.get(usual)}"

    def test_a_range_without_points_is_accepted(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """Points of a range may have been overwritten or deleted since it was first sent."""
        _open(sink, batches)
        empty = batches.points([], last_seq=50)
        _none_refused(sink.send(empty))
        batches.confirm(empty)
        points = _numbers(destination, 3)
        _none_refused(batches.deliver(sink, points))
        _check_arrived(destination, points)

    def test_columns_may_be_any_sequences(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """Lists, tuples, arrays, and names that are coded, as DuckDB gives them."""
        points = _numbers(destination, 10)
        batch = batches.points(points)
        sensors, metrics, times_us, values, texts, qualities, metadata, seqs = batch.columns
        numbers = (array("q", times_us), array("d", values), array("i", qualities), array("q", seqs))
        texts, metadata = tuple(texts), tuple(metadata)
        names = (_coded(sensors), tuple(metrics))
        columns = (*names, *numbers[:2], texts, numbers[2], metadata, numbers[3])
        _open(sink, batches)
        _none_refused(sink.send(replace(batch, columns=columns)))
        _check_arrived(destination, points)

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
        assert failures == [], f"in a thread other than the one that made it, the sink raised {failures[0]!r}"
        sink.close()
        _check_arrived(destination, points)

    def test_a_refused_point_does_not_keep_others_away(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """One bad item of a batch is refused alone."""
        if destination.unacceptable is None:
            pytest.skip("this destination refuses no point")
        points: list[Point] = list(_numbers(destination, 40))
        points.insert(17, destination.unacceptable)
        _open(sink, batches)
        refused = batches.deliver(sink, points)
        said = f"only row 17, {points[17][:4]}, is not acceptable; these rows were refused: {refused}"
        assert refused.keys() == {17}, said
        del points[17]
        _check_same(set(destination.points()), points)

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
        for attempt in (sink.send, lambda batch: _opened_and_sent(sink, batches, batch)):
            try:
                attempt(batch)
            except (SinkUnreachable, OSError):
                continue
            pytest.fail(
                "with the link cut, `open` or `send` must raise SinkUnreachable or an OSError; it raised nothing"
            )
        destination.mend()
        sink.open(batches.store_id, batches.epoch)
        sink.send(replace(batch, attempt=3))
        _check_arrived(destination, first + second, once=sink.exact)

    def test_an_exact_sink_returns_the_token_of_the_last_batch(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """Each store and each epoch has its own."""
        if not sink.exact:
            pytest.skip("this sink keeps no position")
        held = sink.open(batches.store_id, batches.epoch)
        assert held is None, f"nothing was sent yet, so `open` must return None; it returned {held!r}"
        for points in (_numbers(destination, 3), []):
            batch = batches.points(points, last_seq=batches.last_seq + 3)
            sink.send(batch)
            batches.confirm(batch)
            held, wanted = sink.open(batches.store_id, batches.epoch), batch.tokens.next
            assert held == wanted, (
                f"`open` must return the last batch's Tokens.next, {wanted!r}, not {held!r}"
            )
        held = sink.open(batches.store_id, batches.epoch + 1)
        assert held is None, f"another epoch has its own token; `open` returned {held!r}"
        held = sink.open("0" * 32, batches.epoch)
        assert held is None, f"another store has its own token; `open` returned {held!r}"

    def test_an_exact_sink_knows_a_part_of_a_batch_that_is_stored(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """After a `SinkRefused`, the forwarder asks for the refused items of a stored batch in parts, by its tokens."""
        if not sink.exact:
            pytest.skip("this sink keeps no position")
        points = _numbers(destination, 6)
        _open(sink, batches)
        batch = batches.points(points)
        sink.send(batch)
        for part in (batch.part(0, 3), batch.part(3, 6)):
            outcome = sink.send(replace(part, attempt=2))
            assert outcome.repeat, "a part of a stored batch, with its tokens, needs Outcome(repeat=True)"
        batches.confirm(batch)
        _check_arrived(destination, points)

    def test_a_crash_leaves_a_batch_stored_with_its_token_or_not_at_all(
        self, destination: Destination, sink: Sink, batches: Batches
    ) -> None:
        """An exact sink stores points and token in one transaction.

        An exception interrupts `send`, once before each line of the sink's own module, as a crash would. Then another
        sink is opened, and points and token in the destination are compared. A crash inside a library or the
        destination cannot be tested like this.
        """
        if not sink.exact:
            pytest.skip("this sink keeps no position")
        _open(sink, batches)
        every = 2
        sent = _numbers(destination, every)
        batch = batches.points(sent)
        lines = lines_of(lambda: sink.send(batch), files_of(sink))
        batches.confirm(batch)
        sink.close()
        for line in lines:
            points = _numbers(destination, every, len(sent))
            batch = batches.points(points)
            crashing = destination.sink()
            _open(crashing, batches)
            crashed_at(line, lambda crashing=crashing, batch=batch: crashing.send(batch))  # type: ignore[misc]
            with suppress(Exception):
                crashing.close()
            again = destination.sink()
            held = again.open(batches.store_id, batches.epoch)
            _check_crash(line, held, batch, len(set(destination.points()).intersection(points)))
            if held != batch.tokens.next:
                _none_refused(again.send(replace(batch, attempt=2)))
            batches.confirm(batch)
            again.close()
            sent += points
        _check_arrived(destination, sent, once=True)

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
            try:
                sink.send(unexpected.points(_numbers(destination, 3, 3)))
            except StoreForked:
                pass
            else:
                pytest.fail(
                    "a batch that does not follow the destination's token was accepted; raise StoreForked"
                )
            _open(sink, batches)
        _check_arrived(destination, points)

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
        _none_refused(sink.send(batch))
        batches.confirm(batch)
        found, wanted = dict(destination.records()), {f"record {at}": one for at, one in enumerate(data)}
        assert found == wanted, f"the records {wanted} were sent; the destination has {found}"


def _open(sink: Sink, batches: Batches) -> None:
    """Open a sink as the forwarder does."""
    held, wanted = sink.open(batches.store_id, batches.epoch), batches.token if sink.exact else None
    assert held == wanted, f"`open` must return {wanted!r}, the token of the last batch; it returned {held!r}"


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


def _coded(names: Sequence[str]) -> Coded:
    texts = sorted({"another", *names})
    return Coded(texts, array("i", map(texts.index, names)))


def _none_refused(refused: Outcome | dict[int, str]) -> None:
    found = refused.refused if isinstance(refused, Outcome) else refused
    assert not found, f"ordinary items were refused: {found}"


def _check_arrived(destination: Destination, sent: Iterable[Any], *, once: bool = True) -> None:
    """Compare what has arrived with what was sent; without `once`, it may have arrived several times."""
    arrived = [*destination.points()]
    _check_same(arrived if once else {*arrived}, sent)


def _check_same(arrived: Iterable[Any], sent: Iterable[Any]) -> None:
    found, wanted = (Counter(tuple(point[:4]) for point in points) for points in (arrived, sent))
    for difference, words in (
        (wanted - found, "is missing at the destination"),
        (found - wanted, "was not sent"),
    ):
        if difference:
            point = min(difference, key=repr)
            words = "arrived more often than it was sent" if wanted[point] and found[point] else words
            more = f" (and {difference.total() - 1} others)" if difference.total() > 1 else ""
            pytest.fail(f"{point} {words}{more}")


def _check_crash(line: Line, held: str | None, batch: Batch, stored: int) -> None:
    where = (
        f"after a crash in `send` before line {line.number} of {Path(line.file).name}, the destination has"
    )
    rule = "store the points and Tokens.next in one transaction"
    if held == batch.tokens.next:
        said = f"{where} the token of the batch, but {stored} of its {len(batch)} points: the others are lost; {rule}"
        assert stored == len(batch), said
        return
    assert held == batch.tokens.committed, f"{where} the token {held!r}, which is of no batch"
    said = f"{where} {stored} of the batch's {len(batch)} points without its token: they are stored again; {rule}"
    assert stored == 0, said


def _with_token(batches: Batches, token: str) -> Batches:
    other = Batches(batches.sink, store_id=batches.store_id, epoch=batches.epoch)
    other.token = token
    return other
