"""The two tools that read Parquet find the same in a file, whoever wrote it, and name it when it is damaged."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repo import InvalidFile
from repo.formats.files.interfaces import FileReader, WrittenPages
from repo.formats.files.mapping import ReadOptions, ReadPlan, plan_of
from repo.formats.files.parquet_duckdb_writer import DuckDBWriter
from repo.formats.files.parquet_packages import SharedInstance, reader_here
from repo.formats.files.parquet_pyarrow import PyArrowWriter

TOOLS = ("duckdb", "pyarrow")
LIMIT = 64_000_000
DAY_US = 86_400_000_000


@contextmanager
def opened(
    path: Path, tool: str, time_format: str = "unix", zone: str = "UTC", sensor: str | None = None
) -> Iterator[tuple[FileReader, ReadPlan]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with (
            SharedInstance([descriptor], LIMIT) as instance,
            reader_here(descriptor, path, instance, duckdb=tool == "duckdb") as reader,
        ):
            yield (
                reader,
                plan_of(
                    reader.types(), ReadOptions.of(time_format=time_format, zone=zone, sensor=sensor), path
                ),
            )
    finally:
        os.close(descriptor)


def found(
    path: Path, tool: str, time_format: str = "unix", zone: str = "UTC", sensor: str | None = None
) -> Any:
    """Return everything that a reader returns, in a form that can be compared."""
    with opened(path, tool, time_format, zone, sensor) as (reader, plan):
        validation = reader.validate(plan)
        reported: list[Any] = [plan.ignored, validation.rows]
        for page in reader.pages(plan, validation):
            reported += [
                page.rows,
                page.nulls,
                page.duplicates(),
                sorted(page.groups, key=lambda group: group.pair),
            ]
            reported.append(sorted(page.identities()))
            reported.append(pa.table(page.table()).to_pylist())
        return reported


TIMES: dict[str, pa.Array] = {
    **{
        f"{unit} {zone}": pa.array([0, 1, -1, 10**9, -(10**9), None], pa.timestamp(unit, zone))
        for unit in ("s", "ms", "us", "ns")
        for zone in ("UTC", "America/Lima")
    },
    "largest": pa.array([2**63 - 1, 5 - 2**63, 2**63 - 2, None, 1, 2], pa.timestamp("us", "UTC")),
    "float": pa.array([0.1, -0.1, 1.7e9 + 1e-6, None, float("nan"), 1e300], pa.float64()),
    "float32": pa.array([0.5, -0.5, 1e9, None, float("inf"), 0], pa.float32()),
    "int": pa.array([0, 1, -1, 2**62, -(2**62), None], pa.int64()),
    **{
        f"{unit} without a zone": pa.array([0, 1, -1, 10**9, -(10**9), None], pa.timestamp(unit))
        for unit in ("ms", "us", "ns")
    },
    "dates": pa.array([0, 1, -1, 20_000, None, -20_000], pa.date32()),
    "texts": pa.array(["2026-01-01T00:00:00Z", "2026-01-01", "2026-W01-1", "soon", None, "2026-01-01 24:00"]),
    "uint": pa.array([0, 1, 2, 2**64 - 1, None, 3], pa.uint64()),
}


@pytest.mark.parametrize("case", TIMES)
def test_both_read_the_same_times(tmp_path: Path, case: str) -> None:
    rows = len(TIMES[case])
    table = pa.table(
        {
            "sensor_id": ["s"] * rows,
            "metric_name": ["m"] * rows,
            "timestamp": TIMES[case],
            "value": [1.5] * rows,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    forms = (("unix", "Europe/Berlin"), ("unix_ms", "UTC"), ("unix_us", "-07:00"))
    # Times with a zone mean the same in each.
    for form, zone in forms[: 1 if getattr(TIMES[case].type, "tz", None) else None]:
        one, other = (found(tmp_path / "a.parquet", tool, form, zone) for tool in TOOLS)
        assert one == other, form


COLUMNS: dict[str, dict[str, pa.Array]] = {
    "integers": {"value": pa.array([1, None, 2**62, -5], pa.int64())},
    "large decimals": {"value": pa.array([2**53 + 1, None, 3, 2**60]).cast(pa.decimal128(38, 2))},
    "decimals": {"value": pa.array(["1.25", None, "3.5", "0"]).cast(pa.decimal128(9, 2))},
    "bools": {"value": pa.array([True, None, False, True])},
    "nothing": {"value": pa.nulls(4), "quality": pa.nulls(4), "metadata": pa.nulls(4)},
    "texts": {"value": pa.array(["OPEN", None, "", "Grüße"])},
    "texts beside": {
        "value": pa.array([1.5, None, None, 2.5]),
        "value_text": pa.array([None, "A", None, None]),
    },
    "only texts": {"value_text": pa.array(["a", "b", None, "c"], pa.large_string())},
    "codes": {
        "value": pa.array([1.0] * 4),
        "metric_name": pa.array(["x", "y", "x", "y"]).dictionary_encode(),
    },
    "a pandas frame with gaps": {
        "value": pa.array([1.5] * 4),
        "quality": pa.array([1.0, None, 1.5, float("nan")]),
    },
    "bytes": {"value": pa.array([1.0] * 4), "metadata": pa.array([b"{}", None, b"{}", b"{}"], pa.binary())},
    "others": {"value": pa.array([1.0] * 4), "seq": pa.array([1] * 4), "colour": pa.array([{"r": 1}] * 4)},
}


@pytest.mark.parametrize("case", COLUMNS)
def test_both_read_the_same_columns(tmp_path: Path, case: str) -> None:
    usual = {
        "sensor_id": pa.array(["s", "s", None, "t"]),
        "metric_name": pa.array(["m", "m", "m", "n"]),
        "timestamp_us": pa.array([5, 5, 6, DAY_US], pa.int64()),
    }
    pq.write_table(pa.table(usual | COLUMNS[case]), tmp_path / "a.parquet")
    one, other = (found(tmp_path / "a.parquet", tool) for tool in TOOLS)
    assert one == other
    assert one[2:4] == [4, 1]


def test_both_read_the_same_wide_file(tmp_path: Path) -> None:
    columns = {
        "time": pa.array([0, 1, 1, None], pa.timestamp("us")),
        "a": pa.array([1.5, None, float("nan"), 2.0]),
        "b": pa.array([1, 2, 3, None], pa.int32()),
        "c": pa.array([2**60 + 1, None, 3, 4], pa.int64()),
        "d": pa.array([True, False, None, True]),
        "e": pa.array(["1.25", None, "3.5", "0"]).cast(pa.decimal128(9, 2)),
        "quality": pa.array([1, 2, 3, None], pa.int16()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    one, other = (found(tmp_path / "a.parquet", tool, sensor="S") for tool in TOOLS)
    assert one == other
    assert one[:2] == [(), 4]
    assert sum(one[2::6]) == 12 + 2


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy"])
def test_the_page_checksums_of_other_writers_are_checked(tmp_path: Path, version: Any, codec: str) -> None:
    rows = 2_000
    columns = {
        "sensor_id": ["A"] * rows,
        "metric_name": ["p"] * rows,
        "timestamp": [float(at) for at in range(rows)],
        "value": [at / 7 for at in range(rows)],
        "colour": ["red" * 100] * rows,
    }
    pq.write_table(
        pa.table(columns),
        tmp_path / "a.parquet",
        compression=codec,
        use_dictionary=["sensor_id", "metric_name"],
        data_page_size=4_096,
        data_page_version=version,
        write_page_checksum=True,
    )
    chunks = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    content = (tmp_path / "a.parquet").read_bytes()
    for tool in TOOLS:
        with opened(tmp_path / "a.parquet", tool) as (reader, plan):
            assert reader.validate(plan).rows == rows
        for place in (3, 2, 0):
            chunk = chunks.column(place)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            flipped = bytearray(content)
            flipped[start + chunk.total_compressed_size - 3] ^= 0x10
            (tmp_path / "b.parquet").write_bytes(flipped)
            wrong = pytest.raises(InvalidFile, match=r"b\.parquet.*(checksum|CRC|corrupt)")
            with opened(tmp_path / "b.parquet", tool) as (reader, plan), wrong:
                reader.validate(plan)


@pytest.mark.parametrize("tool", TOOLS)
def test_readings_of_the_other_kind_can_be_left_out(tmp_path: Path, tool: str) -> None:
    table = pa.table(
        {
            "sensor_id": ["s", "s", "t"],
            "metric_name": ["m", "m", "m"],
            "timestamp_us": [1, 2, 3],
            "value": [1.0, None, None],
            "value_text": [None, "A", "B"],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with opened(tmp_path / "a.parquet", tool) as (reader, plan):
        [page] = reader.pages(plan, reader.validate(plan))
        assert page.leave_out([(("s", "m"), True)]) == 1
        assert [row["timestamp_us"] for row in pa.table(page.table()).to_pylist()] == [1, 3]


def pages_of(count: int, seed: int) -> WrittenPages:
    chance = random.Random(seed)
    rows = [
        (f"s{n % 7}", "m", n * 1000, chance.gauss(20, 3), None, 100, '{"a":1}' if n % 5 else None, n)
        for n in range(count)
    ]
    return WrittenPages([(f"s{n}", "m") for n in range(7)], count, [rows])


@pytest.mark.parametrize("tool", TOOLS)
def test_damage_without_a_sum_ends_in_an_error_or_in_rows_never_in_a_crash(
    tmp_path: Path, tool: str, seed: int
) -> None:
    path = tmp_path / "a.parquet"
    with path.open("w+b") as stream:
        PyArrowWriter().write(stream.fileno(), pages_of(1000, seed), compression="zstd", note="{}")
    whole = path.read_bytes()
    chance = random.Random(seed)
    for _ in range(25):
        broken = bytearray(whole)
        for _ in range(chance.choice((1, 1, 8))):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        del broken[chance.choice((len(broken), chance.randrange(len(broken)))) :]
        path.write_bytes(broken)
        with suppress(InvalidFile):
            found(path, tool)


def content_of_pages(path: Path) -> list[int]:
    """Return the places of a file that the checksums of its pages cover: their headers are not among them."""
    whole, chunks = path.read_bytes(), pq.read_metadata(path).row_group(0)
    covered: list[int] = []
    for chunk in map(chunks.column, range(chunks.num_columns)):
        starts = [at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at]
        for start, end in pairwise([*starts, starts[0] + chunk.total_compressed_size]):
            covered += range(end - content_bytes(whole[start:end]), end)
    return covered


def content_bytes(page: bytes) -> int:
    """Return the third field of a page's header in Thrift's compact protocol, after the page's type and size."""
    at = number = 0
    for _ in range(3):
        at += 1  # the field's type
        number = shift = 0
        while True:
            at, byte = at + 1, page[at]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
    return number // 2  # no sizes are negative


def test_pyarrow_finds_every_flip_in_the_pages_that_it_wrote(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.parquet"
    with path.open("w+b") as stream:
        PyArrowWriter().write(stream.fileno(), pages_of(1000, seed), compression="none", note="{}")
    whole = path.read_bytes()
    expected, covered = found(path, "pyarrow"), content_of_pages(path)
    assert len(covered) > len(whole) // 2
    chance = random.Random(seed)
    for _ in range(25):
        broken = bytearray(whole)
        broken[chance.choice(covered)] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        with suppress(InvalidFile):
            assert found(path, "pyarrow") == expected, "a flip came through as another value"


def test_long_texts_are_encoded_in_smaller_groups(tmp_path: Path) -> None:
    rows = [("s", "m", n, None, str(n) * 2_000, 100, None, n) for n in range(3_000)]
    with (tmp_path / "a.parquet").open("w+b") as stream:
        pages = WrittenPages([("s", "m")], len(rows), [rows])
        DuckDBWriter(LIMIT).write(stream.fileno(), pages, compression="zstd", note="{}")
    written = pq.ParquetFile(tmp_path / "a.parquet")
    assert written.metadata.num_row_groups > 1
    assert written.read().column("value_text").to_pylist() == [row[4] for row in rows]


def test_names_come_as_dictionaries_where_a_reader_wants_these(tmp_path: Path) -> None:
    series = [(f"s{n}", f"m{n % 3}") for n in range(5)]
    rows = [(*pair, n, 1.0, None, 100, None, n) for pair in series for n in range(2_048)]
    with (tmp_path / "a.parquet").open("w+b") as stream:
        DuckDBWriter(LIMIT).write(
            stream.fileno(), WrittenPages(series, 2_048, [rows]), compression="zstd", note="{}"
        )
    written = pq.ParquetFile(tmp_path / "a.parquet", read_dictionary=["sensor_id", "metric_name"])
    assert written.metadata.num_row_groups == 5
    for batch in written.iter_batches(columns=["sensor_id", "metric_name"]):
        assert set(zip(batch[0].to_pylist(), batch[1].to_pylist(), strict=True)) <= set(series)
