"""A sender that is SIGKILLed at any step of a delivery loses nothing, and repeats nothing at an exact destination.

What a killed process has sent may arrive after what its successor sends, and a box on the way may repeat a request.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from repo import Settings, Store
from repo.delivery.forwarder import Forwarder
from repo.repositories.sinks import SinkInfo
from tests.conftest import ENGINES, Templates
from tests.delivery.servers.postgresql import PASSWORD, PostgresqlServer, why_no_postgresql
from tests.delivery.sites import (
    NAMES,
    Site,
    check,
    check_unordered,
    expected,
    insert,
    insert_refused,
    points_of,
    started,
)
from tests.faults.delivering import ANSWER, BATCH_POINTS, HELD, NOTHING, REFUSALS, SENDING, SENT, STEPS
from tests.starter import Starter

SINK = "there"
EXACT = ("postgresql", "holdfast", "folder")
HITS = 6
"""How often the long form hits each step: more than 50 kills of each sink."""

LATE = "late"
"""A part of the batch, or its commit, arrives while the next process delivers."""

_HEAD_BYTES = 500
"""A batch on its way has at least so many bytes, headers included."""


@pytest.fixture(scope="module")
def postgresql(request: pytest.FixtureRequest) -> Iterator[Callable[[], PostgresqlServer]]:
    """Start the server once it is asked for."""
    servers: list[PostgresqlServer] = []

    def start() -> PostgresqlServer:
        if (why := why_no_postgresql()) is not None:
            pytest.skip(why)
        if not servers:
            servers.append(PostgresqlServer())
        return servers[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HUB_PASSWORD", PASSWORD)
        yield start
    for server in servers:
        server.close()


class Campaign:
    """A store that delivers to a site, in processes that are killed."""

    def __init__(
        self, starter: Starter, store: Store, site: Site, chance: Random, *, overwrites: bool
    ) -> None:
        self._starter = starter
        self._store = store
        self._site = site
        self._chance = chance
        self._overwrites = overwrites
        self._written = 0
        self._records: dict[str, Any] = {}
        self._replaces = True
        self.hits: Counter[str] = Counter()
        store.sinks.add(SINK, site.target, start="beginning", records=site.takes_records, **site.options)

    def write(self, count: int) -> None:
        """Write so many points."""
        insert(self._store, points_of(self._chance, self._written, count, overwrites=self._overwrites))
        self._written += count
        if self._site.takes_records:
            for _ in range(self._chance.randint(0, 4)):
                number = self._chance.randrange(20) if self._replaces else len(self._records)
                name, data = f"R-{number}", {"text": f"é {self._chance.random()}"}
                self._store.records.add(name, "till", data)
                self._records[name] = data

    def kill(self, step: str) -> bool:
        """Write, deliver, and kill the process at a step; returns whether that hit."""
        count = self._chance.choice([30, 260])  # two lanes begin at 200
        self.write(count)
        # A confirmation alone comes only at the end.
        number = 1 if step.endswith("the confirmation") else self._chance.randint(1, max(1, count // 40))
        proxy = self._site.proxy
        if step not in HELD or proxy is None:
            done = self._starter.run(self._command(step, number))
            # A folder that has the batch already writes nothing, so there is no moment to be killed at.
            assert done.returncode in (0, -9) or done.stderr.strip() == SENT, done.stderr
            is_hit = done.returncode == -9
        else:
            is_hit = self._kill_on_its_way(step, number)
            proxy.let_go()
        self.hits[step] += is_hit
        return is_hit

    def kill_late(self) -> bool:
        """Kill the process while a batch is on its way, and let it arrive beside what the next process sends.

        Records have no seq, so only an exact destination knows which of two is the older.
        """
        self._replaces = self._site.exact
        self.write(self._chance.choice([30, 260]))
        assert self._site.proxy is not None
        is_hit = self._kill_on_its_way(LATE, 1)
        successor = self._starter.start(self._command("", 0))
        time.sleep(self._chance.uniform(0.0, 0.3))
        self._site.proxy.let_go(late=True)
        assert successor.wait() == 0
        self.hits[LATE] += is_hit
        return is_hit

    def kill_refusing(self, step: str, *, late: bool = False) -> bool:
        """Kill the process at a step of a refusal; returns whether that hit.

        If it is `late`, the destination takes the item at first, and a request with it is on its way. It arrives after
        the kill, when the destination takes the item again.
        """
        self._replaces = False
        self._deliver()
        before = 0 if late else self._chance.randrange(12)  # a first half without it would be stored
        for count in (before, 12 - before):
            insert(self._store, points_of(self._chance, self._written, count, overwrites=False))
            insert_refused(self._store, self._written + count)
            self._written += count + 1
        assert self._site.proxy is not None
        if late and not self._kill_on_its_way(SENDING, 1, after_s=0.05):
            return False
        self._site.judge(strictly=True)
        if step in HELD:
            is_hit = self._kill_on_its_way(step, 1)
            self._site.proxy.let_go()
        else:
            done = self._starter.run(self._command(step, 1))
            assert done.returncode in (0, -9), done.stderr
            is_hit = done.returncode == -9
        if late:
            self._site.judge(strictly=False)
            if self._chance.random() < 0.5:  # it arrives before the next process begins
                stored, until = self._site.count(), time.monotonic() + 1
                self._site.proxy.let_go(late=True)
                while self._site.count() == stored and time.monotonic() < until:
                    time.sleep(0.01)
            successor = self._starter.start(self._command("", 0))
            time.sleep(self._chance.choice([0.0, 0.1]))
            self._site.proxy.let_go(late=True)
            assert successor.wait() == 0
        self.hits[step] += is_hit
        return is_hit

    def _deliver(self) -> None:
        done = self._starter.run(self._command("", 0))
        assert done.returncode == 0, done.stderr

    def repeat(self) -> None:
        """Deliver, and repeat all that the process has sent."""
        self._replaces = self._site.exact
        self.write(30)
        assert self._site.proxy is not None
        self._site.proxy.record()
        self._deliver()
        assert self._site.proxy.repeat().count(b"HTTP/1.1 ") >= 1
        self.hits["repeat"] += 1

    def finish(self) -> int:
        """Deliver the rest; returns how many batches the sink recognized."""
        assert Forwarder(self._store, SINK, batch_points=BATCH_POINTS).drain(600.0)[SINK].is_empty
        info = self._store.sinks.show(SINK)
        assert (info.behind, info.attempt, info.refused, info.state) == (0, None, 0, "running")
        assert self._store.records.pending() == []
        assert self._site.records() == self._records
        if self._site.exact:
            count = self._site.count()
            assert count is not None
            # An exact destination counts in the transaction of the points: what was stored twice would count twice. It
            # also counts what was overwritten since, which the sender does not count if it read the range again.
            assert info.sent_points <= count <= self._written
            assert self._overwrites or count == info.sent_points == self._written
        return info.repeats

    def _command(self, step: str, number: int) -> list[object]:
        return ["-m", "tests.faults.delivering", self._store.path, SINK, step, number]

    def _kill_on_its_way(self, step: str, number: int, *, after_s: float = 0.0) -> bool:
        """Kill the process `after_s` the proxy keeps something back; the proxy continues to do so.

        In that time, the process sends the rest of a batch, as a rule.
        """
        proxy = self._site.proxy
        assert proxy is not None
        child = self._starter.open(self._command(SENDING if step == LATE else step, number))
        try:
            if child.stdout.readline() != "SENDING\n":
                assert child.wait() == 0, child.stderr.read()
                return False
            if step in (SENDING, SENDING + NOTHING):
                proxy.hold_after(self._chance.randint(1, _HEAD_BYTES))
            elif step == LATE:
                proxy.hold_after(
                    0 if self._site.answers_to else self._chance.randint(0, 100), self._site.answers_to
                )
            else:
                proxy.hold_answers(self._site.answers_to)
            child.stdin.write("\n")
            child.stdin.flush()
            while not proxy.held.wait(0.005) and child.poll() is None:
                pass
            time.sleep(after_s)
            return proxy.held.is_set()
        finally:
            child.close()


@contextmanager
def campaign(
    starter: Starter,
    templates: Templates,
    folder: Path,
    name: str,
    engine: str,
    chance: Random,
    postgresql: Callable[[], PostgresqlServer] | None = None,
    *,
    overwrites: bool,
) -> Iterator[tuple[Campaign, Site, Store]]:
    templates.copy(engine, 1, folder / "edge")
    with (
        started(name, folder / name, postgresql) as site,
        Store(folder / "edge", Settings(background=False)) as store,
    ):
        yield Campaign(starter, store, site, chance, overwrites=overwrites), site, store


@pytest.mark.parametrize("name", ["holdfast", "folder", "http"])
def test_each_step_can_be_the_last_one(
    starter: Starter, templates: Templates, tmp_path: Path, seed: int, name: str
) -> None:
    chance = Random(f"{seed}/{name}")
    steps = STEPS if name == "holdfast" else (SENDING, ANSWER)
    with campaign(starter, templates, tmp_path, name, "sqlite", chance, overwrites=bool(seed % 2)) as (
        kills,
        site,
        store,
    ):
        for step in steps:
            kills.kill(step)
        repeats = kills.finish()
        check(site, store)
    assert kills.hits.total() >= len(steps) - 1
    assert repeats >= (1 if site.exact else 0), "a batch that was stored before the kill is recognized"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overwrites"), [*((name, True) for name in NAMES), *((name, False) for name in EXACT)]
)
def test_many_kills_at_each_step(
    starter: Starter,
    templates: Templates,
    tmp_path: Path,
    seed: int,
    name: str,
    postgresql: Callable[[], PostgresqlServer],
    overwrites: bool,
) -> None:
    engine = "duckdb" if overwrites and name in ("holdfast", "postgresql") else "sqlite"
    if engine == "duckdb":
        pytest.importorskip("duckdb")
    chance = Random(f"{seed}/{name}/{overwrites}")
    with campaign(starter, templates, tmp_path, name, engine, chance, postgresql, overwrites=overwrites) as (
        kills,
        site,
        store,
    ):
        for _ in range(HITS * 4):
            for step in STEPS:
                if kills.hits[step] < HITS:
                    kills.kill(step)
        repeats = kills.finish()
        check(site, store)
    print(f"{name}, {overwrites=}, {engine}: {dict(kills.hits)}, {repeats} repeats recognized")
    assert all(kills.hits[step] == HITS for step in STEPS), kills.hits
    assert repeats >= (HITS if site.exact else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "folder"])
def test_requests_of_killed_processes_arrive_late(
    starter: Starter,
    templates: Templates,
    tmp_path: Path,
    seed: int,
    name: str,
    postgresql: Callable[[], PostgresqlServer],
) -> None:
    """InfluxDB and VictoriaMetrics know no order, so that an old value that arrives late would stay there."""
    chance = Random(f"{seed}/{name}")
    overwrites = name not in ("influxdb", "victoria-metrics")
    with campaign(
        starter, templates, tmp_path, name, "sqlite", chance, postgresql, overwrites=overwrites
    ) as (kills, site, store):
        for _ in range(15):
            kills.kill_late()
        repeats = kills.finish()
        check_unordered(site, store)
    print(f"{name}: {dict(kills.hits)}, {repeats} repeats recognized")
    assert kills.hits[LATE] >= 12


def drained(store: Store) -> tuple[SinkInfo, set[tuple[Any, ...]]]:
    """Deliver what is left, and return the sink, and which points are in quarantine."""
    assert Forwarder(store, SINK, batch_points=BATCH_POINTS).drain(600.0)[SINK].is_empty
    info = store.sinks.show(SINK)
    assert (info.behind, info.attempt, info.state) == (0, None, "running")
    return info, {(item.sensor_id, item.metric_name, item.timestamp_us) for item in store.quarantine.list()}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["holdfast", "postgresql"])
def test_many_kills_at_each_step_of_a_refusal(
    starter: Starter,
    templates: Templates,
    tmp_path: Path,
    seed: int,
    name: str,
    engine: str,
    postgresql: Callable[[], PostgresqlServer],
) -> None:
    """What is refused alone is in quarantine and not at the destination. Everything else is there exactly once."""
    chance, most = Random(f"{seed}/{name}/refusals"), HITS if engine == "sqlite" else HITS // 2
    with campaign(starter, templates, tmp_path, name, engine, chance, postgresql, overwrites=False) as (
        kills,
        site,
        store,
    ):
        for _ in range(most * 2):
            for step in REFUSALS:
                if kills.hits[step] < most:
                    kills.kill_refusing(step)
        info, refused = drained(store)
        there = site.values()
        assert refused.isdisjoint(there)
        assert there | dict.fromkeys(refused, 0.0) == expected(store) | dict.fromkeys(refused, 0.0)
        assert site.count() == info.sent_points == len(there)
    print(f"{name}, {engine}: {dict(kills.hits)}, {len(refused)} refused")
    assert all(kills.hits[step] == most for step in REFUSALS), kills.hits


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_batches_that_arrive_after_their_items_were_refused_are_not_forks(
    starter: Starter, templates: Templates, tmp_path: Path, seed: int, engine: str
) -> None:
    """A receiver refused an item, and then takes it again. PostgreSQL locks the position until a late batch ends."""
    chance = Random(f"{seed}/late refusals")
    steps = [step for step in REFUSALS if step not in HELD]
    with campaign(starter, templates, tmp_path, "holdfast", engine, chance, overwrites=False) as (
        kills,
        site,
        store,
    ):
        for _ in range(HITS if engine == "sqlite" else HITS // 2):
            for step in steps:
                kills.kill_refusing(step, late=True)
        info, refused = drained(store)
        there, wanted = site.values(), expected(store)
        both = len(refused & there.keys())
        assert there.items() <= wanted.items()
        assert wanted.keys() - there.keys() <= refused
    print(
        f"late: {dict(kills.hits)}, {len(refused)} refused, {both} of them arrived late, {info.repeats} repeats"
    )
    assert sum(kills.hits.values()) >= HITS // 2
    assert both, "a late batch brought an item that is in quarantine"


@pytest.mark.parametrize("name", ["holdfast", "http", pytest.param("influxdb", marks=pytest.mark.slow)])
def test_requests_that_are_repeated_on_the_way_change_nothing(
    starter: Starter, templates: Templates, tmp_path: Path, seed: int, name: str
) -> None:
    chance = Random(f"{seed}/{name}")
    with campaign(starter, templates, tmp_path, name, "sqlite", chance, overwrites=name != "influxdb") as (
        kills,
        site,
        store,
    ):
        for _ in range(2):
            kills.repeat()
        kills.finish()
        check_unordered(site, store)
