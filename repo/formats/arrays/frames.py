"""Columns of points as Arrow, pandas, polars and NumPy: their names and types, and the conversion.

Each form needs only its own package, which is imported on first use. The columns are always these, in this order, on
both engines, even without rows: `sensor_id`, `metric_name`, `timestamp` (µs, UTC), `value` (float64; missing if the
point has a text or no reading), `value_text` (missing if it has a number), `quality` (int32), `metadata` (JSON text);
and `seq` (int64) in reads for delivery.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection

from repo.engines.base import Shape
from repo.engines.registry import traits_of
from repo.engines.statements import Statement
from repo.extras import imported, missing_extra
from repo.formats.arrays.columns import Coded
from repo.queries.point_sql import Query

__all__ = ["ArrowPages", "NumpyPages", "PolarsPages", "arrow_table", "to_pandas"]

Arrays = dict[str, Any]

_NAMES = ("sensor_id", "metric_name")
_TEXTS = ("value_text", "metadata")
_COLUMNS = (*_NAMES, "timestamp", "value", "value_text", "quality", "metadata")


class ArrowPages:
    """Pages as `pyarrow.Table`, in the engine's own chunks. Names are dictionary-encoded."""

    def __init__(self, *, with_seq: bool) -> None:
        self.with_seq = with_seq
        pa = self._pa = _needed("pyarrow", "arrow")
        self._compute = _needed("pyarrow.compute", "arrow")
        name = pa.dictionary(pa.int32(), pa.string())
        types = {
            "sensor_id": name,
            "metric_name": name,
            "timestamp": pa.timestamp("us", tz="UTC"),
            "value": pa.float64(),
            "value_text": pa.string(),
            "quality": pa.int32(),
            "metadata": pa.string(),
        }
        self.schema = pa.schema(types | ({"seq": pa.int64()} if with_seq else {}))

    def fetch(self, connection: Connection, query: Query, shape: Shape) -> Any | None:
        """Run the query; None if it has more rows than `shape.most`."""
        columns = self._columns(connection, query, shape)
        if columns is None:
            return None
        if query.sorted_by is not None:
            columns = self._sorted(columns, query.sorted_by)
        size = len(columns["timestamp_us"])
        columns["timestamp"] = columns["timestamp_us"]
        for at, name in enumerate(_NAMES):
            columns[name] = self._named(columns.get(name), query, at, size)
        return self._pa.Table.from_arrays(
            [columns[field.name].cast(field.type) for field in self.schema], schema=self.schema
        )

    def size(self, page: Any) -> int:
        """Return its number of rows."""
        return int(page.num_rows)

    def reversed(self, page: Any) -> Any:
        """Return the rows in reverse order."""
        return page.take(self._pa.array(range(page.num_rows - 1, -1, -1), self._pa.int64()))

    def first(self, page: Any, rows: int) -> Any:
        """Return the first rows."""
        return page.slice(0, rows)

    def join(self, pages: Sequence[Any]) -> Any:
        """Return all pages as one `pyarrow.Table`."""
        table = self._pa.concat_tables(pages) if pages else self.schema.empty_table()
        return table.unify_dictionaries()

    def table(self, columns: Sequence[Sequence[Any]]) -> Any:
        """Return columns of points, in the order of the schema, as a `pyarrow.Table`; arrays are not copied."""
        arrays = [self._array(column, field.type) for column, field in zip(columns, self.schema, strict=True)]
        return self._pa.Table.from_arrays(arrays, schema=self.schema)

    def reader(self, pages: Iterable[Any]) -> Any:
        """Return a `pyarrow.RecordBatchReader` that reads the pages as it is read."""
        return self._pa.RecordBatchReader.from_batches(self.schema, pages)

    def _array(self, column: Sequence[Any], kind: Any) -> Any:
        pa = self._pa
        if isinstance(column, Coded):
            codes = self._array(column.codes, kind.index_type)
            return pa.DictionaryArray.from_arrays(codes, pa.array(column.texts, kind.value_type))
        if isinstance(column, array):
            return pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(column)])
        return pa.array(column, kind)

    def _columns(self, connection: Connection, query: Query, shape: Shape) -> Arrays | None:
        pa, arrow = self._pa, traits_of(connection).arrow
        if arrow is None:
            found = _column_lists(connection, query, shape)
            if found is None:
                return None
            return {name: pa.chunked_array([column], _stored(pa, name)) for name, column in found.items()}
        batches, size = [], 0
        # Closed even after Ctrl-C: a transaction with a partly read result cannot be rolled back.
        with pa.RecordBatchReader.from_stream(arrow(connection, query.statement)) as reader:
            for batch in reader:
                size += batch.num_rows
                if 0 <= shape.most < size:
                    return None
                batches.append(batch)
            table = pa.Table.from_batches(batches, reader.schema)
        return dict(zip(table.column_names, table.columns, strict=True))

    def _sorted(self, columns: Arrays, by: str) -> Arrays:
        compute, key = self._compute, columns[by]
        if len(key) < 2 or compute.all(compute.less_equal(key[:-1], key[1:])).as_py():
            return columns
        order = self._order_of_seqs(key) if by == "seq" else None
        if order is None:
            order = compute.sort_indices(key)
        return {
            name: column if self._is_constant(column) else column.take(order)
            for name, column in columns.items()
        }

    def _order_of_seqs(self, seqs: Any) -> Any | None:
        """Return the order of seqs, which are distinct, without sorting them; None if they are far apart."""
        compute = self._compute
        bounds = compute.min_max(seqs).as_py()
        most = bounds["max"] - bounds["min"]
        if most >= 2 * len(seqs) or not hasattr(compute, "inverse_permutation"):  # since pyarrow 20
            return None
        places = self._pa.concat_arrays(compute.subtract(seqs, bounds["min"]).chunks)
        return compute.inverse_permutation(places, max_index=most).drop_null()

    def _is_constant(self, column: Any) -> bool:
        """Return whether all values are equal, as far as that is cheap to find out."""
        if column.null_count == len(column):
            return True
        if column.null_count or not self._pa.types.is_int32(column.type):
            return False
        bounds = self._compute.min_max(column).as_py()
        return bool(bounds["min"] == bounds["max"])

    def _named(self, found: Any, query: Query, at: int, size: int) -> Any:
        pa = self._pa
        if query.series is not None:
            numbers = pa.repeat(pa.scalar(0, pa.int32()), size)
            return pa.DictionaryArray.from_arrays(numbers, pa.array([query.series[at]], pa.string()))
        if query.names is not None:
            names = pa.array(query.names[at], pa.string())
            return pa.chunked_array(
                [pa.DictionaryArray.from_arrays(chunk, names) for chunk in found.chunks],
                self.schema.field(at).type,
            )
        return found.dictionary_encode()


class PolarsPages:
    """Pages as `polars.DataFrame`, with names as text until they are joined."""

    def __init__(self, *, with_seq: bool) -> None:
        self.with_seq = with_seq
        pl = self._pl = _needed("polars", "polars")
        types = {
            "sensor_id": pl.Categorical(),
            "metric_name": pl.Categorical(),
            "timestamp": pl.Datetime("us", "UTC"),
            "value": pl.Float64(),
            "value_text": pl.String(),
            "quality": pl.Int32(),
            "metadata": pl.String(),
        }
        self._types = types | ({"seq": pl.Int64()} if with_seq else {})

    def fetch(self, connection: Connection, query: Query, shape: Shape) -> Any | None:
        """Run the query; None if it has more rows than `shape.most`."""
        pl, arrow = self._pl, traits_of(connection).arrow
        if arrow is None:
            found = _column_lists(connection, query, shape)
            if found is None:
                return None
            stored = {"value": pl.Float64, "quality": pl.Int32, "timestamp_us": pl.Int64, "seq": pl.Int64}
            frame = pl.DataFrame(found, schema={name: stored.get(name, pl.String) for name in found})
        else:
            frame = pl.DataFrame(_ArrowStream(arrow(connection, query.statement)))
        if 0 <= shape.most < len(frame):
            return None
        if query.sorted_by is not None and not frame[query.sorted_by].is_sorted():
            frame = frame.sort(query.sorted_by)
        for at, name in enumerate(_NAMES):
            if query.series is not None:
                frame = frame.with_columns(pl.lit(query.series[at]).alias(name))
            elif query.names is not None:
                frame = frame.with_columns(pl.Series(name, query.names[at], pl.String).gather(frame[name]))
        return frame.rename({"timestamp_us": "timestamp"}).select(list(self._types))

    def size(self, page: Any) -> int:
        """Return its number of rows."""
        return len(page)

    def reversed(self, page: Any) -> Any:
        """Return the rows in reverse order."""
        return page.reverse()

    def first(self, page: Any, rows: int) -> Any:
        """Return the first rows."""
        return page.head(rows)

    def join(self, pages: Sequence[Any]) -> Any:
        """Return all pages as one frame."""
        pl = self._pl
        if not pages:
            return pl.DataFrame(schema=self._types)
        return pl.concat(pages).select(pl.col(name).cast(kind) for name, kind in self._types.items())


class NumpyPages:
    """Pages as dicts of arrays: `datetime64[us]`, float64 with NaN for missing, objects with None, masked int32."""

    def __init__(self, *, with_seq: bool) -> None:
        self.with_seq = with_seq
        self._np = _needed("numpy", "numpy")
        self._names = (*_COLUMNS, "seq") if with_seq else _COLUMNS

    def fetch(self, connection: Connection, query: Query, shape: Shape) -> Arrays | None:
        """Run the query; None if it has more rows than `shape.most`."""
        arrays = traits_of(connection).arrays
        found: Any = (
            _column_lists(connection, query, shape) if arrays is None else arrays(connection, query.statement)
        )
        if found is None or 0 <= shape.most < len(found["timestamp_us"]):
            return None
        return self._page(found, query)

    def size(self, page: Arrays) -> int:
        """Return its number of rows."""
        return len(page["timestamp"])

    def reversed(self, page: Arrays) -> Arrays:
        """Return the rows in reverse order."""
        return {name: column[::-1] for name, column in page.items()}

    def first(self, page: Arrays, rows: int) -> Arrays:
        """Return the first rows."""
        return {name: column[:rows] for name, column in page.items()}

    def join(self, pages: Sequence[Arrays]) -> Arrays:
        """Return all pages as one dict."""
        np = self._np
        if not pages:
            nothing: Arrays = {name: [] for name in (*self._names, "timestamp_us")}
            pages = [self._page(nothing, Query(Statement("", (), ()), None, None, None))]
        if len(pages) == 1:
            return pages[0]
        return {
            name: (np.ma if name == "quality" else np).concatenate([page[name] for page in pages])
            for name in self._names
        }

    def _page(self, found: Any, query: Query) -> Arrays:
        np = self._np
        size = len(found["timestamp_us"])
        page = {
            "timestamp": np.asarray(found["timestamp_us"], np.int64).view("datetime64[us]"),
            "value": self._filled(found["value"], np.float64, np.nan),
            "quality": self._masked(found["quality"]),
        }
        if "seq" in self._names:
            page["seq"] = np.asarray(found["seq"], np.int64)
        for name in _TEXTS:
            page[name] = self._filled(found[name], object, None)
        for at, name in enumerate(_NAMES):
            if query.series is not None:
                page[name] = np.full(size, query.series[at], object)
            elif query.names is not None:
                page[name] = np.array(query.names[at], object)[np.asarray(found[name], np.int64)]
            else:
                page[name] = np.asarray(found[name], object)
        if query.sorted_by is not None:
            key = page["seq" if query.sorted_by == "seq" else "timestamp"]
            if size > 1 and (key[1:] < key[:-1]).any():
                order = np.argsort(key)
                page = {name: column[order] for name, column in page.items()}
        return {name: page[name] for name in self._names}

    def _filled(self, found: Any, kind: Any, missing: Any) -> Any:
        np = self._np
        if not isinstance(found, np.ma.MaskedArray):
            return np.array(found, kind)
        array = np.array(found.data, kind)
        array[np.ma.getmaskarray(found)] = missing
        return array

    def _masked(self, found: Any) -> Any:
        np = self._np
        if isinstance(found, np.ndarray):
            return np.ma.array(found, np.int32)
        mask = [quality is None for quality in found]
        return np.ma.array([quality or 0 for quality in found], np.int32, mask=mask)


def arrow_table(columns: Sequence[Sequence[Any]]) -> Any:
    """Return columns of points with their seqs, in the order above, as a `pyarrow.Table`; arrays are not copied.

    Raises `MissingExtra` without pyarrow, and `UnicodeEncodeError` if a text has a lone surrogate.
    """
    return ArrowPages(with_seq=True).table(columns)


def to_pandas(read: Callable[[], Arrays]) -> Any:
    """Return the joined `NumpyPages` that `read` returns as a frame: names as categories, nullable Int32 qualities."""
    pd, np = _needed("pandas", "pandas"), _needed("numpy", "pandas")
    arrays = read()
    quality = arrays["quality"]
    columns: Arrays = {name: pd.Series(column) for name, column in arrays.items() if name in ("value", "seq")}
    columns["timestamp"] = pd.Series(pd.DatetimeIndex(arrays["timestamp"]).tz_localize("UTC"))
    columns["quality"] = pd.Series(pd.arrays.IntegerArray(quality.filled(0), np.ma.getmaskarray(quality)))
    for name in _NAMES:
        columns[name] = pd.Series(pd.Categorical(arrays[name]))
    for name in _TEXTS:
        columns[name] = pd.Series(arrays[name], dtype=object)
    return pd.DataFrame({name: columns[name] for name in arrays})


class _ArrowStream:
    """Exposes only the stream, so that no package recognizes the object as a type of its own."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._source.__arrow_c_stream__(requested_schema)


def _needed(package: str, extra: str) -> Any:
    try:
        return imported(package)
    except ImportError as error:
        raise missing_extra(f"this needs {package}, which is not installed", extra) from error


def _stored(pa: Any, column: str) -> Any:
    numbers = {"timestamp_us": pa.int64(), "seq": pa.int64(), "value": pa.float64(), "quality": pa.int32()}
    return numbers.get(column, pa.string())


def _column_lists(connection: Connection, query: Query, shape: Shape) -> dict[str, Sequence[Any]] | None:
    columns = traits_of(connection).lists(connection, query.statement, shape)
    return None if columns is None else dict(zip(query.statement.columns, columns, strict=True))
