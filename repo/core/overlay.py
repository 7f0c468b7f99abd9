"""The overlay: shows readers the journal's tail together with a column file that this process may not change.

The column file is attached to a temporary database, which receives what flush would write into the file. A view joins
both, without the stored points that the tail overwrites or deletes. Rows are applied by the code that flush uses, so
the rules are the same; stored points that a row might change are first copied into the temporary database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    and_,
    delete,
    exists,
    select,
    text,
    union_all,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from repo.core.columns import OpenColumns
from repo.core.flush import MOST_ROWS, Flusher
from repo.core.reconcile import FileState, Known, is_what_was_flushed, refuse_foreign
from repo.core.scratch import ScratchFolder
from repo.core.work import JournalWork
from repo.engines.bare import BareConnection
from repo.engines.base import STORED, Backend
from repo.engines.registry import traits_of
from repo.errors import StoreReadOnly
from repo.models import Point, SeriesSummary
from repo.queries.order import UNSORTED
from repo.queries.rows import Row
from repo.queries.selection import Selection
from repo.repositories.apply import apply, incoming
from repo.repositories.series import SummaryRepository
from repo.repositories.state import ColumnsState, ColumnsStateRepository, State, StateRepository
from repo.repositories.verification import corrections

__all__ = ["OpenOverlay", "Tail"]

log = logging.getLogger("holdfast.columns")

_points: Any = Point.__table__
_stored: Any = _points.to_metadata(MetaData(), schema=STORED)

_summaries: Any = SeriesSummary.__table__

_own = MetaData()
_copied = Table(
    "holdfast_copied",
    _own,
    Column("sensor_id", String),
    Column("metric_name", String),
    Column("timestamp_us", BigInteger),
)
"""The identities of the stored points that were copied, and are read from the copy only."""

_deleted = Table(
    "holdfast_deleted",
    _own,
    Column("sensor_id", String),
    Column("metric_name", String),
    Column("start_us", BigInteger),
    Column("end_us", BigInteger),
    Column("through_seq", BigInteger),
)
"""The spans, [start, end), up to a seq, that deletes in the tail removed from the stored points of a series."""

_FIRST_US, _LAST_US = -(2**63), 2**63 - 1
_LAST_SEQ = 2**63 - 1

_SAME_SERIES = {
    table: and_(*(table.c[name] == _stored.c[name] for name in ("sensor_id", "metric_name")))
    for table in (_copied, _deleted, incoming)
}
_IS_VISIBLE = (
    ~exists().where(_SAME_SERIES[_copied], _copied.c.timestamp_us == _stored.c.timestamp_us),
    ~exists().where(
        _SAME_SERIES[_deleted],
        _stored.c.timestamp_us >= _deleted.c.start_us,
        _stored.c.timestamp_us < _deleted.c.end_us,
        _stored.c.seq <= _deleted.c.through_seq,
    ),
)


class OpenOverlay(OpenColumns):
    """A temporary database with the column file attached; nothing is attached if the file does not exist."""

    def __init__(self, backend: Backend) -> None:
        self._folder = ScratchFolder()
        self.has_file = backend.path.exists() and backend.path.stat().st_size + backend.log_bytes() > 0
        self._has_tail = False
        self._hides = False
        try:
            super().__init__(backend)
            with self.flush_connection.begin():
                for table in (_points, _summaries, _copied, _deleted):
                    self.flush_connection.execute(CreateTable(table))
        except BaseException:  # also after an interrupt; the caller gets nothing that could be closed
            self._folder.cleanup()
            raise
        self.stored: Engine = self.readers.execution_options(schema_translate_map={None: STORED})
        """For reading the tables of the attached file."""

    def _open(self) -> Engine:
        return self.backend.open_overlay(self._folder.path, attach=self.has_file)

    def take_reader(self) -> BareConnection:
        """Return a connection that sees the points of the file and of the tail as one table."""
        reader = super().take_reader()
        try:
            if self.has_file:
                view = self._view(reader.connection)
                reader.driver.execute(f"DROP VIEW IF EXISTS temp.{_points.name}")
                reader.driver.execute(f"CREATE TEMPORARY VIEW {_points.name} AS {view}")
        except BaseException:  # including an interrupt: nobody else has it
            self.discard(reader)
            raise
        return reader

    def close(self) -> None:
        """Close both databases, and remove the temporary one."""
        try:
            super().close()
        finally:
            self._folder.cleanup()

    def copy_stored(self, rows: Sequence[Row]) -> None:
        """Copy the stored points with the identities of these rows, so that the rows can be applied to the copies."""
        connection = self.flush_connection
        traits = traits_of(connection)
        with connection.begin():
            connection.execute(CreateTable(incoming, if_not_exists=True))
            traits.load(connection, incoming, rows)
            met = [
                tuple(row)
                for row in connection.execute(
                    select(_stored)
                    .join(
                        incoming,
                        and_(_SAME_SERIES[incoming], incoming.c.timestamp_us == _stored.c.timestamp_us),
                    )
                    .where(*_IS_VISIBLE)
                )
            ]
            connection.execute(delete(incoming))
        if met:
            with connection.begin():
                traits.load(connection, _points, met)
                traits.load(connection, _copied, [row[:3] for row in met])
            self._has_tail = self._hides = True

    def apply(self, rows: Sequence[Row], known: Known, *, keep: bool, returned: Set[int]) -> Known:
        """Apply rows that are unique by identity; returns the summaries after them."""
        with self.flush_connection.begin():
            applied = apply(self.flush_connection, rows, None, known, keep=keep, returned=returned)
        self._has_tail = True
        return applied.known

    def delete(self, deletion: Selection, known: Known) -> Known:
        """Apply a delete; returns the summaries after it, counted again."""
        connection = self.flush_connection
        spans = [
            (
                *pair,
                _FIRST_US if deletion.start_us is None else deletion.start_us,
                _LAST_US if deletion.end_us is None else deletion.end_us,
                _LAST_SEQ if deletion.through_seq is None else deletion.through_seq,
            )
            for pair in known
            if deletion.names(*pair)
        ]
        with connection.begin():
            traits_of(connection).load(connection, _deleted, spans)
            for piece in deletion.pieces(known):
                connection.execute(delete(_points).where(piece.where(Point, known)))
        self._hides = True
        reader = self.take_reader()
        try:
            changed, gone = corrections(reader.connection)
        finally:
            self.discard(reader)
        with connection.begin():
            SummaryRepository(connection).replace(changed, gone)
        return {pair: summary for pair, summary in (dict(known) | changed).items() if pair not in gone}

    def _view(self, connection: Connection) -> str:
        query: Any = select(*_stored.c)
        if self._hides:
            query = query.where(*_IS_VISIBLE)
        if self._has_tail:
            tail: Any = _points.to_metadata(MetaData(), schema=traits_of(connection).main_database)
            query = union_all(query, select(*tail.c))
        return str(query.compile(dialect=connection.dialect))


class Tail(Flusher):
    """Applies the journal's tail to the overlay. The journal and the column file stay unchanged."""

    def through(
        self, opened: OpenColumns, seq: int, _stop: Callable[[], bool] = lambda: False
    ) -> OpenColumns:
        """Apply the whole tail. The columns are not handed over before the end, because that would lose what was
        applied."""
        return super().through(opened, seq)

    def make_durable(self, opened: OpenColumns, *, keep_newest: bool = False) -> int:  # noqa: ARG002
        """Raise `StoreReadOnly`."""
        raise StoreReadOnly(f"{opened.backend.path} is opened for reading only", path=opened.backend.path)

    def checkpoint_if_due(self, opened: OpenColumns) -> OpenColumns:
        """Do nothing."""
        return opened

    def _most_points(self) -> int:
        """Return the maximum number of points of one transaction, which applies them as rows."""
        return min(self._settings.flush_batch_points, MOST_ROWS)

    def _void(self, dead: object) -> None:
        """Leave the rows of a load that died: they have no points."""

    def _commit_in_parts(self, opened: OpenColumns, work: JournalWork) -> OpenColumns:
        file = self._certain(opened)
        self._file = None
        overlay, known = file.opened, file.known
        assert isinstance(overlay, OpenOverlay)
        if work.deletion is not None:
            known = overlay.delete(work.deletion, known)
        if len(work.points):
            netted = work.points.netted(keep=work.keep)
            rows = list(netted.rows())
            late = [row for row in rows if _may_be_stored(row, known)]
            if late and overlay.has_file:
                overlay.copy_stored(late)
            known = overlay.apply(rows, known, keep=work.keep, returned=netted.returned)
        self._file = replace(file, state=file.state._replace(watermark=work.through), known=known)
        return overlay

    def _opened(self, opened: OpenColumns) -> None:
        assert isinstance(opened, OpenOverlay)
        self._file = None
        with self._metadata.read() as connection:
            facts = StateRepository(connection).get()
        assert facts is not None
        if not opened.has_file:
            state = ColumnsState(facts.store_id, facts.file_id or "", facts.generation, 0)
            known: Known = {}
        else:
            state, known = self._stored(opened, facts)
        if state.watermark < facts.pruned_through:
            log.warning(
                "%s lacks the points of the seqs %d to %d; open the store for writing once to account for them",
                opened.backend.path,
                state.watermark + 1,
                facts.pruned_through,
            )
            state = state._replace(watermark=facts.pruned_through)
        self._file = FileState(opened, state, known, (), facts.pruned_through, UNSORTED)

    def _stored(self, opened: OpenOverlay, facts: State) -> tuple[ColumnsState, Known]:
        """Return the state of the column file and its summaries, and copy these."""
        path = opened.backend.path
        self._refuse_other_schema(opened)
        with opened.stored.begin() as connection:
            state = ColumnsStateRepository(connection).get()
            known = SummaryRepository(connection).all()
        if state is None:
            state = ColumnsState(facts.store_id, facts.file_id or "", facts.generation, 0)
        refuse_foreign(state, facts, path)
        with self._metadata.read() as connection:
            agrees = facts.last_seq >= state.watermark and is_what_was_flushed(connection, state, facts)
        if not agrees:
            raise StoreReadOnly(
                f"the metadata of {path} is older than its columns; open the store once for writing, which repairs it",
                path=path,
            )
        with opened.flush_connection.begin():
            SummaryRepository(opened.flush_connection).replace(known)
        return state, known

    def _refuse_other_schema(self, opened: OpenOverlay) -> None:
        path = opened.backend.path
        try:
            with opened.readers.begin() as connection:
                found = (
                    connection.execute(text(f"SELECT version_num FROM {STORED}.alembic_version"))
                    .scalars()
                    .first()
                )
        except DBAPIError as error:
            if "alembic_version" not in str(error.orig):
                raise
            found = None
        self._active.refuse_schema(found, path)


def _may_be_stored(row: Row, known: Known) -> bool:
    summary = known.get((row[0], row[1]))
    return summary is not None and summary.first_us <= row[2] <= summary.last_us
