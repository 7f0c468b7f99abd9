"""Reads Parquet by DuckDB, in an instance of its own that can access the open file and nothing else.

DuckDB gets the number of the file's descriptor, never its name. So no name is interpreted as a pattern or as SQL, and
the file that is read is the one that was opened and checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

import duckdb

from repo.engines.duckdb.driver import sandbox_path
from repo.errors import InvalidFile, InvalidPoint
from repo.formats.files.checksums import BadPage, ColumnChunk, check_pages
from repo.formats.files.duckdb_page import DuckDBPage
from repo.formats.files.interfaces import PAGE_BYTES, PAGE_ROWS, Validation
from repo.formats.files.local_times import UNREADABLE, spans_of, text_times
from repo.formats.files.mapping import ColumnType, ReadPlan, WideColumn
from repo.formats.files.parquet import ROW_GROUP_ROWS
from repo.formats.files.parquet_sql import (
    MOMENT_US,
    PLACE,
    epoch_us,
    family_of,
    fields_sql,
    quoted,
    selected,
    time_sql,
)
from repo.inputs.fields import EXACT_INT

__all__ = ["DuckDBReader"]

_MOST_GROUP_ROWS = 2_000_000
"""With larger row groups, each query of a page would read too many other rows; 1,048,576 is common."""

_TEXT_ROWS = 10_000


class DuckDBReader:
    """Reads a file. Not thread-safe."""

    def __init__(self, base: Any, descriptor: int, path: Path) -> None:
        self._base = base
        self._descriptor = descriptor
        self._file = sandbox_path(descriptor)
        self._path = path
        options = "hive_partitioning = false, file_row_number = true, binary_as_string = true"
        self._source = f"read_parquet('{self._file}', {options})"

    def types(self) -> dict[str, ColumnType]:
        """See `FileReader`."""
        with self._naming():
            found = self._base.execute(f"DESCRIBE SELECT * FROM {self._source}").fetchall()
        return {
            name: ColumnType(family_of(kind), kind[:80])
            for name, kind, *_ in found
            if name != "file_row_number"  # DuckDB's own
        }

    def validate(self, plan: ReadPlan) -> Validation:
        """See `FileReader`."""
        with self._naming():
            check_pages(self._descriptor, self._chunks(plan))
        columns = [quoted(column) for column in plan.read_columns()]
        # Hashes need every value, whereas a minimum would come from the file's statistics.
        texts = " + ".join(
            f"coalesce(strlen({quoted(plan.columns[field])}), 0)"
            for field in ("sensor_id", "metric_name", "value_text", "metadata")
            if field in plan.columns and plan.types[field].family != "null"
        )
        texts += "".join(
            f" + coalesce(strlen({quoted(one.column)}), 0)" for one in plan.wide if one.kind.family == "text"
        )
        with self._naming():
            [(rows, text_bytes, _)] = self._base.execute(
                f"SELECT count(*), coalesce(sum({texts or 0}), 0)::BIGINT, bit_xor(hash({', '.join(columns)})) "
                f"FROM {self._source}"
            ).fetchall()
        return Validation(int(rows), 64 * max(1, len(plan.wide)) + text_bytes // max(rows, 1))

    def pages(self, plan: ReadPlan, validation: Validation) -> Iterator[DuckDBPage]:
        """See `FileReader`."""
        fitting = max(1, min(PAGE_ROWS, PAGE_BYTES // validation.row_bytes))
        # Full row groups of DuckDB: a partial one would be compressed again at each checkpoint.
        page_rows = fitting - fitting % ROW_GROUP_ROWS or fitting
        with self._naming():
            texts = "timestamp" in plan.types and plan.types["timestamp"].family == "text"
            in_place = not (texts or plan.wide) and self._can_be_read_often()
            selects = self._selects(plan)
            connections = [self._base.cursor(), self._base.cursor()]

        def page(number: int) -> DuckDBPage:
            span, block = divmod(number, len(selects))
            start = span * page_rows
            where = f"file_row_number >= {start:d} AND file_row_number < {start + page_rows:d}"
            connection = connections[number % 2]
            source = f"FROM {self._source}"
            if texts:
                self._read_times(connection, plan, where)
                source += f" JOIN holdfast_times ON file_row_number = {PLACE}"
            order = " ORDER BY file_row_number" if texts else ""  # a join does not keep it
            pieces = [
                f"(SELECT {fields} {source} WHERE {where}{and_}{order})" for fields, and_ in selects[block]
            ]
            return DuckDBPage(connection, " UNION ALL ".join(pieces), in_place=in_place)

        count = -(-validation.rows // page_rows) * len(selects)
        with ThreadPoolExecutor(1, "holdfast-page") as beside:
            ahead: Future[DuckDBPage] | None = None
            for number in range(count):
                with self._naming():
                    current = page(number) if ahead is None else ahead.result()
                # The next page is inspected while this one is stored; two copies would not fit into memory.
                last = number + 1 == count
                ahead = None if last or current.is_copy else beside.submit(page, number + 1)
                yield current
                current.drop()

    def _chunks(self, plan: ReadPlan) -> Iterator[ColumnChunk]:
        found = self._base.execute(
            "SELECT path_in_schema, dictionary_page_offset, data_page_offset, total_compressed_size "
            f"FROM parquet_metadata('{self._file}')"
        ).fetchall()
        wanted = set(plan.read_columns())
        for name, dictionary, data, size in found:
            if name in wanted and data is not None and size is not None:
                yield ColumnChunk(name, min(dictionary or data, data), size)

    def _selects(self, plan: ReadPlan) -> list[list[tuple[str, str]]]:
        """Return the blocks that are read one after the other from each span of rows.

        A block is one query or several, each given by its fields and a further condition. A long file has one block.
        The columns of a wide file form one block for each type that they have as stored.
        """
        time = self._time_sql(plan)
        if not plan.wide:
            as_floats = not self._has_large_decimals(plan)
            return [[(selected(plan, time, as_floats=as_floats), "")]]
        blocks: dict[str, list[tuple[str, str]]] = {}
        for one in plan.wide:
            column = quoted(one.column)
            kind = self._stored_kind(one)
            if kind == "none":
                continue
            texts = "NULL::VARCHAR" if kind != "text" else f"{column}::VARCHAR"
            values = {"text": "NULL::DOUBLE", "number": f"{column}::DOUBLE"}.get(kind, column)
            fields = fields_sql(plan, time, values, texts, metric=one.metric)
            given = f" AND {column} IS NOT NULL" + (
                f" AND NOT isnan({column})" if one.kind.family == "float" else ""
            )
            blocks.setdefault(kind, []).append((fields, given))
        return list(blocks.values())

    def _stored_kind(self, one: WideColumn) -> str:
        """Return `number` or `text`, `none` for a column without values, or its own type if floats would round it."""
        family = one.kind.family
        if family in ("text", "null"):
            return "text" if family == "text" else "none"
        if family == "decimal" or (family == "integer" and "BIGINT" in one.kind.name):
            column = quoted(one.column)
            [(large,)] = self._base.execute(
                f"SELECT coalesce(bool_or(abs({column}::DOUBLE) >= {EXACT_INT}), false) FROM {self._source}"
            ).fetchall()
            if large:
                return one.kind.name
        return "number"

    def _time_sql(self, plan: ReadPlan) -> str:
        if "timestamp" not in plan.types or plan.types["timestamp"].family != "naive" or plan.zone is UTC:
            return time_sql(plan)
        local = epoch_us(quoted(plan.columns["timestamp"]), plan.types["timestamp"].name)
        [(first, last)] = self._base.execute(
            f"SELECT coalesce(min({local}), 0), coalesce(max({local}), 0) FROM {self._source}"
        ).fetchall()
        cases = "".join(
            f" WHEN {local} < {span.end_us} THEN "
            + (f"{local} - {span.offset_us}" if span.offset_us is not None else f"{UNREADABLE}")
            for span in spans_of(plan.zone, first, last)
        )
        return f"CASE{cases} ELSE {local} END"

    def _read_times(self, connection: Any, plan: ReadPlan, where: str) -> None:
        """Put the times that are texts into the table `holdfast_times`."""
        column = quoted(plan.columns["timestamp"])
        connection.execute(
            f"CREATE OR REPLACE TEMPORARY TABLE holdfast_times ({PLACE} BIGINT, {MOMENT_US} BIGINT)"
        )
        found = connection.cursor().execute(
            f"SELECT file_row_number, {column} FROM {self._source} WHERE {where}"
        )
        appender = connection.appender("holdfast_times")
        while rows := found.fetchmany(_TEXT_ROWS):
            places, texts = zip(*rows, strict=True)
            appender.append_rows(list(zip(places, text_times(texts, plan.zone), strict=True)))
        appender.flush()

    def _can_be_read_often(self) -> bool:
        """Return whether some rows can be read without reading many others."""
        [(largest,)] = self._base.execute(
            f"SELECT coalesce(max(row_group_num_rows), 0) FROM parquet_metadata('{self._file}')"
        ).fetchall()
        return bool(largest <= _MOST_GROUP_ROWS)

    def _has_large_decimals(self, plan: ReadPlan) -> bool:
        """Return whether there are decimals beyond the integers that a float can hold; only some types have them."""
        if "value" not in plan.types or plan.types["value"].family != "decimal":
            return False
        value = quoted(plan.columns["value"])
        [(found,)] = self._base.execute(
            f"SELECT coalesce(bool_or(abs({value}::DOUBLE) >= {EXACT_INT}), false) FROM {self._source}"
        ).fetchall()
        return bool(found)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except BadPage as error:
            raise InvalidFile(f"{self._path} is damaged: {error}", path=self._path) from error
        except (duckdb.Error, OSError, InvalidPoint) as error:  # `scan` raises the last one
            reason = str(error).replace(self._file, self._path.name).strip().partition("\n\n")[0]
            advice = "It is damaged or truncated; copy it again"
            if isinstance(error, duckdb.OutOfMemoryException):
                advice = "Set a larger duckdb_memory_limit_bytes"
            raise InvalidFile(
                f"{self._path} cannot be read as Parquet: {reason.rstrip('.')}. {advice}",
                path=self._path,
            ) from error
