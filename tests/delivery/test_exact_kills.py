"""Sites and destinations that are killed and restarted at random: each point arrives exactly once, with its value."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from benchmarks.servers import binary, free_port
from repo import Settings, Store, reconcile
from tests.delivery.servers.postgresql import PASSWORD, PostgresqlServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SITES = 20
FIELDS = "sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata"


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.delivery.site_process", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def killed(*arguments: str) -> Iterator[None]:
    """Run a process until the block ends, then kill it."""
    process = started(*arguments)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def lived(place: Path, url: str, options: dict[str, Any], seed: str, length_s: float) -> None:
    with killed("write", str(place), url, json.dumps(options), seed):
        time.sleep(length_s)


def finished(place: Path, url: str) -> str:
    return started("finish", str(place), url, "{}", "0").communicate()[0].strip()


def read_by_psql(server: PostgresqlServer, query: str) -> list[list[str]]:
    done = subprocess.run(
        [binary("psql") or "psql", server.url, "-U", "admin", "-AtF,", "-c", query],
        env={**os.environ, "PGPASSWORD": PASSWORD},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [line.split(",") for line in done.stdout.splitlines()]


def points(place: Path, fields: str = FIELDS) -> list[tuple[Any, ...]]:
    with Store(place, Settings(engine="sqlite", background=False)) as store:
        rows = store.sql(
            f"SELECT {fields} FROM time_series_data ORDER BY sensor_id, metric_name, timestamp_us"
        )
    return [tuple(row.values()) for row in rows]


def test_a_hub_of_20_stores_has_exact_totals(
    tmp_path: Path, postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_PASSWORD", PASSWORD)
    options = {"user": "admin", "password": "env:HUB_PASSWORD", "schema": "killed"}
    places = [tmp_path / f"site-{site}" for site in range(SITES)]
    chance = random.Random(20)
    with ThreadPoolExecutor(4) as pool:
        lives = [
            pool.submit(
                lived, place, postgresql.url, options, f"{place.name} {life}", chance.uniform(0.05, 1)
            )
            for life in range(3)
            for place in places
        ]
        crashes = 0
        while not all(life.done() for life in lives):
            time.sleep(5)
            postgresql.stop(signal.SIGQUIT)  # as in a crash, with batches on their way
            postgresql.start()
            crashes += 1
        for life in lives:
            life.result()
        assert {each.result() for each in [pool.submit(finished, p, postgresql.url) for p in places]} == {
            "idle"
        }
    totals = {}
    for place in places:
        with Store(place, Settings(engine="sqlite", background=False)) as store:
            assert reconcile(store, "hub").missing == 0
            store_id = store.status().store_id
        found = postgresql.ask(
            f"SELECT {FIELDS.replace('metadata', 'metadata::text')}, seq FROM killed.points WHERE store_id = %s "
            "ORDER BY sensor_id, metric_name, timestamp_us",
            store_id,
        )
        assert found == points(place, f"{FIELDS}, seq")
        assert len(found) > 100
        totals[store_id] = len(found)
    print(
        f"{SITES} stores, {len(lives)} kills, {crashes} crashes of the server, {sum(totals.values()):,} points"
    )
    by_store = read_by_psql(postgresql, "SELECT store_id, count(*) FROM killed.points GROUP BY 1")
    assert {UUID(store_id).hex: int(count) for store_id, count in by_store} == totals


def test_a_receiving_store_equals_the_site_though_both_are_killed(tmp_path: Path) -> None:
    site, there = tmp_path / "site", tmp_path / "there"
    port = free_port()
    url = f"http+holdfast://127.0.0.1:{port}"
    chance = random.Random(21)
    with ThreadPoolExecutor(1) as pool:
        lives = [pool.submit(lived, site, url, {}, str(life), chance.uniform(0.3, 2)) for life in range(8)]
        while not all(life.done() for life in lives):
            with killed("receive", str(there), str(port)):
                time.sleep(chance.uniform(0.2, 2))
        for life in lives:
            life.result()
    with killed("receive", str(there), str(port)):
        assert finished(site, url) == "idle"
        with Store(site, Settings(engine="sqlite", background=False)) as store:
            assert reconcile(store, "hub").missing == 0
    expected = points(site)
    assert len(expected) > 1_000
    assert points(there) == expected


def test_an_import_of_a_folder_equals_the_site_that_was_killed(tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "stick"
    folder.mkdir()
    (folder / "holdfast-folder.json").touch()
    chance = random.Random(22)
    for life in range(8):
        lived(site, folder.as_uri(), {}, str(life), chance.uniform(0.1, 1))
    assert finished(site, folder.as_uri()) == "idle"
    with Store(tmp_path / "there", Settings(engine="sqlite", background=False)) as store:
        store.import_parquet(folder, on_conflict="overwrite")
    expected = points(site)
    assert len(expected) > 1_000
    assert points(tmp_path / "there") == expected
