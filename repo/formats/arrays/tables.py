"""Tables in: the columns of a caller, split into chunks that DuckDB scans or that are converted to lists.

Distinguishes Arrow tables, frames and dicts of arrays; never inspects a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from repo.errors import InvalidPoint, Refusal
from repo.extras import imported, missing_extra
from repo.formats.arrays.memory import KeptStream
from repo.formats.arrays.scan import Scan
from repo.inputs.times import to_datetime

__all__ = ["COLUMNS", "Chunk", "HeldPage", "HeldPages", "Table", "table_of"]

COLUMNS = (
    *("sensor_id", "metric_name", "timestamp", "timestamp_us"),
    *("value", "value_text", "quality", "metadata"),
)
"""The columns that a table may have. The names, one of the times, and a value or a text are required."""

Lists = dict[str, Sequence[Any]]

_NESTING = (list, tuple, set, Mapping)
_DEEPEST = 100
"""The maximum depth of lists and dicts in a value passed to pyarrow, whose only limit is the stack."""


class Chunk:
    """Some rows of a table in memory."""

    def __init__(
        self,
        cut: Callable[[int, int], Any],
        start: int,
        rows: int,
        show: Callable[[Any], Any],
        home: Any = None,
        scan: Scan | None = None,
    ) -> None:
        self.rows = rows
        self._cut = cut
        self._start = start
        self._show = show
        self.home = home
        """The DuckDB connection that the rows came from, if they can be scanned in place; `place` selects them."""
        self.scan = scan
        """The scan of the rows, if they were scanned."""

    @property
    def source(self) -> Any:
        """An object that DuckDB can scan, or None if a column contains objects that only Python can distinguish."""
        return self._show(self._cut(self._start, self.rows))

    @property
    def place(self) -> str | None:
        """SQL that selects the rows on `home`."""
        return None if self.home is None else self._cut(self._start, self.rows).sql_query()

    def lists(self, start: int, rows: int) -> Lists:
        """Return rows as columns of Python objects."""
        return _lists_of(self._cut(self._start + start, min(rows, self.rows - start)))


@dataclass(frozen=True, slots=True)
class Table:
    """A table as chunks; unless it is `repeatable`, it can be iterated once."""

    names: tuple[str, ...]
    chunks: Iterable[Chunk]
    repeatable: bool


@dataclass(frozen=True, slots=True)
class HeldPage:
    """A table of an internal DuckDB connection, which is scanned in place. `name` needs no quotes."""

    connection: Any
    name: str
    scan: Scan | None = None
    """The scan of it, if nothing in it is unusual."""
    kept: KeptStream | None = None
    """Its rows in memory, if they are there."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return the rows as an Arrow stream."""
        return self.connection.sql(f"FROM {self.name}").__arrow_c_stream__(requested_schema)


@dataclass(frozen=True, slots=True)
class HeldPages:
    """Consecutive pages with the columns of a stored point except seq; each is valid until the next one."""

    pages: Iterator[HeldPage]


def table_of(given: Any, chunk_rows: int, spool: Any) -> Table:
    """Recognize the type of a table; raises `InvalidPoint` if it is not a table, or its columns are not a point's.

    Accepts a dict of arrays (NumPy, `array`, lists; a text is a constant column), a pandas or polars frame, a pyarrow
    table, or any other object with `__arrow_c_stream__`. The last kind is read once, by pyarrow if it is installed,
    else into a temporary table of the DuckDB connection `spool`. Raises `MissingExtra` if neither is available.
    """
    if isinstance(given, Mapping):
        return _of_mapping(given, chunk_rows)
    if isinstance(given, HeldPages):
        return _of_held(given.pages)
    home = type(given).__module__.partition(".")[0]
    if home == "pandas" and hasattr(given, "iloc") and hasattr(given, "columns"):
        return _of_pandas(given, chunk_rows)
    if home == "polars" and hasattr(given, "height"):
        return _repeated(
            given.columns, given.height, chunk_rows, lambda start, rows: given.slice(start, rows)
        )
    if home == "pyarrow" and hasattr(given, "slice") and hasattr(given, "num_rows"):
        return _of_arrow(given, chunk_rows)
    if hasattr(given, "__arrow_c_stream__"):
        return _of_stream(given, chunk_rows, spool)
    raise _refused(
        "table",
        f"is of type {type(given).__name__}; a dict of arrays, a frame, or an object with __arrow_c_stream__ is needed",
    )


class _StreamOnly:
    """Exposes only the stream of an object to DuckDB, which would otherwise need pyarrow."""

    def __init__(self, streamed: Any) -> None:
        self._streamed = streamed

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._streamed.__arrow_c_stream__(requested_schema)


def _of_arrow(table: Any, chunk_rows: int) -> Table:
    return _repeated(
        table.schema.names, table.num_rows, chunk_rows, lambda start, rows: table.slice(start, rows)
    )


def _repeated(
    names: Iterable[str],
    rows: int,
    chunk_rows: int,
    cut: Callable[[int, int], Any],
    show: Callable[[Any], Any] = _StreamOnly,
    home: Any = None,
) -> Table:
    """A table in memory: `cut` gives rows from a start on, `show` the object that DuckDB scans."""
    # Whole chunks first, not equal ones: they fill whole row groups of DuckDB.
    edges = [*range(0, max(rows, 1), chunk_rows), rows]
    chunks = [Chunk(cut, start, stop - start, show, home) for start, stop in pairwise(edges)]
    return Table(_checked_names(names), chunks, repeatable=True)


# --- dicts of arrays ------------------------------------------------------------------------------------


def _of_mapping(given: Mapping[Any, Any], chunk_rows: int) -> Table:
    names = _checked_names(given)
    columns = {name: given[name] for name in names}
    lengths = {name: _length(name, column) for name, column in columns.items() if not isinstance(column, str)}
    if not lengths:
        raise _refused("table", "has no column with rows; give arrays of equal length")
    first, rows = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != rows:
            raise _refused(name, f"has {length} items, and {first} has {rows}")
    columns = {
        name: [column] * rows if isinstance(column, str) else column for name, column in columns.items()
    }
    if pa := _pyarrow():
        table = _arrow_of(pa, columns)
        if table is not None:
            return _of_arrow(table, chunk_rows)
    elif all(getattr(getattr(c, "dtype", None), "kind", "O") in "iufU" for c in columns.values()):
        return _repeated(
            names,
            rows,
            chunk_rows,
            lambda start, count: {name: column[start : start + count] for name, column in columns.items()},
            _as_it_is,
        )
    return _of_lists({name: _listed(column) for name, column in columns.items()}, rows, chunk_rows)


def _length(name: str, column: Any) -> int:
    try:
        return len(column)
    except TypeError as error:
        raise _refused(name, f"is of type {type(column).__name__}; an array or a list is required") from error


def _arrow_of(pa: Any, columns: Mapping[str, Any]) -> Any:
    """Return the columns as an Arrow table, or None if one has mixed types that Arrow does not accept."""
    if any(map(_is_too_deep, columns.values())):
        return None
    try:
        return pa.table({name: pa.array(_utc(column)) for name, column in columns.items()})
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def _is_too_deep(column: Any) -> bool:
    """Return whether a list or an array of objects has a value so nested that pyarrow would crash the process."""
    if getattr(getattr(column, "dtype", None), "kind", "O") != "O":
        return False
    kinds = set(map(type, column))
    return any(issubclass(kind, _NESTING) for kind in kinds) and not all(
        _is_shallow(value, _DEEPEST) for value in column
    )


def _is_shallow(value: Any, levels: int) -> bool:
    if not isinstance(value, _NESTING):
        return True
    inside = value.values() if isinstance(value, Mapping) else value
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inside)


def _utc(column: Any) -> Any:
    """Add the zone to NumPy's times, which have none and are UTC by convention."""
    if getattr(getattr(column, "dtype", None), "kind", None) != "M":
        return column
    import pyarrow as pa

    return pa.array(column.astype("datetime64[us]")).cast(pa.timestamp("us", "UTC"))


def _of_lists(columns: Lists, rows: int, chunk_rows: int) -> Table:
    return _repeated(
        columns,
        rows,
        chunk_rows,
        lambda start, count: {name: column[start : start + count] for name, column in columns.items()},
        _not_at_all,
    )


def _as_it_is(piece: Any) -> Any:
    return piece


def _not_at_all(_piece: Any) -> None:
    return None


def _listed(column: Any) -> list[Any]:
    if getattr(getattr(column, "dtype", None), "kind", None) == "M":
        return [to_datetime(us) for us in column.astype("datetime64[us]").astype("int64").tolist()]
    listed = column.tolist() if hasattr(column, "tolist") else list(column)
    return listed if isinstance(listed, list) else [listed]


# --- frames and streams ---------------------------------------------------------------------------------


def _of_pandas(frame: Any, chunk_rows: int) -> Table:
    if not set(COLUMNS).isdisjoint(name for name in frame.index.names if name is not None):
        frame = frame.reset_index()
    if pa := _pyarrow():
        names = _checked_names(frame.columns)
        try:
            if any(_is_too_deep(frame[name]) for name in names):
                raise ValueError("nested too deeply")  # noqa: TRY301
            return _of_arrow(pa.Table.from_pandas(frame, preserve_index=False), chunk_rows)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            pass  # a column with mixed objects, which only Python can distinguish
    elif all(_is_plain(frame[name]) for name in frame.columns):
        return _repeated(
            frame.columns,
            len(frame),
            chunk_rows,
            lambda start, rows: frame.iloc[start : start + rows],
            _as_it_is,
        )
    names = _checked_names(frame.columns)
    return _of_lists({name: _pandas_list(frame[name]) for name in names}, len(frame), chunk_rows)


def _is_plain(column: Any) -> bool:
    from pandas.api.types import infer_dtype

    return column.dtype.kind in "iuf" or infer_dtype(column, skipna=True) in {"string", "datetime64"}


def _pandas_list(column: Any) -> list[Any]:
    return [None if gone else item for item, gone in zip(column.tolist(), column.isna(), strict=True)]


def _of_stream(given: Any, chunk_rows: int, spool: Any) -> Table:
    if pa := _pyarrow():
        reader = pa.RecordBatchReader.from_stream(given)
        return Table(_checked_names(reader.schema.names), _regrouped(reader, chunk_rows), repeatable=False)
    if spool is None:
        raise missing_extra(
            f"reading a {type(given).__name__} needs pyarrow if DuckDB is not installed", "arrow"
        )
    spool.register("holdfast_given", _StreamOnly(given))
    spool.execute("CREATE OR REPLACE TEMPORARY TABLE holdfast_spooled AS SELECT * FROM holdfast_given")
    spool.unregister("holdfast_given")
    (rows,) = spool.execute("SELECT count(*) FROM holdfast_spooled").fetchall()[0]

    def cut(start: int, count: int) -> Any:
        part = f"SELECT * FROM holdfast_spooled WHERE rowid >= {start:d} AND rowid < {start + count:d}"
        return spool.sql(part)

    return _repeated(cut(0, 0).columns, rows, chunk_rows, cut, home=spool)


def _of_held(pages: Iterable[HeldPage]) -> Table:
    """A table of consecutive pages; each page is a chunk."""

    def chunks() -> Iterator[Chunk]:
        for page in pages:
            connection, name = page.connection, page.name
            if page.scan is None:
                [(rows,)] = connection.execute(f"SELECT count(*) FROM {name}").fetchall()
            else:
                rows = page.scan.rows

            def cut(start: int, count: int, page: HeldPage = page, rows: int = rows) -> Any:
                part = "" if (start, count) == (0, rows) else f" LIMIT {count:d} OFFSET {start:d}"
                return page.connection.sql(f"SELECT * FROM {page.name}{part}")

            def show(piece: Any, page: HeldPage = page) -> Any:
                return _StreamOnly(piece) if page.kept is None else page.kept

            yield Chunk(cut, 0, rows, show, connection, page.scan)

    return Table(COLUMNS, chunks(), repeatable=False)


def _regrouped(reader: Any, chunk_rows: int) -> Iterator[Chunk]:
    """Join and split the batches of a stream into tables of `chunk_rows`; the last one may be smaller."""
    import pyarrow as pa

    held: list[Any] = []
    rows = 0
    for batch in reader:
        held.append(batch)
        rows += batch.num_rows
        if rows >= chunk_rows:
            table = pa.Table.from_batches(held)
            whole = rows - rows % chunk_rows
            yield from _of_arrow(table.slice(0, whole), chunk_rows).chunks
            held, rows = table.slice(whole).to_batches(), rows - whole
    if held:
        yield from _of_arrow(pa.Table.from_batches(held), chunk_rows).chunks


# --- columns as lists -----------------------------------------------------------------------------------


def _lists_of(piece: Any) -> Lists:
    if isinstance(piece, dict):
        return {name: _listed(column) for name, column in piece.items()}
    home = type(piece).__module__.partition(".")[0]
    if home == "pyarrow":
        return dict(
            _arrow_list(name, column) for name, column in zip(piece.schema.names, piece.columns, strict=True)
        )
    if home == "pandas":
        return {name: _pandas_list(piece[name]) for name in piece.columns}
    if home == "polars":
        return {name: piece[name].to_list() for name in piece.columns}
    return dict(zip(piece.columns, map(list, zip(*piece.fetchall(), strict=True)), strict=True))


def _arrow_list(name: str, column: Any) -> tuple[str, list[Any]]:
    import pyarrow as pa

    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        # As integers: Python's datetimes have no nanoseconds, and need a time zone database.
        up, down = _PER_UNIT[column.type.unit]
        counts = column.cast(pa.int64()).to_pylist()
        listed = [None if count is None else count * up // down for count in counts]
        return "timestamp_us" if name == "timestamp" else name, listed
    listed = column.to_pylist()
    if pa.types.is_map(column.type):
        listed = [None if item is None else dict(item) for item in listed]
    return name, listed


_PER_UNIT = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}
"""The number of µs per unit of time."""


def _checked_names(names: Iterable[Any]) -> tuple[str, ...]:
    found = tuple(names)
    for name in found:
        if name not in COLUMNS:
            raise _refused(str(name)[:40], f"is not a column of points; those are {', '.join(COLUMNS)}")
    if len(set(found)) != len(found):
        raise _refused("table", "has two columns of the same name")
    for name in ("sensor_id", "metric_name"):
        if name not in found:
            raise _refused(name, "is missing")
    if "timestamp" not in found and "timestamp_us" not in found:
        raise _refused("timestamp", "is missing; so is timestamp_us")
    if "timestamp" in found and "timestamp_us" in found:
        raise _refused("timestamp", "is given twice, as timestamp and as timestamp_us")
    if "value" not in found and "value_text" not in found:
        raise _refused("value", "is missing; so is value_text")
    return found


def _refused(field: str, reason: str) -> InvalidPoint:
    return InvalidPoint([Refusal(None, field, reason)])


def _pyarrow() -> Any | None:
    try:
        return imported("pyarrow")
    except ImportError:
        return None
