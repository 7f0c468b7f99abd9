"""Scan: checks a chunk of a table through DuckDB, to find out whether its columns need a row-by-row check.

This is the fast path of `insert_table`, as `repo.inputs.values` has one for rows. It only detects that something is
unusual; the rows then go through `repo.inputs.values`, which alone decides and words a refusal.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from repo.engines.interrupts import is_interrupt
from repo.errors import InvalidPoint, Refusal
from repo.formats.arrays.columns import read_columns
from repo.inputs.batch import KIND_TEXT, Batch
from repo.inputs.fields import DEFAULT_QUALITY, EXACT_INT, QUALITY_RANGE, metadata_json, name_of, text_of
from repo.inputs.times import EXACT_FLOAT_S, MAX_TIMESTAMP_US, MIN_TIMESTAMP_US, Unfit

__all__ = ["SOURCE", "Scan", "ScannedSeries", "batch_of", "scan"]

SOURCE = "holdfast_table"
"""The name under which a chunk is registered with DuckDB; `Scan.select` reads from it."""


class ScannedSeries(NamedTuple):
    """One series in a chunk; `newest` is (value, value_text, quality, metadata) and `place` its row."""

    pair: tuple[str, str]
    kind: str | None
    rows: int
    readings: int
    """How many of the rows have one."""
    first_us: int
    last_us: int
    newest: tuple[Any, ...]
    place: int


class Scan(NamedTuple):
    """A chunk without anything unusual."""

    select: str
    """Reads `SOURCE` as the columns of a stored point, without seq, in the order of the rows."""
    rows: int
    groups: list[ScannedSeries]
    unique: bool
    """Whether all identities are distinct."""


_MOST_NAMES = 1_000
"""The maximum number of sensors and metrics that `batch_of` numbers."""


def batch_of(connection: Any, source: Any, place: str | None, found: Scan) -> Batch | None:
    """Return a scanned chunk as a batch; None if it has texts, metadata or very many names, or cannot be read again.

    `connection` is the one that scanned it, and `place` is given if it was.
    """
    sensors, metrics = ({group.pair[part]: None for group in found.groups} for part in (0, 1))
    if (
        not found.rows
        or len(sensors) * len(metrics) > _MOST_NAMES
        or any(group.kind == KIND_TEXT for group in found.groups)
    ):
        return None
    import duckdb

    try:
        if place is not None:
            return _batch(connection, found, list(sensors), list(metrics))
        connection.register(SOURCE, source)
        batch = _batch(connection, found, list(sensors), list(metrics))
        connection.unregister(SOURCE)
    except (duckdb.Error, OSError) as error:  # too little memory, mostly; read row by row, it needs less
        if is_interrupt(error):
            raise KeyboardInterrupt from error
        return None
    return batch


def _batch(connection: Any, found: Scan, sensors: list[str], metrics: list[str]) -> Batch | None:
    [(metadata,)] = connection.execute(f"SELECT count(metadata) FROM ({found.select})").fetchall()
    if metadata:
        return None
    # The position in an ENUM is the cheapest way from a text to a number.
    codes, times, values, qualities = read_columns(
        connection.sql(
            f"SELECT (enum_code(sensor_id::{_enum(sensors)})::UINTEGER * {len(metrics)} + "
            f"enum_code(metric_name::{_enum(metrics)}))::UINTEGER, timestamp_us, coalesce(value, 'nan'), quality "
            f"FROM ({found.select})"
        ),
        "Iqdi",
    )
    if len(codes) != found.rows:
        return None
    kinds = {group.pair: group.kind for group in found.groups}
    every = [(sensor, metric) for sensor in sensors for metric in metrics]
    series = [pair for pair in every if pair in kinds]
    if len(series) < len(every):
        numbers = {pair: number for number, pair in enumerate(series)}
        codes = array("I", map([numbers.get(pair, 0) for pair in every].__getitem__, codes))
    one = qualities.count(qualities[0]) == len(qualities)
    grades = qualities[0] if one else qualities
    return Batch(series, [kinds[pair] for pair in series], codes, times, values, {}, grades, {})


def _enum(names: list[str]) -> str:
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
    return f"ENUM({listed})"


_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT", "UINTEGER")
_LARGE = ("BIGINT", "UBIGINT", "HUGEINT", "UHUGEINT")
_FLOATS = ("DOUBLE", "FLOAT")
_MOMENTS = ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS")
_MOST_SECONDS = MAX_TIMESTAMP_US // 1_000_000


def scan(connection: Any, source: Any, place: str | None = None) -> Scan | None:
    """Scan a chunk through a DuckDB connection of its own; None if anything is unusual.

    `place`, if given, is SQL that selects the chunk on this connection; `source` is then not used, as each query would
    create a new stream. Nothing is stored. Raises `InvalidPoint` for a column type that DuckDB cannot read.
    """
    import duckdb

    try:
        if place is not None:
            connection.execute(f"CREATE OR REPLACE TEMPORARY VIEW {SOURCE} AS {place}")
            return _scanned(connection, in_place=True)
        connection.register(SOURCE, source)
        found = _scanned(connection, in_place=False)
        connection.unregister(SOURCE)
    except duckdb.Error as error:
        raise InvalidPoint([Refusal(None, "table", f"cannot be read: {error}")]) from error
    return found


def _scanned(connection: Any, *, in_place: bool) -> Scan | None:
    types = {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {SOURCE}").fetchall()}
    plain = _plain_columns(types)
    if plain is None:
        return None
    time, number, text, quality, metadata, odd = plain
    select = (
        f"SELECT sensor_id, metric_name, {time} AS timestamp_us, {number} AS value, {text} AS value_text, "
        f"{quality} AS quality, {metadata} AS metadata FROM {SOURCE}"
    )
    strange = " OR ".join(f"coalesce({condition}, true)" for condition in odd)
    [(rows, wrong)] = connection.execute(
        f"SELECT count(*), count_if({strange}) FROM {SOURCE}"  # first, because a cast of an invalid value would fail
    ).fetchall()
    if wrong or not _texts_fit(connection, text, metadata):
        return None
    groups = []
    for sensor, metric, numbers, texts, count, first_us, last_us, newest in connection.execute(
        "SELECT sensor_id, metric_name, count(value), count(value_text), count(*), min(timestamp_us), "
        "max(timestamp_us), arg_max(row(value, value_text, quality, metadata, place), timestamp_us) "
        f"FROM (SELECT *, row_number() OVER () - 1 AS place FROM ({select})) GROUP BY ALL"
    ).fetchall():
        if (numbers and texts) or not (_fits(sensor, name_of) and _fits(metric, name_of)):
            return None
        kind = "number" if numbers else "text" if texts else None
        groups.append(
            ScannedSeries(
                (sensor, metric),
                kind,
                count,
                numbers + texts,
                first_us,
                last_us,
                tuple(newest)[:4],
                newest[4],
            )
        )
    unique = (in_place and _is_sorted(connection, select, len(groups))) or _is_unique(
        connection, select, rows
    )
    return Scan(select, rows, groups, unique)


def _is_sorted(connection: Any, select: str, series: int) -> bool:
    """Return whether each series is one run of increasing times, as in an export; this check is fast."""
    # Adjacent series with equal hashes would count as one run, and then there are too few.
    [(runs, falls)] = connection.execute(
        "SELECT count_if(pair IS DISTINCT FROM pair_before), "
        "count_if(pair IS NOT DISTINCT FROM pair_before AND timestamp_us <= time_before) FROM "
        "(SELECT pair, timestamp_us, lag(pair) OVER () AS pair_before, lag(timestamp_us) OVER () AS time_before "
        f"FROM (SELECT hash(sensor_id, metric_name) AS pair, timestamp_us FROM ({select})))"
    ).fetchall()
    return bool(runs == series and not falls)


def _is_unique(connection: Any, select: str, rows: int) -> bool:
    """Return whether all identities are distinct; False if that is uncertain, which is only slower."""
    import duckdb

    # By hash, which is faster; two identities with equal hashes count as one.
    query = f"SELECT count(DISTINCT hash(sensor_id, metric_name, timestamp_us)) FROM ({select})"
    try:
        [(distinct,)] = connection.execute(query).fetchall()
    except duckdb.OutOfMemoryException:
        return False
    return bool(distinct == rows)


def _plain_columns(types: Mapping[str, str]) -> tuple[str, str, str, str, str, list[str]] | None:
    """Return the SQL of time, number, text, quality and metadata, and the conditions for unusual rows."""
    odd: list[str] = []
    if any(not types[name].startswith(("VARCHAR", "ENUM")) for name in ("sensor_id", "metric_name")):
        return None
    odd += ["sensor_id IS NULL", "metric_name IS NULL"]
    time = _time(types, odd)
    number, text = _number(types.get("value", '"NULL"'), odd), "NULL::VARCHAR"
    if types.get("value") == "VARCHAR":
        number, text = "NULL::DOUBLE", "value"
    if "value_text" in types and types["value_text"] != '"NULL"':
        if types["value_text"] != "VARCHAR" or text == "value":
            return None
        text = "value_text"
        odd.append("value IS NOT NULL AND value_text IS NOT NULL" if "value" in types else "false")
    quality = _quality(types.get("quality", '"NULL"'), odd)
    metadata = {'"NULL"': "NULL::VARCHAR", "VARCHAR": "metadata"}.get(types.get("metadata", '"NULL"'))
    if time is None or number is None or quality is None or metadata is None:
        return None
    return time, number, text, quality, metadata, odd


def _time(types: Mapping[str, str], odd: list[str]) -> str | None:
    if "timestamp_us" in types:
        if types["timestamp_us"] not in (*_INTEGERS, *_LARGE):
            return None
        odd.append(f"timestamp_us NOT BETWEEN {MIN_TIMESTAMP_US} AND {MAX_TIMESTAMP_US}")
        return "timestamp_us::BIGINT"
    kind = types["timestamp"]
    if kind in _MOMENTS:
        us = "epoch_us(timestamp)"
        if kind == "TIMESTAMPTZ_NS":  # a cast would round it
            us = "(epoch_ns(timestamp) - ((epoch_ns(timestamp) % 1000) + 1000) % 1000) // 1000"
        odd.append("NOT isfinite(timestamp::TIMESTAMPTZ)")
        odd.append(f"{us} NOT BETWEEN {MIN_TIMESTAMP_US} AND {MAX_TIMESTAMP_US}")
        return us
    if kind in _FLOATS:
        odd.append(f"isnan(timestamp) OR abs(timestamp) >= {EXACT_FLOAT_S:.0f}")
        return "round_even(timestamp::DOUBLE * 1e6, 0)::BIGINT"
    if kind in (*_INTEGERS, *_LARGE):
        odd.append(f"timestamp NOT BETWEEN {-_MOST_SECONDS} AND {_MOST_SECONDS}")
        return "timestamp::BIGINT * 1000000"
    return None


def _number(kind: str, odd: list[str]) -> str | None:
    if kind in ('"NULL"', "VARCHAR"):
        return "NULL::DOUBLE"
    if kind in _FLOATS:
        return "CASE WHEN isnan(value) THEN NULL ELSE value::DOUBLE + 0.0 END"  # minus zero becomes zero
    if kind in _LARGE:
        odd.append(f"value IS NOT NULL AND value NOT BETWEEN {-EXACT_INT} AND {EXACT_INT}")
    elif kind not in _INTEGERS:
        return None
    return "value::DOUBLE"


def _quality(kind: str, odd: list[str]) -> str | None:
    if kind == '"NULL"':
        return f"{DEFAULT_QUALITY}::INTEGER"
    if kind not in (*_INTEGERS, *_LARGE):
        return None
    low, high = QUALITY_RANGE
    odd.append(f"quality IS NOT NULL AND quality NOT BETWEEN {low} AND {high}")
    return f"coalesce(quality::INTEGER, {DEFAULT_QUALITY})"


def _texts_fit(connection: Any, text: str, metadata: str) -> bool:
    """Check each distinct text and each distinct metadata once."""
    for column, check in ((text, text_of), (metadata, _canonical)):
        if column.startswith("NULL"):
            continue
        # All rows: a filter could be pushed down into a file.
        query = f"SELECT DISTINCT {column} FROM {SOURCE}"
        found = connection.execute(query).fetchall()
        if not all(text is None or _fits(text, check) for (text,) in found):
            return False
    return True


def _fits(text: str, check: Callable[[str], object]) -> bool:
    try:
        check(text)
    except Unfit:
        return False
    return True


def _canonical(text: str) -> None:
    """Raise Unfit unless the text is metadata exactly as it is stored."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unfit("is not JSON") from error
    if metadata_json(parsed) != text:
        raise Unfit("is JSON in another form")
