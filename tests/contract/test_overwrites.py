"""Which of several points of one identity counts: one table of cases for all implementations of the rule.

A later point overwrites an earlier one. With `on_conflict="keep"`, it does not. A point that is equal to the stored one
changes nothing, and the earlier seq stays. The rule is
implemented for points of one flush (`netted`), for rows against stored points (`apply`), for many points or tables
against stored points (`merge`), and for the newest point of a series that is not flushed yet (`_lay_over`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path
from typing import Any, Literal

import pytest

from repo import Settings, Store
from repo.repositories.points import Written
from tests.conftest import Templates

STORED = -1
"""The number of the write that was flushed before the first step."""


@dataclass(frozen=True)
class P:
    """A point of the series of its case."""

    value: Any
    at: int = 10
    quality: int | None = 100
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class Write:
    """Points that one call writes, which overwrite stored points or keep them."""

    points: tuple[P, ...]
    keep: bool = False

    @property
    def kind(self) -> str:
        return "keep" if self.keep else "overwrite"


@dataclass(frozen=True)
class Delete:
    """A delete of the points in [start, end)."""

    start: int
    end: int

    @property
    def kind(self) -> str:
        return "delete"


def over(*points: P) -> Write:
    return Write(points)


def keep(*points: P) -> Write:
    return Write(points, keep=True)


@dataclass(frozen=True)
class Case:
    """The stored points, the steps in their order, and the final points.

    `found` has each point with the number of the step that wrote it, or `None` if a table that goes straight to the
    columns keeps an earlier one. `dropped` is the number of points that the deletes removed.
    """

    name: str
    stored: tuple[P, ...]
    steps: tuple[Write | Delete, ...]
    found: tuple[tuple[P, int | None], ...]
    dropped: int = 0


A, B = {"k": "a"}, {"k": "b"}

CASES = [
    # --- nothing is stored ----------------------------------------------------------------------------------
    Case("a point alone", (), (over(P(1.0)),), ((P(1.0), 0),)),
    Case("a point alone that gives way", (), (keep(P(1.0)),), ((P(1.0), 0),)),
    Case("one identity twice in a batch", (), (over(P(1.0), P(2.0)),), ((P(2.0), 0),)),
    Case("one identity twice in a batch that gives way", (), (keep(P(1.0), P(2.0)),), ((P(2.0), 0),)),
    Case(
        "one identity three times in a batch, others between",
        (),
        (over(P(1.0), P(5.0, at=11), P(2.0), P(6.0, at=9), P(3.0)),),
        ((P(6.0, at=9), 0), (P(3.0), 0), (P(5.0, at=11), 0)),
    ),
    Case("two batches", (), (over(P(1.0)), over(P(2.0))), ((P(2.0), 1),)),
    Case("two equal batches", (), (over(P(1.0)), over(P(1.0))), ((P(1.0), 0),)),
    Case("two batches that give way", (), (keep(P(1.0)), keep(P(2.0))), ((P(1.0), 0),)),
    Case("a batch gives way to one before it", (), (over(P(1.0)), keep(P(2.0))), ((P(1.0), 0),)),
    Case("a batch overwrites one that gave way", (), (keep(P(1.0)), over(P(2.0))), ((P(2.0), 1),)),
    Case("an equal batch after one that gave way", (), (keep(P(1.0)), over(P(1.0))), ((P(1.0), 0),)),
    Case(
        "alternately overwriting and giving way",
        (),
        (keep(P(1.0)), over(P(2.0)), keep(P(3.0)), over(P(4.0)), keep(P(5.0))),
        ((P(4.0), 3),),
    ),
    Case(
        "late points fill the gaps before a newer one",
        (),
        (over(P(1.0, at=12)), over(P(2.0, at=8)), keep(P(3.0, at=9), P(9.0, at=12))),
        ((P(2.0, at=8), 1), (P(3.0, at=9), 2), (P(1.0, at=12), 0)),
    ),
    # --- a point is stored ----------------------------------------------------------------------------------
    Case("stored, overwritten", (P(1.0),), (over(P(2.0)),), ((P(2.0), 0),)),
    Case("stored, equal", (P(1.0),), (over(P(1.0)),), ((P(1.0), STORED),)),
    Case("stored, gives way", (P(1.0),), (keep(P(2.0)),), ((P(1.0), STORED),)),
    Case("stored, equal and gives way", (P(1.0),), (keep(P(1.0)),), ((P(1.0), STORED),)),
    Case("stored, overwritten twice", (P(1.0),), (over(P(2.0)), over(P(3.0))), ((P(3.0), 1),)),
    Case("stored, overwritten twice in a batch", (P(1.0),), (over(P(2.0), P(3.0)),), ((P(3.0), 0),)),
    Case(
        "stored, overwritten and written back in a batch",
        (P(1.0),),
        (over(P(2.0), P(1.0)),),
        ((P(1.0), None),),
    ),
    Case(
        "stored, overwritten twice and written back in two batches",
        (P(1.0),),
        (over(P(2.0), P(3.0)), over(P(1.0), P(1.0))),
        ((P(1.0), 1),),
    ),
    Case("stored, overwritten and written back", (P(1.0),), (over(P(2.0)), over(P(1.0))), ((P(1.0), 1),)),
    Case("stored, gives way twice in a batch", (P(1.0),), (keep(P(2.0), P(3.0)),), ((P(1.0), STORED),)),
    Case("stored, overwritten, then gives way", (P(1.0),), (over(P(2.0)), keep(P(3.0))), ((P(2.0), 0),)),
    Case("stored, gives way, then overwritten", (P(1.0),), (keep(P(2.0)), over(P(3.0))), ((P(3.0), 1),)),
    Case(
        "stored, of a batch some points are new, some equal, some others",
        (P(1.0, at=8), P(1.0, at=9), P(1.0)),
        (over(P(7.0, at=7), P(1.0, at=8), P(2.0, at=9), P(1.0), P(7.0, at=11)),),
        (
            (P(7.0, at=7), 0),
            (P(1.0, at=8), STORED),
            (P(2.0, at=9), 0),
            (P(1.0), STORED),
            (P(7.0, at=11), 0),
        ),
    ),
    Case(
        "stored, of a batch that gives way only what is new counts",
        (P(1.0, at=8), P(1.0)),
        (keep(P(7.0, at=7), P(2.0, at=8), P(2.0), P(7.0, at=11)),),
        ((P(7.0, at=7), 0), (P(1.0, at=8), STORED), (P(1.0), STORED), (P(7.0, at=11), 0)),
    ),
    Case(
        "stored, overwritten years apart",
        (P(1.0, at=-900_000_000), P(1.0), P(1.0, at=900_000_000)),
        (over(P(2.0, at=900_000_000), P(2.0, at=-900_000_000)),),
        ((P(2.0, at=-900_000_000), 0), (P(1.0), STORED), (P(2.0, at=900_000_000), 0)),
    ),
    # --- what is equal --------------------------------------------------------------------------------------
    Case("a number overwrites no reading", (P(None),), (over(P(1.0)),), ((P(1.0), 0),)),
    Case("no reading overwrites a number", (P(1.0),), (over(P(None)),), ((P(None), 0),)),
    Case("no reading equals no reading", (P(None),), (over(P(None)),), ((P(None), STORED),)),
    Case("no reading is there, and is given way to", (P(None),), (keep(P(1.0)),), ((P(None), STORED),)),
    Case("NaN is no reading", (P(None),), (over(P(nan)),), ((P(None), STORED),)),
    Case("NaN equals NaN", (P(nan),), (over(P(nan)),), ((P(None), STORED),)),
    Case("NaN overwrites a number, twice", (P(1.0),), (over(P(nan)), over(P(None))), ((P(None), 0),)),
    Case("NaN gives way to a number", (P(1.0),), (keep(P(nan)),), ((P(1.0), STORED),)),
    Case("minus zero equals zero", (P(0.0),), (over(P(-0.0)),), ((P(0.0), STORED),)),
    Case("infinity equals itself", (P(inf),), (over(P(inf)),), ((P(inf), STORED),)),
    Case("infinity is not minus infinity", (P(inf),), (over(P(-inf)),), ((P(-inf), 0),)),
    Case("an integer equals a number", (P(1.0),), (over(P(1)),), ((P(1.0), STORED),)),
    Case("neighbouring numbers differ", (P(0.3),), (over(P(0.1 + 0.2)),), ((P(0.1 + 0.2), 0),)),
    Case("a text overwrites a text", (P("OPEN"),), (over(P("SHUT")),), ((P("SHUT"), 0),)),
    Case("a text equals itself", (P("öffen"),), (over(P("öffen")),), ((P("öffen"), STORED),)),
    Case("texts differ by case", (P("OPEN"),), (over(P("open")),), ((P("open"), 0),)),
    Case("a text gives way", (P("OPEN"),), (keep(P("SHUT")),), ((P("OPEN"), STORED),)),
    Case("no reading overwrites a text", (P("OPEN"),), (over(P(None)),), ((P(None), 0),)),
    Case("a text overwrites no reading", (P(None),), (over(P("OPEN")),), ((P("OPEN"), 0),)),
    Case("an empty text is no missing reading", (P(""),), (over(P(None)), over(P(""))), ((P(""), 1),)),
    Case("two texts in a batch", (), (over(P("OPEN"), P("SHUT")),), ((P("SHUT"), 0),)),
    Case("quality alone overwrites", (P(1.0),), (over(P(1.0, quality=7)),), ((P(1.0, quality=7), 0),)),
    Case("quality alone gives way", (P(1.0),), (keep(P(1.0, quality=7)),), ((P(1.0), STORED),)),
    Case("no quality is the default", (P(1.0),), (over(P(1.0, quality=None)),), ((P(1.0), STORED),)),
    Case(
        "metadata alone overwrites",
        (P(1.0, metadata=A),),
        (over(P(1.0, metadata=B)),),
        ((P(1.0, metadata=B), 0),),
    ),
    Case("metadata is taken away", (P(1.0, metadata=A),), (over(P(1.0)),), ((P(1.0), 0),)),
    Case("metadata comes to it", (P(1.0),), (over(P(1.0, metadata=A)),), ((P(1.0, metadata=A), 0),)),
    Case("empty metadata is not none", (P(1.0),), (over(P(1.0, metadata={})),), ((P(1.0, metadata={}), 0),)),
    Case("metadata gives way", (P(1.0, metadata=A),), (keep(P(1.0)),), ((P(1.0, metadata=A), STORED),)),
    Case(
        "metadata equals itself in another order",
        (P(1.0, metadata={"a": 1, "b": [None, "ø"]}),),
        (over(P(1.0, metadata={"b": [None, "ø"], "a": 1})),),
        ((P(1.0, metadata={"a": 1, "b": [None, "ø"]}), STORED),),
    ),
    Case(
        "in two batches metadata alone overwrites",
        (),
        (over(P(1.0, metadata=A)), over(P(1.0, metadata=B)), over(P(1.0, metadata=B))),
        ((P(1.0, metadata=B), 1),),
    ),
    # --- a delete in between --------------------------------------------------------------------------------
    Case("stored, deleted", (P(1.0),), (Delete(10, 11),), (), dropped=1),
    Case("written and deleted", (), (over(P(1.0)), Delete(10, 11)), (), dropped=1),
    Case(
        "an equal point after a delete is a new one",
        (P(1.0),),
        (Delete(10, 11), over(P(1.0))),
        ((P(1.0), 1),),
        dropped=1,
    ),
    Case(
        "a point after a delete has nothing to give way to",
        (P(1.0),),
        (Delete(10, 11), keep(P(2.0))),
        ((P(2.0), 1),),
        dropped=1,
    ),
    Case(
        "overwritten, deleted, written, given way to",
        (P(1.0), P(1.0, at=11)),
        (over(P(2.0)), Delete(0, 11), over(P(3.0)), keep(P(4.0), P(4.0, at=9))),
        ((P(4.0, at=9), 3), (P(3.0), 2), (P(1.0, at=11), STORED)),
        dropped=1,
    ),
    Case(
        "a delete of the newest point, and a late one",
        (P(1.0, at=9), P(1.0)),
        (Delete(10, 20), over(P(1.0, at=9)), keep(P(2.0, at=8))),
        ((P(2.0, at=8), 2), (P(1.0, at=9), STORED)),
        dropped=1,
    ),
    Case("a delete beside it", (P(1.0),), (Delete(11, 20), keep(P(2.0))), ((P(1.0), STORED),)),
]


@dataclass(frozen=True)
class Route:
    """How the steps of a case reach the implementation under test."""

    settings: dict[str, Any] = field(default_factory=dict)
    flush_each: bool = False
    merged: bool = False
    """Whether the points of the journal are merged as many are, not applied as rows."""
    straight: Literal["all", "every second"] | None = None
    latest: Literal["after each step", "at the end"] | None = None


ROUTES = {
    "netted, in one flush": Route(),
    "apply, in batches of one flush": Route({"flush_batch_points": 1}),
    "apply, a flush for each": Route(flush_each=True),
    "merge, in one flush": Route(merged=True),
    "merge, a flush for each": Route(flush_each=True, merged=True),
    "merge, all by tables": Route({"bulk_rows": 1}, straight="all"),
    "merge, rows and tables alternately": Route({"bulk_rows": 1}, straight="every second"),
    "_lay_over, asked after each": Route(latest="after each step"),
    "_lay_over, asked at the end": Route(latest="at the end"),
}


def kinds_of(case: Case) -> list[str]:
    return [step.kind for step in case.steps]


SERIES = {case.name: f"series of {case.name!r}" for case in CASES}


def grouped() -> list[list[Case]]:
    """Return the cases in groups that are taken together, a call for each step.

    The first case of a group has the most steps, and the others begin with the same kinds of steps. A group with
    deletes has no case without one: what is flushed together with a delete is netted differently.
    """
    groups: list[list[Case]] = []
    for case in sorted(CASES, key=lambda case: -len(case.steps)):
        kinds = kinds_of(case)
        for group in groups:
            longest = kinds_of(group[0])
            if longest[: len(kinds)] == kinds and ("delete" in kinds) == ("delete" in longest):
                group.append(case)
                break
        else:
            groups.append([case])
    return groups


GROUPS = grouped()


class Drive:
    """A store in which the cases run through one implementation; each case has its own series."""

    def __init__(self, store: Store, route: Route) -> None:
        self.store = store
        self.route = route
        self.waiting = 0
        """How many seqs of the group that is driven are not flushed."""
        self.seqs: dict[tuple[str, int], range] = {}
        """The seqs of each step of each case."""

    def store_first(self) -> None:
        """Store the initial points of the cases, and points of other series at the same times."""
        rows = [row for case in CASES for row in rows_of(case, case.stored)]
        times = {row[2] for row in rows}
        beside = self.store.points.insert_many([("beside", "m", at, 0.5) for at in times])
        self.note(CASES, STORED, self.store.points.insert_many(rows))
        self.seqs["beside", STORED] = seqs_of(beside)
        self.store.checkpoint()
        assert self.store.status().unflushed == 0

    def take(self, group: Sequence[Case], number: int) -> None:
        """Run one step of the cases of a group, and assert that it went through the intended implementation."""
        points = self.store.points
        group = [case for case in group if number < len(case.steps)]
        steps = [(case, case.steps[number]) for case in group]
        rows = [row for case, step in steps if isinstance(step, Write) for row in rows_of(case, step.points)]
        kind = steps[0][1].kind
        if kind == "delete":
            for case, step in steps:
                assert isinstance(step, Delete)
                self.went(False, [case], number, points.delete(SERIES[case.name], "m", step.start, step.end))
        elif kind == "keep" or self.route.straight == "all" or (self.route.straight and number % 2):
            written = points.insert_table(
                table_of(rows), on_conflict="keep" if kind == "keep" else "overwrite"
            )
            assert written.accepted == len(rows)
            self.went(self.route.straight is not None, group, number, written)
        else:
            written = points.insert_many(rows)
            assert written.accepted == len(rows)
            self.went(False, group, number, written)

    def went(self, straight: bool, group: Sequence[Case], number: int, written: Written) -> None:
        """Assert that a straight write is in the columns, and any other write only in the journal."""
        self.note(group, number, written)
        self.waiting = 0 if straight else self.waiting + len(seqs_of(written))
        status = self.store.status()
        assert status.last_seq == written.last_seq
        assert (status.unflushed, status.journal_rows == 0) == (self.waiting, straight)

    def note(self, group: Iterable[Case], number: int, written: Written) -> None:
        self.seqs |= {(case.name, number): seqs_of(written) for case in group}

    def flush(self) -> None:
        assert self.store.flush() == self.store.sinks.last_seq()
        self.waiting = 0

    def newest(self, group: Iterable[Case], store: Store | None = None) -> dict[str, P]:
        names = [SERIES[case.name] for case in group]
        found = (self.store if store is None else store).points.latest(names, "m")
        return {row["sensor_id"]: point_of(row) for row in found}


def seqs_of(written: Written) -> range:
    assert written.first_seq is not None
    assert written.last_seq is not None
    return range(written.first_seq, written.last_seq + 1)


def rows_of(case: Case, points: Sequence[P]) -> list[tuple[Any, ...]]:
    return [(SERIES[case.name], "m", p.at, p.value, p.quality, p.metadata) for p in points]


def table_of(rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Return rows as a plain table, which may go straight to the columns."""
    sensors, metrics, times, values, qualities, metadata = zip(*rows, strict=True)
    return {
        "sensor_id": list(sensors),
        "metric_name": list(metrics),
        "timestamp": list(times),
        "value": [value if type(value) is not str else None for value in values],
        "value_text": [value if type(value) is str else None for value in values],
        "quality": list(qualities),
        "metadata": [
            None
            if one is None
            else json.dumps(one, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
            for one in metadata
        ],
    }


def point_of(row: dict[str, Any]) -> P:
    return P(row["value"], row["timestamp_us"] // 1_000_000, row["quality"], row["metadata"])


def newest_of(group: Iterable[Case]) -> dict[str, P]:
    """Return the expected newest point of each case."""
    return {
        SERIES[case.name]: max((point for point, _ in case.found), key=lambda point: point.at)
        for case in group
        if case.found
    }


@pytest.fixture
def drive(
    tmp_path: Path, engine: str, route: str, templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Drive]:
    """A store with the points that the cases start with."""
    if ROUTES[route].merged:
        monkeypatch.setattr("repo.core.work.MERGED_FROM", 1)
    monkeypatch.setattr("repo.core.bulk.FLUSH_S", 1e6)  # a slow machine goes straight, too
    templates.copy(engine, 1, tmp_path / "store")
    options: dict[str, Any] = {"engine": engine, "durability": "normal", **ROUTES[route].settings}
    with Store(tmp_path / "store", Settings(background=False, **options)) as store:
        if ROUTES[route].latest != "at the end":  # there another store reads, which takes the columns
            store._handle.columns.stays_open = (
                True  # keeps them open between calls, as a background thread does
            )
        drive = Drive(store, ROUTES[route])
        drive.store_first()
        yield drive


def differing(found: dict[str, P], expected: dict[str, P]) -> dict[str, tuple[P | None, P | None]]:
    names = found.keys() | expected.keys()
    return {n: (found.get(n), expected.get(n)) for n in names if found.get(n) != expected.get(n)}


def combinations() -> Iterator[Any]:
    """Each route on each engine, as far as there is one.

    `netted` and `_lay_over` work on rows of the journal, whatever the engine: on DuckDB they are slow tests. So are,
    on both, two routes whose steps other routes take, too: `apply` with a flush for each batch, and `merge` of tables.
    """
    for name, route in ROUTES.items():
        for engine in ("duckdb", "sqlite"):
            if (route.straight or route.merged) and engine == "sqlite":
                continue  # it takes rows only
            is_slow = name.startswith(("apply, a flush", "merge, all")) or (
                engine == "duckdb" and name.startswith(("netted", "_lay_over"))
            )
            yield pytest.param(
                engine, name, id=f"{engine}-{name}", marks=[pytest.mark.slow] if is_slow else []
            )


@pytest.mark.parametrize(("engine", "route"), list(combinations()))
def test_of_several_points_of_one_identity_the_right_one_counts(drive: Drive) -> None:
    store, latest = drive.store, drive.route.latest
    for group in GROUPS:
        for number in range(len(group[0].steps)):
            drive.take(group, number)
            if drive.route.flush_each:
                drive.flush()
            elif latest == "after each step":
                drive.newest(group)
                if group[0].steps[number].kind == "delete":
                    drive.waiting = (
                        0  # `latest` flushes a delete, because only the columns show what it leaves
                    )
        if latest == "at the end":
            with Store(store.path, store.settings) as fresh:  # with empty memory
                assert differing(drive.newest(group, fresh), newest_of(group)) == {}
            if "delete" in kinds_of(group[0]):
                drive.waiting = 0
        if latest is not None:
            assert differing(drive.newest(group), newest_of(group)) == {}
            assert store.status().unflushed == drive.waiting
        drive.flush()
    assert differing(drive.newest(CASES), newest_of(CASES)) == {}
    assert store.status().ledger_dropped == sum(case.dropped for case in CASES)

    points: dict[str, list[P]] = {}
    seqs: dict[tuple[str, int], int] = {}
    for row in store.points.after(0):
        points.setdefault(row["sensor_id"], []).append(point_of(row))
        seqs[row["sensor_id"], row["timestamp_us"] // 1_000_000] = row["seq"]
    beside = points.pop("beside")
    assert {seqs["beside", point.at] for point in beside} == set(drive.seqs["beside", STORED])
    wrong: dict[str, Any] = {}
    for case in CASES:
        name = SERIES[case.name]
        found = sorted(points.get(name, []), key=lambda point: point.at)
        if found != [point for point, _ in case.found]:
            wrong[case.name] = found
            continue
        for point, origin in case.found:
            if origin is not None and seqs[name, point.at] not in drive.seqs[case.name, origin]:
                wrong[case.name] = f"the point at {point.at} does not come from step {origin}"
    assert wrong == {}
    counted = {info.sensor_id: info.points for info in store.series.list() if info.points}
    assert counted == {SERIES[case.name]: len(case.found) for case in CASES if case.found} | {
        "beside": len(beside)
    }
