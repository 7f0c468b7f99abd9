"""NDJSON exports and imports: need no package, keep every bit, and have the guarantees of Parquet."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import zlib
from pathlib import Path
from typing import Any

import pytest

from repo import InvalidFile, InvalidQuery, Store, StoreCorrupt
from repo.inputs.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US
from tests.conftest import HAS_DUCKDB, OpenStore, RunPython
from tests.contract.test_parquet_export import BEGIN_S, Stopped, fill, points_of, stop_after

pytestmark = [
    pytest.mark.shared_stores,
    pytest.mark.slow_on("duckdb"),
]  # lines are read and written in Python

T0_US = BEGIN_S * 1_000_000


def lines_of(*files: Path) -> list[Any]:
    return [json.loads(line) for file in files for line in gzip.open(file)]


def write(path: Path, *lines: Any) -> Path:
    """Write a file as an export does; anything but strings is encoded as JSON."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode("utf-8", "surrogatepass")))
    return path


def line(at: int = 0, **changed: Any) -> dict[str, Any]:
    found = {"sensor_id": "s", "metric_name": "m", "timestamp_us": T0_US + at, "value": 1.5} | changed
    return {key: value for key, value in found.items() if value is not ...}


@pytest.mark.slow_on  # on none
@pytest.mark.fresh_stores
@pytest.mark.parametrize("partition", [None, "day"])
def test_an_export_can_be_imported_again(open_store: OpenStore, tmp_path: Path, partition: Any) -> None:
    source, target = open_store("source"), open_store("target")
    points = fill(source)
    out = tmp_path / ("out" if partition else "out.ndjson.gz")
    reported = source.export_ndjson(out, partition=partition)
    files = 3 if partition else 1
    assert (reported.points, reported.files) == (len(points), files)
    assert (reported.first_us, reported.last_us) == (
        min(point["timestamp_us"] for point in points),
        max(point["timestamp_us"] for point in points),
    )
    assert (reported.first_seq, reported.last_seq) == (1, source.sinks.last_seq())
    done = target.import_parquet(out)
    assert points_of(target) == points
    assert (done.read, done.stored, done.no_reading) == (len(points), len(points), 2)
    assert done.verified == done.files == files


def test_a_line_is_as_documented(store: Store, tmp_path: Path) -> None:
    store.points.insert("s", "m", 2.5, BEGIN_S, 7, {"b": "ü", "a": 1})
    store.points.insert("s", "m", float("-inf"), BEGIN_S + 1)
    store.points.insert("s", "t", "OPEN", BEGIN_S)
    store.points.insert("s", "t", None, BEGIN_S + 1)
    store.export_ndjson(tmp_path / "a.ndjson.gz")
    content = gzip.decompress((tmp_path / "a.ndjson.gz").read_bytes()).decode()
    first, second, third, fourth = content.splitlines(keepends=True)
    start = f'{{"sensor_id":"s","metric_name":"m","timestamp_us":{T0_US}'
    assert first == start + ',"value":2.5,"quality":7,"metadata":{"a":1,"b":"ü"},"seq":1}\n'
    assert json.loads(second) == line(1_000_000, value="-Infinity", quality=100, seq=2)
    assert json.loads(third) == line(metric_name="t", value="OPEN", quality=100, seq=3)
    assert json.loads(fourth) == line(1_000_000, metric_name="t", value=None, quality=100, seq=4)


@pytest.mark.slow_on  # on none
def test_every_value_keeps_its_bits(open_store: OpenStore, tmp_path: Path) -> None:
    source, target = open_store("source"), open_store("target")
    numbers = [
        5e-324,
        -5e-324,
        2.2250738585072011e-308,
        1.7976931348623157e308,
        0.1,
        1 / 3,
        2.0**53,
        1e22,
        0.0,
    ]
    numbers += [float("inf"), float("-inf"), 123456789.12345679]
    texts = ["", "NA", "null", "NaN?", '"', "\\u0000", "☃ 👍 é", "\u2028", "{}", "\ufeffx", "x" * 65_536]
    source.points.insert_many([("s", "n", at, value) for at, value in enumerate(numbers)])
    source.points.insert_many([("ü\u2028'\"\\", "t", at, value) for at, value in enumerate(texts)])
    for at in (MIN_TIMESTAMP_US, MAX_TIMESTAMP_US, -1, 0):
        source.points.insert_many(
            [{"sensor_id": "s", "metric_name": "at", "timestamp_us": at, "value": None}]
        )
    metadata = {"k": [1e-320, -0.0, 2**70, "\x7f\n", None, True, {"": {}}], "ü": "👍"}
    source.points.insert("s", "meta", 1, 1.0, -(2**31), metadata)
    source.points.insert("s", "meta", 1, 2.0, 2**31 - 1, {})
    source.export_ndjson(tmp_path / "a.ndjson.gz")
    target.import_parquet(tmp_path / "a.ndjson.gz")
    expected, found = points_of(source), points_of(target)
    assert repr(found) == repr(expected)  # which distinguishes -0.0 from 0.0
    assert [point["value"] for point in found if point["metric_name"] == "n"] == numbers
    assert [point["value"] for point in found if point["metric_name"] == "t"] == texts


def test_sha256sum_checks_the_sum_next_to_a_file(store: Store, tmp_path: Path) -> None:
    fill(store, days=1)
    store.export_ndjson(tmp_path / "a.ndjson.gz")
    digest = hashlib.sha256((tmp_path / "a.ndjson.gz").read_bytes()).hexdigest()
    assert (tmp_path / "a.ndjson.gz.sha256").read_text() == f"{digest}  a.ndjson.gz\n"
    store.export_ndjson(tmp_path / "b.ndjson.gz")
    content = (tmp_path / "b.ndjson.gz").read_bytes()
    assert content == (tmp_path / "a.ndjson.gz").read_bytes()
    assert content[4:8] == bytes(4), "gzip's own time would make them differ"


def test_names_and_times_select_and_nothing_is_an_empty_file(store: Store, tmp_path: Path) -> None:
    fill(store, days=1)
    done = store.export_ndjson(tmp_path / "a.ndjson.gz", sensor_id="s[01]", metric_name="temperature")
    assert {found["sensor_id"] for found in lines_of(tmp_path / "a.ndjson.gz")} == {"s0", "s1"}
    assert done.points == len(lines_of(tmp_path / "a.ndjson.gz")) == 67
    assert store.export_ndjson(tmp_path / "b.ndjson.gz", sensor_id="none").points == 0
    assert store.import_parquet(tmp_path / "b.ndjson.gz").read == 0


@pytest.mark.fresh_stores
def test_the_name_of_a_single_file_has_the_suffix_of_its_format(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidQuery, match=r"a\.parquet would be ndjson, but ends as parquet files do"):
        store.export_ndjson(tmp_path / "a.parquet")
    with pytest.raises(InvalidQuery, match=r"the format of \.json is not known"):
        store.export(tmp_path / "a.json")
    with pytest.raises(InvalidQuery, match="cannot be written to a stream"):
        store.export(io.BytesIO(), format="parquet")
    with pytest.raises(InvalidQuery, match="partition"):
        store.export_ndjson(tmp_path / "a.ndjson.gz", partition="hour")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["store"]


def test_an_interrupted_folder_resumes_but_not_in_the_other_format(store: Store, tmp_path: Path) -> None:
    points = fill(store)
    with pytest.raises(Stopped):
        store.export_ndjson(tmp_path / "bundle", partition="day", progress=stop_after(150))
    with pytest.raises(InvalidFile, match="something else"):
        store.export_parquet(tmp_path / "bundle", partition="day")
    done = store.export_ndjson(tmp_path / "bundle", partition="day")
    assert 0 < done.resumed < done.files
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["compression"] == "gzip"
    assert {Path(file["path"]).name for file in manifest["files"]} == {"points.ndjson.gz"}
    assert manifest["points"] == len(points) == done.points


def test_both_formats_can_be_in_one_folder(open_store: OpenStore, tmp_path: Path) -> None:
    source, target = open_store("source"), open_store("target")
    points = fill(source, days=1)
    (tmp_path / "out").mkdir()
    source.export_parquet(tmp_path / "out/a.parquet", sensor_id="s0")
    source.export_ndjson(tmp_path / "out/b.ndjson.gz", sensor_id=["s1", "s2", "s9"])
    assert target.import_parquet(tmp_path / "out").stored == len(points)
    assert points_of(target) == points


@pytest.mark.slow_on("sqlite")
def test_importing_again_changes_nothing_and_keeps_a_correction(store: Store, tmp_path: Path) -> None:
    points = fill(store, days=1)
    store.export_ndjson(tmp_path / "old.ndjson.gz")
    end = store.sinks.last_seq()
    done = store.import_parquet(tmp_path / "old.ndjson.gz")
    assert (done.stored, done.present, store.sinks.last_seq()) == (0, len(points), end)
    store.points.insert("s1", "temperature", 999, timestamp=points[50]["timestamp"])
    store.points.delete("s9")
    corrected = points_of(store)
    assert store.import_parquet(tmp_path / "old.ndjson.gz", dry_run=True).stored == 3
    assert store.import_parquet(tmp_path / "old.ndjson.gz").stored == 3
    assert [p for p in points_of(store) if p["sensor_id"] != "s9"] == corrected
    store.import_parquet(tmp_path / "old.ndjson.gz", on_conflict="overwrite")
    assert points_of(store) == points


def test_duplicates_other_kinds_and_what_cannot_be_stored_are_counted(store: Store, tmp_path: Path) -> None:
    store.points.insert("s", "text", "OPEN", BEGIN_S)
    store.points.insert("s", "m", 9.0, BEGIN_S)
    file = write(
        tmp_path / "a.ndjson.gz",
        *(line(), line(1, value=1), line(1, value=2), line(2, value=None)),
        *(line(metric_name="text", value=5), line(metric_name="new", value="a"), line(1, metric_name="new")),
        *(line(metric_name="x" * 256), line(timestamp_us=2**62), line(3, metadata="no mapping")),
    )
    reported = store.import_parquet(file, dry_run=True)
    done = store.import_parquet(file)
    assert reported == done
    assert (done.read, done.stored, done.present, done.duplicates) == (10, 3, 1, 1)
    assert (done.refused, done.no_reading, done.verified) == (5, 1, 0)
    assert [problem.removeprefix(f"{file}: ") for problem in done.problems[:2]] == [
        "the series 's' 'text' holds texts only",
        "the series 's' 'new' holds numbers only",
    ]
    for reason in ("256 characters", "nanoseconds", "not a mapping"):
        assert any(reason in problem for problem in done.problems[2:])
    assert [point["value"] for point in store.points.range("s", "m")] == [9.0, 2.0, None]


@pytest.mark.parametrize(
    ("wrong", "reported"),
    [
        ("nonsense", "line 2: is not JSON"),
        ("", "line 3: is not JSON"),
        ("[]", "is a list, not an object"),
        (line(sensor_id=...), "has no sensor_id"),
        (line(sensor_id=None), "sensor_id is None; expected a text"),
        (line(metric_name=5), "metric_name is an int; expected a text"),
        (line(metric_name="\ud800"), "lone surrogate"),
        (line(value="\ud800"), "lone surrogate"),
        (line(timestamp_us=...), "has no timestamp_us"),
        (line(timestamp_us=..., timestamp=5), "has no timestamp_us"),
        (line(timestamp_us=1.5), "timestamp_us is a float; expected an integer of 64 bits"),
        (line(timestamp_us=2**64), "timestamp_us is an int; expected an integer of 64 bits"),
        (line(timestamp_us=True), "timestamp_us is a bool"),
        (line(value=...), "has no value"),
        (line(value=[1]), "value is a list; expected a number, a text or null"),
        (line(value=True), "value is a bool"),
        (line(value=2**53 + 1), "integer that a 64-bit float would round"),
        (line(value=10**400), "integer that a 64-bit float would round"),
        (json.dumps(line(value=0)).replace(": 0}", ": 1e400}"), "value is too large for a 64-bit float"),
        (line(quality="good"), "quality is a str; expected an integer of 32 bits"),
        (line(quality=2**31), "quality is an int; expected an integer of 32 bits"),
        ('{"value":NaN}', "has NaN"),
        ('{"value":1,"value":1}', "the key 'value' twice"),
        ("[" * 500_000, "nested too deeply"),
        ("x" * 1_100_000, "longer than"),
    ],
    ids=lambda case: str(case)[:32],
)
@pytest.mark.slow_on("duckdb")
def test_a_single_invalid_line_makes_the_file_unusable(
    unwritten: Store, tmp_path: Path, wrong: Any, reported: str
) -> None:
    good = write(tmp_path / "good.ndjson.gz", line())
    file = write(tmp_path / "bad.ndjson.gz", line(), wrong, line() if wrong else "nonsense")
    with pytest.raises(InvalidFile) as caught:
        unwritten.import_parquet([good, file])
    assert str(file) in str(caught.value)
    assert reported in str(caught.value)
    assert unwritten.sinks.last_seq() == 0


def damaged(packed: bytes, chance: random.Random) -> bytes:
    """Return it with another bit flipped; not one of the few, such as those after the last code, that mean nothing."""
    while True:
        broken = bytearray(packed)
        broken[chance.randrange(12, len(broken))] ^= 1 << chance.randrange(8)
        try:
            if gzip.decompress(broken) != gzip.decompress(packed):
                return bytes(broken)
        except (OSError, EOFError, zlib.error):
            return bytes(broken)


@pytest.mark.fresh_stores
@pytest.mark.slow_on("duckdb")
def test_every_flipped_bit_is_found(open_store: OpenStore, tmp_path: Path, seed: int) -> None:
    source, target = open_store("source"), open_store("target")
    points = fill(source, days=1)
    file = tmp_path / "out.ndjson.gz"
    source.export_ndjson(file)
    whole = file.read_bytes()
    chance = random.Random(seed)
    for beside in (True, False):
        for _ in range(6):  # at different places in each run
            file.write_bytes(damaged(whole, chance))
            with pytest.raises(StoreCorrupt if beside else InvalidFile, match=r"out\.ndjson\.gz"):
                target.import_parquet(file)
        (tmp_path / "out.ndjson.gz.sha256").unlink(missing_ok=True)  # then only gzip's checksum is left
    for length in range(0, len(whole), len(whole) // 4):
        file.write_bytes(whole[:length])
        with pytest.raises(InvalidFile, match=r"out\.ndjson\.gz"):
            target.import_parquet(file)
    assert target.sinks.last_seq() == 0
    file.write_bytes(whole)
    assert target.import_parquet(file).stored == len(points)


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize("pack", ["plain", "zstd"])
def test_lines_may_be_plain_or_zstd(open_store: OpenStore, tmp_path: Path, pack: str) -> None:
    source, target = open_store("source"), open_store("target")
    points = fill(source, days=1)
    source.export_ndjson(tmp_path / "a.ndjson.gz")
    content = gzip.decompress((tmp_path / "a.ndjson.gz").read_bytes())
    if pack == "zstd":
        content = pytest.importorskip("zstandard").ZstdCompressor().compress(content)
    (tmp_path / "anything").write_bytes(content)
    assert target.import_parquet(tmp_path / "anything").stored == len(points)
    assert points_of(target) == points


def test_column_mappings_are_for_parquet_only(store: Store, tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson.gz", line())
    with pytest.raises(InvalidFile, match="has no column 'tag'"):
        store.import_parquet(file, columns={"sensor_id": "tag"})


ROUND = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
from repo import MissingExtra, Settings, Store
from pathlib import Path
with Store(sys.argv[1], Settings(background=False)) as store:
    store.export_ndjson(sys.argv[2] + ".ndjson.gz")
    store.export_ndjson(sys.argv[2], partition="day")
    try:
        store.export_parquet(sys.argv[2] + ".parquet")
    except MissingExtra as missing:
        print(missing, missing.__notes__)
for folder, given in (("b", sys.argv[2]), ("c", sys.argv[2] + ".ndjson.gz")):
    with Store(sys.argv[1] + folder, Settings(background=False)) as store:
        print(store.import_parquet(given).stored, store.import_parquet(given).present)
"""


@pytest.mark.parametrize("engine", ["sqlite"])
def test_neither_duckdb_nor_pyarrow_is_needed(
    open_store: OpenStore, engine: str, tmp_path: Path, run_without_duckdb: RunPython
) -> None:
    with open_store("a") as source:
        points = fill(source)
    hidden = ("pyarrow", "numpy", "pandas", "polars", "zstandard")
    done = run_without_duckdb(ROUND.format(hidden=hidden), tmp_path / "a", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    message, *counts = done.stdout.splitlines()
    assert "[arrow]'" in message
    assert "--format ndjson" in message
    assert counts == [f"{len(points)} {len(points)}"] * 2
    for folder in ("ab", "ac"):
        assert points_of(open_store(folder)) == points


PEAK = """
import sys
from repo import Settings, Store
with Store(sys.argv[1], Settings(background=False, engine=sys.argv[2])) as store:
    print(store.import_parquet(sys.argv[3], dry_run=True).stored)
    # Not getrusage: its peak is inherited from the process that started this one.
    [peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(int(peak) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell the peak of memory")
@pytest.mark.slow_on("duckdb")
def test_a_decompression_bomb_is_read_in_bounded_memory(
    tmp_path: Path, engine: str, run_python: RunPython
) -> None:
    note = "x" * 30_000
    text = "".join(json.dumps(line(at, metadata={"note": note})) + "\n" for at in range(100))
    file = tmp_path / "a.ndjson.gz"
    parts, most_mb = (20, 205) if HAS_DUCKDB else (40, 320)
    with gzip.open(file, "wt", compresslevel=1) as stream:
        for part in range(parts):
            stream.write(text.replace('"s"', f'"s{part}"'))
    assert file.stat().st_size < 2_000_000
    done = run_python(PEAK, tmp_path / "store", engine, file, fresh=True)
    assert done.returncode == 0, done.stderr
    stored, peak_mb = map(int, done.stdout.split())
    assert stored == 100 * parts
    # Measured, for any number of parts: 276 where DuckDB is not installed, and 159 where it is.
    assert peak_mb < most_mb, f"the {3 * parts} MB of text were held at once"
