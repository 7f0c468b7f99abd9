"""NDJSON files are read alike with DuckDB and without, in pages that stay small."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from repo.formats.files import ndjson
from repo.formats.files.interfaces import PAGE_BYTES
from repo.formats.files.mapping import ReadOptions, ReadPlan, plan_of
from repo.formats.files.ndjson import NdjsonReader, opened_ndjson

pytestmark = pytest.mark.duckdb


@contextmanager
def opened(path: Path, duckdb: bool) -> Iterator[tuple[NdjsonReader, ReadPlan]]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with opened_ndjson(descriptor, path, 128_000_000, duckdb=duckdb) as reader:
            yield reader, plan_of(reader.types(), ReadOptions(), path)
    finally:
        os.close(descriptor)


def write(path: Path, *points: dict[str, Any]) -> Path:
    usual = {"sensor_id": "s", "metric_name": "m", "value": 1.0}
    path.write_text(
        "".join(json.dumps(usual | {"timestamp_us": at} | p) + "\n" for at, p in enumerate(points))
    )
    return path


def told_of(page: Any) -> Any:
    table = page.table()
    columns = table if isinstance(table, dict) else pa.table(table).to_pydict()
    rows = sorted(zip(*columns.values(), strict=True), key=repr)
    return list(columns), rows, sorted(page.identities()), page.rows, page.nulls, page.duplicates()


def test_a_page_has_the_same_content_with_and_without_duckdb(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.ndjson",
        *({}, {"value": None}, {"value": "OPEN"}, {"value": "-Infinity", "quality": -7}),
        *({"timestamp_us": 0}, {"timestamp_us": 0, "value": "SHUT"}, {"timestamp_us": 2**63 - 1}),
        *({"sensor_id": "ü\0", "metadata": {"b": 1, "a": [None]}}, {"sensor_id": "ü", "value": ""}),
        *({"metadata": "no mapping"}, {"metadata": {"\ud800": 1}}),
    )
    found = []
    for duckdb in (True, False):
        with opened(file, duckdb) as (reader, plan):
            validation = reader.validate(plan)
            [page] = reader.pages(plan, validation)
            found.append([validation.rows, sorted(page.groups, key=repr), told_of(page)])
            found[-1] += [page.leave_out([(("s", "m"), True), (("ü", "m"), False)]), told_of(page)]
    assert found[0] == found[1]
    assert found[0][0] == 11
    assert found[0][3] == 2, "two texts of the series s"
    assert found[0][2][5] == 2, "two more points at 0"


def test_pages_of_long_lines_have_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndjson, "_BATCH_CHARS", ndjson._BATCH_CHARS // 10)
    monkeypatch.setattr(ndjson, "PAGE_BYTES", PAGE_BYTES // 10)
    file = write(tmp_path / "a.ndjson", *[{"metadata": {"x": "y" * 4_000}}] * 1_200)
    for duckdb in (True, False):
        with opened(file, duckdb) as (reader, plan):
            sizes = [page.rows for page in reader.pages(plan, reader.validate(plan))]
        assert sum(sizes) == 1_200
        assert max(sizes) < 900 if duckdb else max(sizes) < 320
