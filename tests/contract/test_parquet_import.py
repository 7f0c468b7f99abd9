"""Imports: files, folders, bundles and legacy exports are read completely, once, on both engines."""

from __future__ import annotations

import json
import logging
import os
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repo import InvalidFile, InvalidQuery, Store
from repo.formats.files.parquet_packages import SharedInstance
from repo.transfer import importer
from tests.conftest import HAS_DUCKDB, OpenStore, RunPython
from tests.contract.parquet_files import BEGIN_US, stored, write
from tests.contract.test_parquet_export import BEGIN_S, DAY_S, Stopped, fill, points_of, stop_after

pytestmark = pytest.mark.shared_stores


@pytest.mark.parametrize("partition", [None, pytest.param("day", marks=pytest.mark.slow_on("sqlite"))])
def test_an_export_can_be_imported_again(open_store: OpenStore, tmp_path: Path, partition: Any) -> None:
    source, target = open_store("source"), open_store("target")
    points = fill(source)
    source.export_parquet(tmp_path / "out", partition=partition)
    done = target.import_parquet(tmp_path / "out")
    assert points_of(target) == points
    assert (done.read, done.stored, done.present, done.refused) == (len(points), len(points), 0, 0)
    assert done.verified == done.files == (3 if partition else 1)


@pytest.mark.slow_on("sqlite")
def test_importing_again_changes_nothing_and_sends_nothing_again(
    open_store: OpenStore, tmp_path: Path
) -> None:
    source, target = open_store("source"), open_store("target")
    points = fill(source)
    source.export_parquet(tmp_path / "out.parquet")
    target.import_parquet(tmp_path / "out.parquet")
    before, end = target.points.after(0), target.sinks.last_seq()
    done = target.import_parquet(tmp_path / "out.parquet")
    assert (done.stored, done.present) == (0, len(points))
    assert target.sinks.last_seq() == end
    target.import_parquet(tmp_path / "out.parquet", on_conflict="overwrite")
    assert target.points.after(0) == before
    assert points_of(target) == points


@pytest.mark.slow_on("duckdb")
def test_few_files_are_opened_once_in_one_instance_and_a_change_after_their_check_is_noticed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = write(tmp_path / "1.parquet"), write(tmp_path / "2.parquet", sensor_id=["t", "t"])
    opened: list[Any] = []
    instances: list[Any] = []
    open_, connect = importer._opened, SharedInstance.connection

    def counted(*given: Any) -> Any:
        opened.append(given)
        return open_(*given)

    def connected(instance: SharedInstance) -> Any:
        if instance not in instances:
            instances.append(instance)
        return connect(instance)

    monkeypatch.setattr(importer, "_opened", counted)
    monkeypatch.setattr(SharedInstance, "connection", connected)
    assert store.import_parquet([one, two]).stored == 4
    assert (len(opened), len(instances)) == (2, 1 if HAS_DUCKDB else 0)
    with monkeypatch.context() as patch:
        patch.setattr(importer, "_MOST_TOGETHER", 1)
        assert store.import_parquet([one, two], on_conflict="overwrite").stored == 4
    assert (len(opened), len(instances)) == (6, 5 if HAS_DUCKDB else 0)
    check = importer._validate

    def check_and_change(*given: Any) -> Any:
        checked = check(*given)
        os.utime(two, ns=(0, 0))
        return checked

    monkeypatch.setattr(importer, "_validate", check_and_change)
    with pytest.raises(InvalidFile, match="changed during the import"):
        store.import_parquet(two)


@pytest.mark.slow_on("sqlite")
def test_a_correction_is_kept_unless_the_file_is_to_overwrite_it(store: Store, tmp_path: Path) -> None:
    points = fill(store, days=1)
    store.export_parquet(tmp_path / "old.parquet")
    store.points.insert("s1", "temperature", 999, timestamp=points[50]["timestamp"])
    store.points.delete("s9")
    corrected = points_of(store)
    done = store.import_parquet(tmp_path / "old.parquet")
    assert done.stored == 3
    assert [p for p in points_of(store) if p["sensor_id"] != "s9"] == corrected
    store.import_parquet(tmp_path / "old.parquet", on_conflict="overwrite")
    assert points_of(store) == points


@pytest.mark.slow_on("sqlite")
def test_a_dry_run_reports_the_same_counts_and_stores_nothing(store: Store, tmp_path: Path) -> None:
    write(
        tmp_path / "a.parquet",
        timestamp_us=[BEGIN_US, BEGIN_US, BEGIN_US + 1, None, 2**62, BEGIN_US + 5],
        value=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    )
    store.points.insert("s", "m", 3.0, timestamp=BEGIN_S + 1e-6)
    end = store.sinks.last_seq()
    reported = store.import_parquet(tmp_path / "a.parquet", dry_run=True)
    assert store.sinks.last_seq() == end
    done = store.import_parquet(tmp_path / "a.parquet")
    assert reported == done
    assert (done.read, done.stored, done.present, done.duplicates, done.nulls, done.refused) == (
        6,
        2,
        1,
        1,
        1,
        1,
    )
    assert "nanoseconds" in " ".join(done.problems)
    assert "without a sensor, a metric or a time" in " ".join(done.problems)
    assert stored(store) == [("s", "m", at, value, 100, None) for at, value in ((0, 2.0), (1, 3.0), (5, 6.0))]


def test_a_legacy_export_can_be_imported(store: Store, tmp_path: Path) -> None:
    """The columns of the legacy table, with its order and types."""
    table = pa.table(
        {
            "timestamp_us": pa.array([BEGIN_US, BEGIN_US + 1], pa.int64()),
            "sensor_id": ["well-1", "well-1"],
            "metric_name": ["pressure", "pressure"],
            "value": [2500.5, 2501.0],
            "quality": pa.array([100, None], pa.int32()),
            "metadata": ['{"record_id": "R-1",  "a": 1}', None],
        }
    )
    pq.write_table(table, tmp_path / "legacy.parquet")
    assert store.import_parquet(tmp_path / "legacy.parquet").stored == 2
    assert stored(store) == [
        ("well-1", "pressure", 0, 2500.5, 100, {"record_id": "R-1", "a": 1}),
        ("well-1", "pressure", 1, 2501.0, 100, None),
    ]


def test_columns_are_matched_by_name_and_others_are_ignored_with_a_warning(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.parquet", colour=["red", "blue"], **{'"; DROP TABLE x': [[1], [2]]})
    with caplog.at_level(logging.WARNING, "holdfast"):
        store.import_parquet(tmp_path / "a.parquet")
    assert [message for message in caplog.messages if "'colour'" in message and "a.parquet" in message]
    assert len(stored(store)) == 2


def test_a_mapping_assigns_columns_to_fields(store: Store, tmp_path: Path) -> None:
    table = pa.table(
        {
            'the "tag"': ["a", "b"],
            "what": ["x", "y"],
            "when": pa.array([BEGIN_S * 1_000, BEGIN_S * 1_000 + 1], pa.timestamp("ms", "Europe/Berlin")),
            "reading": pa.array([1, 2], pa.int16()),
        }
    )
    pq.write_table(table, tmp_path / "other.parquet")
    columns = {"sensor_id": 'the "tag"', "metric_name": "what", "timestamp": "when", "value": "reading"}
    store.import_parquet(tmp_path / "other.parquet", columns=columns)
    assert stored(store) == [("a", "x", 0, 1.0, 100, None), ("b", "y", 1000, 2.0, 100, None)]


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([BEGIN_US * 1000 - 1, None], pa.timestamp("ns", "UTC")), -1),
        (pa.array([BEGIN_S, None], pa.timestamp("s", "UTC")), 0),
        (pa.array([BEGIN_S + 0.25, float("nan")], pa.float64()), 250_000),
        (pa.array([BEGIN_S + 1, None], pa.uint64()), 1_000_000),
    ],
    ids=["ns", "s", "float seconds", "whole seconds"],
)
def test_times_of_other_writers_are_understood(
    store: Store, tmp_path: Path, column: pa.Array, expected: int
) -> None:
    done = store.import_parquet(write(tmp_path / "a.parquet", timestamp=column))
    assert [row[2] for row in stored(store)] == [expected]
    assert done.nulls == 1


BAD_COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "no sensor": ({"sensor_id": None}, "no column 'sensor_id'"),
    "no time": ({"timestamp_us": None}, "no column 'timestamp'"),
    "no value": ({"value": None}, "no column 'value'"),
    "numbers as names": ({"sensor_id": [1, 2]}, "sensor_id must be text"),
    "a time of day": ({"timestamp": pa.array([1, 2], pa.time64("us"))}, "times without a zone"),
    "times as text": ({"timestamp_us": ["1", "2"]}, "timestamp_us must be integers"),
    "quality as text": ({"quality": ["1", "2"]}, "quality must be integers"),
    "lists": ({"value": [[1.0], [2.0]]}, "value must be numbers"),
    "no text": ({"sensor_id": pa.array([b"a", b"\xff"], pa.binary())}, "cannot be read as Parquet"),
    "metadata as a list": ({"metadata": [[1], [2]]}, "metadata must be text"),
}


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_a_missing_or_wrong_column_is_an_error_before_anything_changes(
    unwritten: Store, tmp_path: Path, case: str
) -> None:
    columns, reported = BAD_COLUMNS[case]
    good = write(tmp_path / "good.parquet")
    bad = write(tmp_path / "bad.parquet", **columns)
    with pytest.raises(InvalidFile, match=rf"bad\.parquet.*{reported}"):
        unwritten.import_parquet([good, bad])
    assert stored(unwritten) == []
    assert unwritten.sinks.last_seq() == 0


def test_choices_that_do_not_exist_are_refused(store: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet")
    with pytest.raises(InvalidQuery, match="on_conflict"):
        store.import_parquet(file, on_conflict="merge")  # type: ignore[arg-type]
    with pytest.raises(InvalidQuery, match="no field 'sensor'"):
        store.import_parquet(file, columns={"sensor": "x"})
    with pytest.raises(InvalidFile, match="no column 'nowhere'"):
        store.import_parquet(file, columns={"sensor_id": "nowhere"})


def test_readings_of_the_other_kind_are_skipped(store: Store, tmp_path: Path) -> None:
    store.points.insert("s", "m", 1.0, timestamp=BEGIN_S)
    write(
        tmp_path / "a.parquet",
        sensor_id=["s", "s", "new", "new"],
        value=[None, 5.0, 6.0, None],
        value_text=["OPEN", None, None, "SHUT"],
    )
    done = store.import_parquet(tmp_path / "a.parquet")
    assert (done.stored, done.refused) == (2, 2)
    assert [row[3] for row in stored(store)] == [6.0, 1.0, 5.0]
    assert "holds numbers only" in " ".join(done.problems)


def test_the_statistics_of_a_file_are_not_trusted(store: Store, tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", timestamp_us=[BEGIN_US, 2**62], value_text=[None, "a\x00"], value=None
    )
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    largest, smallest = struct.pack("<q", 2**62), struct.pack("<q", BEGIN_US + 1)
    assert largest in content[footer:]
    path.write_bytes(content[:footer] + content[footer:].replace(largest, smallest))
    done = store.import_parquet(path)
    assert (done.stored, done.refused) == (1, 1)


def test_a_skipped_reading_does_not_replace_its_duplicate(store: Store, tmp_path: Path) -> None:
    write(
        tmp_path / "a.parquet",
        timestamp_us=[BEGIN_US, BEGIN_US, BEGIN_US + 1],
        value=[5.0, None, 6.0],
        value_text=[None, "OPEN", None],
    )
    store.points.insert("s", "m", 1.0, timestamp=BEGIN_S - 1)
    done = store.import_parquet(tmp_path / "a.parquet")
    assert (done.stored, done.refused, done.duplicates) == (2, 1, 0)
    assert [row[3] for row in stored(store)] == [1.0, 5.0, 6.0]


@pytest.mark.slow_on("sqlite")
def test_a_folder_is_read_in_order_and_hidden_files_are_not(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "in[1]" / "a'b"
    folder.mkdir(parents=True)
    write(folder / "1.parquet")
    write(folder / "2.pq", value=[7.0, 8.0])
    write(folder / ".3.parquet.part", value=[9.0, 9.0])
    (folder / "readme.txt").write_text("no points")
    assert store.import_parquet(tmp_path / "in[1]", on_conflict="overwrite").files == 2
    assert [row[3] for row in stored(store)] == [7.0, 8.0]


@pytest.mark.slow_on("sqlite")
def test_an_interrupted_bundle_gives_its_complete_files(open_store: OpenStore, tmp_path: Path) -> None:
    source, target = open_store("source"), open_store("target")
    fill(source)
    with pytest.raises(Stopped):
        source.export_parquet(tmp_path / "bundle", partition="day", progress=stop_after(150))
    done = target.import_parquet(tmp_path / "bundle")
    assert done.files == done.verified == len(list((tmp_path / "bundle").rglob("*.parquet"))) > 0
    assert done.stored == len(points_of(target)) > 0


@pytest.mark.slow_on("sqlite")
def test_links_in_a_folder_are_reported_and_not_followed(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "in").mkdir()
    outside = write(tmp_path / "outside" / "a.parquet")
    write(tmp_path / "in" / "b.parquet", sensor_id=["b", "b"])
    (tmp_path / "in" / "days").symlink_to(tmp_path / "outside")
    with caplog.at_level(logging.WARNING, "holdfast"):
        assert store.import_parquet(tmp_path / "in").files == 1
    assert "in/days: skipped, because it is a symbolic link" in caplog.text
    (tmp_path / "in" / "c.parquet").symlink_to(outside)
    with pytest.raises(InvalidFile, match=r"in/c\.parquet is a symbolic link, or below one"):
        store.import_parquet(tmp_path / "in")


def test_a_row_with_a_number_and_a_text_counts_as_a_reading(store: Store, tmp_path: Path) -> None:
    both = write(tmp_path / "a.parquet", value=[1.0, 2.0, None], value_text=["x", None, None])
    done = store.import_parquet(both)
    assert (done.read, done.stored, done.refused, done.no_reading) == (3, 2, 1, 1)


@pytest.mark.slow_on("sqlite")
def test_a_dry_run_reports_that_files_overlap(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = write(tmp_path / "1.parquet"), write(tmp_path / "2.parquet", value=[8.0, 9.0])
    apart = write(tmp_path / "3.parquet", sensor_id=["t", "t"])
    with caplog.at_level(logging.WARNING, "holdfast"):
        store.import_parquet([one, apart], dry_run=True)
        assert caplog.text == ""
        store.import_parquet([one, two, two], dry_run=True)
    assert caplog.text.count("would be stored once") == 1
    assert store.import_parquet([one, two, two]).stored == 2


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("factor", [1_000, 1_000_000])
def test_numbers_that_are_not_seconds_are_reported_with_advice(
    store: Store, tmp_path: Path, factor: int, kind: type[int] | type[float]
) -> None:
    times = [kind(BEGIN_S * factor), kind((BEGIN_S + 1) * factor)]
    done = store.import_parquet(write(tmp_path / "a.parquet", timestamp=times))
    assert (done.refused, len(done.problems)) == (2, 1)
    assert "'timestamp' are read as seconds" in done.problems[0]
    assert "time_format (--time-format) is unix, unix_ms or unix_us" in done.problems[0]
    form: Any = {1_000: "unix_ms", 1_000_000: "unix_us"}[factor]
    again = store.import_parquet(tmp_path / "a.parquet", time_format=form)
    assert (again.stored, stored(store)[1][2]) == (2, 1_000_000)


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize(
    ("kind", "form", "us"),
    [
        (kind, *form)
        for kinds, form in (
            ((pa.int64(), pa.uint32(), pa.float64(), pa.float32()), ("unix", 1_000_000)),
            ((pa.int64(), pa.float32()), ("unix_ms", 1_000)),
            ((pa.uint32(), pa.float64()), ("unix_us", 1)),
        )
        for kind in kinds
    ],
)
def test_numbers_have_the_unit_of_the_time_format(
    store: Store, tmp_path: Path, kind: pa.DataType, form: Any, us: int
) -> None:
    counts = pa.array([-3 if kind != pa.uint32() else 3, 1_500], kind)
    table = pa.table({"sensor_id": ["s", "s"], "metric_name": ["m", "m"], "at": counts, "value": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    done = store.import_parquet(tmp_path / "a.parquet", columns={"timestamp": "at"}, time_format=form)
    assert done.stored == 2
    found = [row["timestamp_us"] for row in store.points.range("s", "m")]
    assert found == [count * us for count in counts.cast(pa.int64()).to_pylist()]


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("reader", ["duckdb", "pyarrow"])
def test_decimals_that_a_float_would_round_are_refused_as_integers_are(
    store: Store, tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "duckdb_is_installed", lambda: reader == "duckdb")
    values = pa.array([2**53 + 1, 2**53, None, -(2**60)]).cast(pa.decimal128(38, 2))
    times = [BEGIN_US + n for n in range(4)]
    file = write(
        tmp_path / "a.parquet",
        sensor_id=["s"] * 4,
        metric_name=["m"] * 4,
        timestamp_us=times,
        timestamp=None,
        value=values,
    )
    done = store.import_parquet(file)
    assert (done.read, done.stored, done.refused, done.no_reading) == (4, 3, 1, 1)
    assert "9007199254740993.00 is an integer that a 64-bit float would round" in done.problems[0]
    assert [row["value"] for row in store.points.range("s", "m")] == [2.0**53, None, -(2.0**60)]


@pytest.mark.slow_on("duckdb")
def test_a_time_format_does_not_affect_typed_times(store: Store, tmp_path: Path) -> None:
    exact = write(tmp_path / "a.parquet", timestamp=None, timestamp_us=[BEGIN_US, BEGIN_US + 1])
    assert store.import_parquet(exact, time_format="unix_ms").stored == 2
    store.export_parquet(tmp_path / "b.parquet")
    assert store.import_parquet(tmp_path / "b.parquet", time_format="unix_us").present == 2
    assert [row["timestamp_us"] for row in store.points.range("s", "m")] == [BEGIN_US, BEGIN_US + 1]
    with pytest.raises(InvalidQuery, match="timestamp_us counts microseconds; with unix_ms map timestamp"):
        store.import_parquet(exact, columns={"timestamp_us": "timestamp_us"}, time_format="unix_ms")
    with pytest.raises(InvalidQuery, match="'unix' or 'unix_ms' or 'unix_us'"):
        store.import_parquet(exact, time_format="iso")  # type: ignore[arg-type]


IMPORT = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
from repo import Settings, Store
with Store(sys.argv[1], Settings(background=False, engine=sys.argv[2])) as store:
    print(store.import_parquet(sys.argv[3], dry_run={dry_run}).stored)
    # Not getrusage: its peak is inherited from the process that started this one.
    [peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(int(peak) // 1024)
"""


WITHOUT_PYARROW = ("pyarrow", "numpy", "pandas", "polars", "pytz")


@pytest.mark.duckdb
@pytest.mark.parametrize(
    ("engine", "hidden"),
    [("duckdb", WITHOUT_PYARROW), ("sqlite", WITHOUT_PYARROW), ("sqlite", ("duckdb",))],
)
def test_one_of_duckdb_and_pyarrow_is_enough(
    open_store: OpenStore,
    engine: str,
    bundle: Path,
    run_python: RunPython,
    run_without_duckdb: RunPython,
    tmp_path: Path,
    hidden: tuple[str, ...],
) -> None:
    run = run_without_duckdb if "duckdb" in hidden else run_python
    done = run(IMPORT.format(hidden=hidden, dry_run=False), tmp_path / "target", engine, bundle)
    assert done.returncode == 0, done.stderr
    source, target = open_store("source"), Store(tmp_path / "target")
    with target:
        assert points_of(target) == points_of(source)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell the peak of memory")
@pytest.mark.parametrize("engine", ["duckdb"])
def test_a_huge_row_group_is_read_in_bounded_memory(
    tmp_path: Path, engine: str, run_python: RunPython
) -> None:
    rows = 18_000
    note = json.dumps({"note": "x" * 12_000}, separators=(",", ":"))
    file = write(tmp_path / "a.parquet", value=[1.0] * rows, metadata=[note] * rows)
    assert pq.read_metadata(file).num_row_groups == 1
    script = IMPORT.format(hidden=("pyarrow", "numpy", "pandas"), dry_run=True)
    done = run_python(script, tmp_path / "store", engine, file, fresh=True)
    assert done.returncode == 0, done.stderr
    stored_rows, peak_mb = map(int, done.stdout.split())
    assert stored_rows == rows
    assert peak_mb < 300, "the 216 MB of metadata were held at once"


@pytest.mark.slow_on("sqlite")
def test_days_before_1970_and_times_between_are_in_their_days(open_store: OpenStore, tmp_path: Path) -> None:
    source, target = open_store("source"), open_store("target")
    source.points.insert_many(
        [("s", "m", at * DAY_S - 1e-6 * off, 1.0) for at in (-2, 0, 3) for off in (0, 1)]
    )
    source.export_parquet(tmp_path / "out", partition="day")
    days = sorted(path.parent.name for path in (tmp_path / "out").rglob("*.parquet"))
    assert days == [
        f"date={day}"
        for day in ("1969-12-29", "1969-12-30", "1969-12-31", "1970-01-01", "1970-01-03", "1970-01-04")
    ]
    target.import_parquet(tmp_path / "out")
    assert points_of(target) == points_of(source)


@pytest.mark.parametrize("reader", ["run_python", "run_without_duckdb"])
def test_nan_is_no_reading_whatever_reads_the_file(
    tmp_path: Path, reader: str, request: pytest.FixtureRequest
) -> None:
    file = write(tmp_path / "a.parquet", value=[1.0, float("nan"), None, float("inf")])
    both = write(tmp_path / "b.parquet", value=[float("nan"), 1.0, None], value_text=["x", "y", None])
    script = (
        "import sys\nfrom repo import Settings, Store\n"
        "with Store(sys.argv[1], Settings(background=False, engine='sqlite')) as store:\n"
        "    print(*(store.import_parquet(file, dry_run=True).no_reading for file in sys.argv[2:]))\n"
    )
    run: RunPython = request.getfixturevalue(reader)
    done = run(script, tmp_path / "target", file, both)
    assert done.stdout.split() == ["2", "1"], done.stderr


def test_columns_of_the_same_name_are_reported_by_pyarrow(
    tmp_path: Path, run_without_duckdb: RunPython
) -> None:
    table = pa.table({"sensor_id": ["s"], "metric_name": ["m"], "timestamp_us": [BEGIN_US], "value": [1.0]})
    pq.write_table(table.append_column("value", pa.array([2.0])), tmp_path / "a.parquet")
    script = (
        "import sys\nfrom repo import InvalidFile, Settings, Store\n"
        "with Store(sys.argv[1], Settings(background=False, engine='sqlite')) as store:\n"
        "    try: store.import_parquet(sys.argv[2])\n"
        "    except InvalidFile as error: print(error)\n"
    )
    done = run_without_duckdb(script, tmp_path / "target", tmp_path / "a.parquet")
    assert "a.parquet has several columns 'value'" in done.stdout, done.stderr


BERLIN = {
    "2026-03-29 01:30": 1,
    "2026-03-29 02:30": None,  # never
    "2026-10-25 02:30": None,  # twice
    "2026-10-25 03:30": 1,
}


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("texts", [True, False])
def test_times_without_a_zone_are_those_of_the_zone_that_is_given(
    store: Store, tmp_path: Path, texts: bool
) -> None:
    moments = list(map(datetime.fromisoformat, BERLIN))
    times = list(BERLIN) if texts else pa.array(moments, pa.timestamp("us"))
    file = write(tmp_path / "a.parquet", timestamp=times, value=[1.0] * 4)
    utc = store.import_parquet(file, sensor="utc")
    assert (utc.stored, utc.refused) == (4, 0)
    berlin = store.import_parquet(file, sensor="berlin", zone="Europe/Berlin")
    assert (berlin.stored, berlin.refused) == (2, 2)
    assert "occurs twice or never in Europe/Berlin" in " ".join(berlin.problems)
    assert [row["timestamp_us"] for row in store.points.range("utc", "m")] == [
        round(moment.replace(tzinfo=UTC).timestamp() * 1e6) for moment in moments
    ]
    zone = ZoneInfo("Europe/Berlin")
    assert [row["timestamp_us"] for row in store.points.range("berlin", "m")] == [
        round(moments[at].replace(tzinfo=zone).timestamp() * 1e6) for at in (0, 3)
    ]
    with pytest.raises(InvalidQuery, match="no time zone 'Mars'"):
        store.import_parquet(file, zone="Mars")


@pytest.mark.slow_on("sqlite")
def test_a_wide_file_has_a_column_for_each_metric(store: Store, tmp_path: Path) -> None:
    times = pa.array([BEGIN_US, BEGIN_US + 1, BEGIN_US + 2], pa.timestamp("us"))
    columns = {
        "flow": pa.array([1.5, None, float("nan")]),
        "count": pa.array([1, 2**53 + 1, None], pa.int64()),
        "it's on": pa.array([True, False, None]),
        "__index_level_0__": times,
    }
    pq.write_table(pa.table(columns), tmp_path / "wide.parquet")
    with pytest.raises(InvalidFile, match=r"no column 'sensor_id'.*name its sensor"):
        store.import_parquet(tmp_path / "wide.parquet")
    done = store.import_parquet(tmp_path / "wide.parquet", sensor="S")
    assert (done.read, done.stored, done.refused) == (5, 4, 1), done.problems
    expected = [
        ("S", "count", 0, 1.0),
        ("S", "flow", 0, 1.5),
        ("S", "it's on", 0, 1.0),
        ("S", "it's on", 1, 0.0),
    ]
    assert [row[:4] for row in stored(store)] == expected
    assert store.import_parquet(tmp_path / "wide.parquet", sensor="T", only={"f": "flow"}).stored == 1
    mixed = columns | {"state": pa.array(["ON", None, "OFF"])}
    pq.write_table(pa.table(mixed), tmp_path / "mixed.parquet")
    with pytest.raises(InvalidFile, match="name these columns: `only`"):
        store.import_parquet(tmp_path / "mixed.parquet", sensor="U")
    assert store.import_parquet(tmp_path / "mixed.parquet", sensor="U", only=["flow", "state"]).stored == 3
    done_too = store.ingest(
        [tmp_path / "mixed.parquet"], sensor="V", only=["flow", "state"], zone="Europe/Berlin"
    )
    assert (done_too.points, done_too.rejected) == (3, 0)


@pytest.mark.slow_on("sqlite")
def test_a_file_of_a_store_that_is_open_is_refused_and_keeps_its_locks(
    store: Store, tmp_path: Path, spawn: Any
) -> None:
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    own = [path for path in store.path.iterdir() if path.is_file()]
    assert {"offline_buffer.db", "offline_buffer.db-wal", "lease.lock"} <= {path.name for path in own}
    for path in own:
        (link := tmp_path / f"link-{path.name}").symlink_to(path)
        (folder := tmp_path / f"folder-{path.name}").mkdir()
        (hard := folder / "in.parquet").hardlink_to(path)
        for given in (path, link, hard, folder):
            with pytest.raises(InvalidFile, match="a file of a store"):
                store.import_parquet(given)
        for given in (path, link, hard):
            with pytest.raises(InvalidFile, match="a file of a store"):
                store.ingest(given)
    other = spawn(
        "import sys; from repo import Store\n"
        "with Store(sys.argv[1]) as s: s.points.insert('b', 'm', 1.0)\n"
        "print('closed', flush=True); sys.stdin.readline()\n"
        "with Store(sys.argv[1]) as s: print(len(s.points.range('a', 'm').all()))\n",
        store.path,
    )
    assert other.stdout.readline() == "closed\n"
    store.points.insert("a", "m", 2.0, timestamp=2)
    assert other.communicate("\n")[0] == "2\n", (
        "the other process did not delete the log of a store that is in use"
    )
