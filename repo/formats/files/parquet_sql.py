"""The SQL with which DuckDB reads the columns of a Parquet file as those of a stored point. Runs nothing."""

from __future__ import annotations

from repo.formats.files.mapping import NO_QUALITY, ReadPlan

__all__ = ["MOMENT_US", "PLACE", "epoch_us", "family_of", "fields_sql", "quoted", "selected", "time_sql"]

PLACE, MOMENT_US = '"holdfast place"', '"holdfast time"'
"""The columns of `holdfast_times`, a table for times that are texts: the place of a row in the file, and its time."""

_LARGEST = 2**63 - 1


def selected(plan: ReadPlan, time: str, *, as_floats: bool) -> str:
    """Return the SQL of a stored point's columns. Inconvertible values become a null or an out-of-range time.

    Decimals stay unchanged unless `as_floats` is set, so that those that would be rounded are refused.
    """
    value = _column(plan, "value", "DOUBLE")
    if "value" in plan.types and plan.types["value"].family in (
        ("decimal", "bool") if as_floats else ("bool",)
    ):
        value = f"{value}::DOUBLE"
    return fields_sql(plan, time, value, _column(plan, "value_text", "VARCHAR"), metric=plan.metric)


def fields_sql(plan: ReadPlan, time: str, value: str, text: str, *, metric: str | None) -> str:
    """Return the SQL of a stored point's columns, given that of its time and its value; `metric` replaces a column."""
    sensor = _column(plan, "sensor_id", "VARCHAR") if plan.sensor is None else _literal(plan.sensor)
    named = _column(plan, "metric_name", "VARCHAR") if metric is None else _literal(metric)
    return ", ".join(
        f"{sql} AS {name}"
        for name, sql in (
            ("sensor_id", sensor),
            ("metric_name", named),
            ("timestamp_us", time),
            ("value", value),
            ("value_text", text),
            ("quality", _quality(plan)),
            ("metadata", _column(plan, "metadata", "VARCHAR")),
        )
    )


def _column(plan: ReadPlan, field: str, missing: str) -> str:
    if field not in plan.columns or plan.types[field].family == "null":
        return f"NULL::{missing}"
    return quoted(plan.columns[field])


def _quality(plan: ReadPlan) -> str:
    """Return the SQL of the quality. A float that is not an integer becomes one that is refused."""
    column = _column(plan, "quality", "INTEGER")
    if "quality" not in plan.types or plan.types["quality"].family != "float":
        return column
    return (
        f"CASE WHEN {column} IS NULL OR isnan({column}) THEN NULL WHEN {column} = trunc({column}) AND abs({column}) < "
        f"{2**31} THEN {column}::BIGINT ELSE {NO_QUALITY} END"
    )


def time_sql(plan: ReadPlan) -> str:
    """Return the SQL of the time in µs. One beyond 64 bits becomes the largest number, which is refused."""
    if "timestamp_us" in plan.columns:
        return _bounded(quoted(plan.columns["timestamp_us"]), 1)
    column, kind = quoted(plan.columns["timestamp"]), plan.types["timestamp"]
    if kind.family == "text":
        return MOMENT_US
    if kind.family == "float":
        us = f"round_even({column}::DOUBLE * {plan.us_per_count:d}, 0)"
        return (
            f"CASE WHEN {us} IS NULL OR isnan({us}) THEN NULL WHEN abs({us}) < {2**62} THEN TRY_CAST({us} AS BIGINT) "
            f"ELSE {_LARGEST} END"
        )
    if kind.family == "integer":
        return _bounded(column, plan.us_per_count)
    return epoch_us(column, kind.name)


def epoch_us(column: str, kind: str) -> str:
    """Return the SQL of the µs since 1970 of a column with times; those of a column without a zone are local."""
    if kind in ("TIMESTAMPTZ_NS", "TIMESTAMP_NS"):  # a cast would round it
        ns = f"epoch_ns({column})"
        return f"({ns} - (({ns} % 1000) + 1000) % 1000) // 1000"
    return f"CASE WHEN NOT isfinite({column}) THEN {_LARGEST} ELSE epoch_us({column}) END"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _bounded(column: str, factor: int) -> str:
    limit = _LARGEST // factor
    return (
        f"CASE WHEN {column}::HUGEINT NOT BETWEEN -{limit} AND {limit} THEN {_LARGEST} "
        f"ELSE ({column}::HUGEINT * {factor})::BIGINT END"
    )


def family_of(kind: str) -> str:
    """Return the family of a type of DuckDB; see `ColumnType`."""
    for family, starts in _FAMILIES.items():
        if kind.partition("(")[0] in starts and "[" not in kind:
            return family
    return "other"


_FAMILIES = {
    "text": ("VARCHAR", "ENUM"),
    "moment": ("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"),
    "naive": ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE"),
    "float": ("DOUBLE", "FLOAT"),
    "integer": ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
    "decimal": ("DECIMAL",),
    "bool": ("BOOLEAN",),
    "null": ('"NULL"',),
}


def quoted(name: str) -> str:
    """Return a name as an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'
