"""Exports: the content of files and folders on both engines, and what an error or a kill leaves."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas
import polars
import pyarrow.parquet as pq
import pytest

from repo import InvalidFile, InvalidQuery, Store
from repo.processes.lease import read_holder
from repo.transfer import exporter
from tests.conftest import OpenStore, RunPython

pytestmark = [pytest.mark.shared_stores, pytest.mark.slow_on("sqlite")]  # DuckDB writes all files

DAY_S = 86_400
BEGIN_S = 1_714_521_600
IDENTITY = itemgetter("sensor_id", "metric_name", "timestamp")


class Stopped(Exception):
    """An error that a test raises in the middle of an export."""


def fill(store: Store, days: int = 2) -> list[dict[str, Any]]:
    """Write points of every sort on several days, and return all of them."""
    rows: list[Any] = [
        (f"s{n % 3}", "temperature", BEGIN_S + day * DAY_S + n * 600.000001, n / 4)
        for day in range(days)
        for n in range(100)
    ]
    rows += [
        ("s0", "state", BEGIN_S, "OPEN", 50, {"by": "Grüße", "n": [1, None]}),
        ("s0", "state", BEGIN_S + 1, None),
        ("s9", "odd", BEGIN_S, float("-inf")),
        ("s9", "odd", BEGIN_S + 1e-6, None, -5, {}),
        ("s9", "odd", -1.5, 1e-300),
    ]
    store.points.insert_many(rows)
    return points_of(store)


def points_of(store: Store) -> list[dict[str, Any]]:
    """Return all points in order of series and time, like a file."""
    points = store.points.range(None, None).all()
    return sorted(points, key=lambda point: (point["sensor_id"], point["metric_name"], point["timestamp_us"]))


def rows_of(*files: Path) -> list[dict[str, Any]]:
    """Return the content of files, read by pyarrow, as points."""
    found = []
    for file in files:
        for row in pq.read_table(file, partitioning=None).to_pylist():
            text = row.pop("value_text")
            row["value"] = row["value"] if text is None else text
            row["metadata"] = None if row["metadata"] is None else json.loads(row["metadata"])
            del row["seq"]
            found.append(row)
    return found


def without_us(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if name != "timestamp_us"} for point in points]


@pytest.mark.slow_on  # on none
def test_a_file_holds_every_point_as_it_is_stored(store: Store, tmp_path: Path) -> None:
    points = fill(store)
    done = store.export_parquet(tmp_path / "all.parquet")
    assert rows_of(tmp_path / "all.parquet") == without_us(points)
    assert (done.points, done.files, done.path) == (len(points), 1, tmp_path / "all.parquet")
    assert (done.first_us, done.last_us) == (
        min(point["timestamp_us"] for point in points),
        max(point["timestamp_us"] for point in points),
    )
    assert done.bytes == (tmp_path / "all.parquet").stat().st_size


def test_a_file_has_the_documented_columns_and_metadata(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.export_parquet(tmp_path / "all.parquet")
    schema = pq.read_schema(tmp_path / "all.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "sensor_id": "string",
        "metric_name": "string",
        "timestamp": "timestamp[us, tz=UTC]",
        "value": "double",
        "value_text": "string",
        "quality": "int32",
        "metadata": "string",
        "seq": "int64",
    }
    assert json.loads(schema.metadata[b"holdfast"]) == {"format": 1, "store": store.status().store_id}


def test_other_programs_read_equal_sums(store: Store, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    points = fill(store)
    file = tmp_path / "all.parquet"
    store.export_parquet(file, metric_name="temperature")
    expected = sum(point["value"] for point in points if point["metric_name"] == "temperature")
    assert pandas.read_parquet(file)["value"].sum() == expected
    assert polars.read_parquet(file)["value"].sum() == expected
    [(in_duckdb,)] = (
        duckdb.connect().execute("SELECT sum(value) FROM read_parquet(?)", [str(file)]).fetchall()
    )
    assert in_duckdb == expected


@pytest.mark.fresh_stores
def test_sha256sum_checks_the_sum_next_to_a_file(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.export_parquet(tmp_path / "all.parquet")
    subprocess.run(["sha256sum", "--check", "--strict", "all.parquet.sha256"], cwd=tmp_path, check=True)
    assert sorted(os.listdir(tmp_path)) == ["all.parquet", "all.parquet.sha256", "store"]


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("name", ["a\\b\nc.parquet", os.fsdecode(b"\xff.parquet")])
def test_sha256sum_checks_files_of_odd_names_too(store: Store, tmp_path: Path, name: str) -> None:
    fill(store)
    if sys.platform == "darwin" and not name.isprintable():
        pytest.skip("no such names there")
    store.export_parquet(tmp_path / name)
    subprocess.run(["sha256sum", "--check", "--strict", f"{name}.sha256"], cwd=tmp_path, check=True)
    assert store.import_parquet(tmp_path / name).verified == 1


def test_names_and_times_select_as_in_a_range(store: Store, tmp_path: Path) -> None:
    fill(store)
    start, end = BEGIN_S + DAY_S, BEGIN_S + 2 * DAY_S
    store.export_parquet(tmp_path / "some.parquet", sensor_id="s[12]", start=start, end=end)
    expected = store.points.range("s[12]", None, start, end).all()
    expected.sort(key=lambda point: (point["sensor_id"], point["timestamp_us"]))
    assert expected
    assert rows_of(tmp_path / "some.parquet") == without_us(expected)


def test_nothing_selected_is_an_empty_file(store: Store, tmp_path: Path) -> None:
    assert store.export_parquet(tmp_path / "none.parquet").points == 0
    fill(store)
    done = store.export_parquet(tmp_path / "none.parquet", sensor_id="nobody")
    assert (done.points, done.first_us, done.last_seq) == (0, None, None)
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


@pytest.mark.fresh_stores
def test_a_folder_has_one_file_per_day_and_a_manifest_with_checksums(store: Store, tmp_path: Path) -> None:
    points = fill(store, days=3)
    done = store.export_parquet(tmp_path / "bundle", partition="day")
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    files = [tmp_path / "bundle" / file["path"] for file in manifest["files"]]
    home = f"store={store.status().store_id}"
    assert [file["path"] for file in manifest["files"]] == [
        f"{home}/date={day}/points.parquet"
        for day in ("1969-12-31", "2024-05-01", "2024-05-02", "2024-05-03")
    ]
    for file, reported in zip(files, manifest["files"], strict=True):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == reported["sha256"]
        assert (pq.read_metadata(file).num_rows, file.stat().st_size) == (
            reported["points"],
            reported["bytes"],
        )
    assert sorted(rows_of(*files), key=IDENTITY) == without_us(points)
    assert (done.points, done.files, manifest["points"]) == (len(points), 4, len(points))
    assert (manifest["first_seq"], manifest["last_seq"]) == (1, store.sinks.last_seq())
    assert sorted(os.listdir(tmp_path / "bundle")) == sorted(["manifest.json", home])


@pytest.mark.slow_on("sqlite")
def test_a_finished_or_foreign_folder_is_left_alone(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.export_parquet(tmp_path / "bundle", partition="day")
    before = (tmp_path / "bundle/manifest.json").read_bytes()
    with pytest.raises(InvalidFile, match="finished bundle"):
        store.export_parquet(tmp_path / "bundle", partition="day")
    assert (tmp_path / "bundle/manifest.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    with pytest.raises(InvalidFile, match="not empty"):
        store.export_parquet(tmp_path / "mine", partition="day")
    assert os.listdir(tmp_path / "mine") == ["letter.txt"]


def stop_after(points: int) -> Any:
    def reported(done: int, _total: int) -> None:
        if done >= points:
            raise Stopped

    return reported


@pytest.mark.slow_on("sqlite")
def test_an_interrupted_folder_resumes(store: Store, tmp_path: Path) -> None:
    points = fill(store)
    with pytest.raises(Stopped):
        store.export_parquet(tmp_path / "bundle", partition="day", progress=stop_after(150))
    assert not (tmp_path / "bundle/manifest.json").exists()
    standing = {file: file.stat().st_ino for file in (tmp_path / "bundle").rglob("*.parquet")}
    with pytest.raises(InvalidFile, match="something else"):
        store.export_parquet(tmp_path / "bundle", partition="day", sensor_id="s1")
    done = store.export_parquet(tmp_path / "bundle", partition="day")
    assert 0 < done.resumed == len(standing) < done.files
    assert all(file.stat().st_ino == inode for file, inode in standing.items())
    assert done.points == len(points)
    assert not [file for file in (tmp_path / "bundle").rglob("*") if file.name.startswith(".")]


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("change", ["late", "corrected", "deleted"])
def test_a_day_that_changed_since_the_interruption_is_exported_again(
    open_store: OpenStore, tmp_path: Path, change: str
) -> None:
    store, target = open_store("source"), open_store("target")
    fill(store)
    with pytest.raises(Stopped):
        store.export_parquet(tmp_path / "days", partition="day", progress=stop_after(200))
    if change == "deleted":
        store.points.delete("s1", "temperature", BEGIN_S, BEGIN_S + 3600)
    else:
        moment = BEGIN_S + (600.000001 if change == "corrected" else 7.0)
        store.points.insert("s1", "temperature", 1234.5, timestamp=moment)
    done = store.export_parquet(tmp_path / "days", partition="day")
    assert 0 < done.resumed < done.files
    assert target.import_parquet(tmp_path / "days").verified == done.files
    assert points_of(target) == points_of(store)


@pytest.mark.slow_on("sqlite")
def test_a_line_truncated_by_a_kill_is_ignored(store: Store, tmp_path: Path) -> None:
    points = fill(store)
    with pytest.raises(Stopped):
        store.export_parquet(tmp_path / "bundle", partition="day", progress=stop_after(150))
    draft = tmp_path / "bundle/export.ndjson"
    draft.write_bytes(draft.read_bytes()[:-20])
    assert store.export_parquet(tmp_path / "bundle", partition="day").points == len(points)


@pytest.mark.fresh_stores
def test_an_error_leaves_an_existing_file_unchanged(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.export_parquet(tmp_path / "all.parquet")
    before = (tmp_path / "all.parquet").read_bytes()
    store.points.insert("s1", "temperature", 5)
    with pytest.raises(Stopped):
        store.export_parquet(tmp_path / "all.parquet", progress=stop_after(1))
    assert (tmp_path / "all.parquet").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["all.parquet", "all.parquet.sha256", "store"]


ODD_NAMES = [
    "a'b.parquet",
    "[1].parquet",
    "*.parquet",
    '"; DROP TABLE x --.parquet',
    "ü?{a,b}.parquet",
    "a\nb",
]


@pytest.mark.fresh_stores
@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_never_a_pattern_or_sql(store: Store, tmp_path: Path, name: str) -> None:
    points = fill(store, days=1)
    (tmp_path / "out").mkdir()
    store.export_parquet(tmp_path / "out" / ".." / name)
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"{name}.sha256", "out", "store"])
    with (tmp_path / name).open("rb") as stream:
        assert pq.read_table(stream).num_rows == len(points)


def test_a_symbolic_link_is_replaced_and_its_target_stays(store: Store, tmp_path: Path) -> None:
    fill(store, days=1)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out.parquet").symlink_to(tmp_path / "precious")
    store.export_parquet(tmp_path / "out.parquet")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "out.parquet").is_symlink()


def test_a_path_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    fill(store, days=1)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidFile, match=r"file.*(File exists|Not a directory)"):
        store.export_parquet(tmp_path / "file" / "a.parquet")
    assert store.export_parquet(tmp_path / "new" / "folder" / "a.parquet").points > 0
    with pytest.raises(InvalidFile, match="is a folder"):
        store.export_parquet(tmp_path)
    with pytest.raises(InvalidQuery, match="partition"):
        store.export_parquet(tmp_path / "b", partition="hour")  # type: ignore[arg-type]
    with pytest.raises(InvalidQuery, match="compression"):
        store.export_parquet(tmp_path / "b", compression="'; --")  # type: ignore[arg-type]


def test_the_columns_are_free_for_others_between_pages(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repo.transfer.exporter.ARROW_ROWS", 50)
    monkeypatch.setattr("repo.transfer.exporter.PLAIN_ROWS", 50)
    store = open_store(lease_timeout_s=0.5)
    points = fill(store)
    calls = []

    def use_it(done: int, _total: int) -> None:
        calls.append(done)
        store.points.insert("other", "m", done, timestamp=BEGIN_S + 10 * DAY_S + len(calls))
        store.flush()

    done = store.export_parquet(tmp_path / "all.parquet", progress=use_it, end=BEGIN_S + 9 * DAY_S)
    assert len(calls) > len(points) / 50
    assert done.points == len(points)
    found = sorted(rows_of(tmp_path / "all.parquet"), key=IDENTITY)
    assert found == without_us(points)


def test_a_series_created_during_an_export_does_not_disturb_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in ("ARROW_ROWS", "PLAIN_ROWS"):
        monkeypatch.setattr(exporter, rows, 100)
    points = fill(store)

    def come_up(done: int, _total: int) -> None:
        store.points.insert(f"late-{done}", "m", done, timestamp=BEGIN_S + 2 * DAY_S)

    done = store.export_parquet(tmp_path / "all.parquet", progress=come_up)
    assert done.points == len(points)
    assert sorted(rows_of(tmp_path / "all.parquet"), key=IDENTITY) == without_us(points)


@pytest.mark.duckdb
@pytest.mark.parametrize("engine", ["duckdb"])
def test_points_with_long_texts_are_read_fewer_at_a_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "ARROW_ROWS", 1_000)
    store.points.insert_many([("s", "m", n, n, 100, {"why": "x" * 4_000}) for n in range(200)])
    reported: list[int] = []
    store.export_parquet(tmp_path / "a.parquet", progress=lambda done, _total: reported.append(done))
    assert reported[-1] == 200
    assert max(after - before for before, after in pairwise(reported)) <= 10


@pytest.mark.duckdb
def test_values_that_repeat_have_a_dictionary_and_times_have_none(store: Store, tmp_path: Path) -> None:
    store.points.insert_many([("s", "m", 60 * n, n // 3) for n in range(3_000)])
    store.export_parquet(tmp_path / "a.parquet")
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    encodings = {group.column(n).path_in_schema: group.column(n).encodings for n in range(8)}
    assert "RLE_DICTIONARY" in encodings["value"]
    assert "DELTA_BINARY_PACKED" in encodings["timestamp"]


READ = """
import sys
from repo import Settings, Store
with Store(sys.argv[1], Settings(background=False, lease_timeout_s=300)) as store:
    print(len(store.points.range(None, None).all()))
"""


@pytest.mark.closes_columns
def test_the_columns_stay_open_between_pages_until_another_process_waits(
    open_store: OpenStore, tmp_path: Path, run_python: RunPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in ("ARROW_ROWS", "PLAIN_ROWS"):
        monkeypatch.setattr(exporter, rows, 50)
    store = open_store(lease_idle_s=30.0)
    points = fill(store)
    since: list[int | None] = []
    others: list[str] = []

    def look(done: int, _total: int) -> None:
        holder = read_holder(store.path)
        since.append(None if holder is None or holder.pid != os.getpid() else holder.since_us)
        if done and not others:
            others.append(run_python(READ, store.path).stdout)

    store.export_parquet(tmp_path / "a.parquet", progress=look)
    assert others == [f"{len(points)}\n"]
    assert len(since) > 4
    assert None not in since
    store.export_parquet(tmp_path / "b.parquet", progress=look)
    assert read_holder(store.path) is None


EXPORT = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
from repo import Settings, Store
with Store(sys.argv[1], Settings(background=False)) as store:
    print(store.export_parquet(sys.argv[2]).points)
    print(store.export_parquet(sys.argv[3], partition="day").points)
"""


@pytest.mark.duckdb
def test_no_optional_package_is_needed(store: Store, tmp_path: Path, run_python: RunPython) -> None:
    points = fill(store)
    store.close()
    script = EXPORT.format(hidden=("pyarrow", "numpy", "pandas", "polars", "pytz"))
    done = run_python(script, store.path, tmp_path / "a.parquet", tmp_path / "b")
    assert done.stdout.split() == [str(len(points))] * 2, done.stderr
    assert rows_of(tmp_path / "a.parquet") == without_us(points)


@pytest.mark.slow_on  # on none
@pytest.mark.parametrize("engine", ["sqlite"])
def test_without_duckdb_pyarrow_writes_the_same_file(
    store: Store, tmp_path: Path, run_without_duckdb: RunPython
) -> None:
    points = fill(store)
    store.export_parquet(tmp_path / "by_duckdb.parquet")
    store.close()
    paths = (store.path, tmp_path / "a.parquet", tmp_path / "b")
    done = run_without_duckdb(EXPORT.format(hidden=("numpy", "pandas")), *paths)
    assert done.stdout.split() == [str(len(points))] * 2, done.stderr
    one, other = (pq.read_table(tmp_path / name) for name in ("a.parquet", "by_duckdb.parquet"))
    assert one.equals(other)
    assert one.schema.metadata[b"holdfast"] == other.schema.metadata[b"holdfast"]


@pytest.mark.slow_on  # on none
@pytest.mark.parametrize("engine", ["sqlite"])
def test_without_both_the_extra_is_named(store: Store, tmp_path: Path, run_without_duckdb: RunPython) -> None:
    fill(store, days=1)
    store.close()
    paths = (store.path, tmp_path / "a.parquet", tmp_path / "b")
    done = run_without_duckdb(EXPORT.format(hidden=("pyarrow",)), *paths)
    assert "MissingExtra" in done.stderr
    assert "[arrow]'" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["store"]


EXPORT_AND_WAIT = """
import sys
from repo import Settings, Store
def pause(done, total):
    if done:
        print("began", flush=True)
        sys.stdin.readline()
with Store(sys.argv[1], Settings(background=False)) as store:
    store.export_parquet(sys.argv[2], progress=pause)
"""


@pytest.mark.slow_on("sqlite")
def test_two_processes_do_not_write_one_file_at_once(store: Store, tmp_path: Path, spawn: Any) -> None:
    points = fill(store, days=1)
    store.close()
    file = tmp_path / "all.parquet"
    first = spawn(EXPORT_AND_WAIT, store.path, file)
    assert first.stdout.readline() == "began\n"
    second = spawn(EXPORT_AND_WAIT, store.path, file)
    _, reported = second.communicate("\n", timeout=300)
    assert "StoreBusy" in reported
    first.communicate("\n", timeout=300)
    assert first.returncode == 0
    assert pq.read_table(file).num_rows == len(points)


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("ending", ["", "-wal", ".wal", ".parquet"])
def test_the_files_of_the_store_are_never_replaced(store: Store, tmp_path: Path, ending: str) -> None:
    known = fill(store)
    link = tmp_path / "link"
    link.symlink_to(store.path, target_is_directory=True)
    for own in ("offline_buffer.db", "timeseries.duckdb", "timeseries.sqlite", "lease.lock", "holdfast.toml"):
        for folder in (store.path, link):
            with pytest.raises(InvalidFile, match="store's own files"):
                store.export_parquet(folder / f"{own}{ending}")
    with pytest.raises(InvalidFile, match="store's own files"):
        store.export_ndjson(store.path / "backups" / "1" / "points.ndjson.gz")
    assert store.export_parquet(store.path / "points.parquet").points == len(known)
    assert points_of(store) == known


def test_a_pipe_is_not_replaced_nor_a_link_to_one(store: Store, tmp_path: Path) -> None:
    fill(store)
    pipe, link = tmp_path / "pipe.parquet", tmp_path / "link.parquet"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(InvalidFile, match="not a regular file"):
            store.export_parquet(path)
    assert pipe.is_fifo()
    assert link.is_symlink()


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("text", ["x\n", "[1]\n{}\n", '{"a": ', "\xff\n"])
def test_a_foreign_draft_is_reported_and_kept(store: Store, tmp_path: Path, text: str) -> None:
    fill(store)
    folder = tmp_path / "days"
    folder.mkdir()
    (folder / "export.ndjson").write_text(text, encoding="latin-1")
    if text.endswith("\n"):
        with pytest.raises(InvalidFile, match="days"):
            store.export_parquet(folder, partition="day")
        assert (folder / "export.ndjson").read_text(encoding="latin-1") == text
    else:  # as a kill leaves the first line
        assert store.export_parquet(folder, partition="day").files > 0


@pytest.mark.slow_on("sqlite")
def test_lines_of_a_draft_that_are_out_of_order_are_reported(store: Store, tmp_path: Path) -> None:
    fill(store)
    folder = tmp_path / "days"
    store.export_parquet(folder, partition="day")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    request = {name: manifest[name] for name in ("store", "selection", "compression")}
    for entry in ({}, 5, {"path": 5}, {"path": "\ud800"}, {"path": manifest["files"][0]["path"]}):
        (folder / "export.ndjson").write_text(f"{json.dumps(request)}\n{json.dumps(entry)}\n")
        with pytest.raises(InvalidFile, match="days"):
            store.export_parquet(folder, partition="day")
