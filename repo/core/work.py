"""Work: what one transaction of a flush applies to the columns, and how journal rows are applied."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from sqlalchemy import Connection

from repo.core.incoming import Incoming
from repo.core.reconcile import Known
from repo.core.undisturbed import undisturbed
from repo.engines.registry import traits_of
from repo.queries.selection import Selection
from repo.repositories.apply import Applied, apply
from repo.repositories.apply_table import Arriving, Part, merge, survey

__all__ = ["JournalWork", "Work"]

POINTS_NAME = "holdfast_points"
"""The name under which the points of a flush are registered with DuckDB."""

MERGED_FROM = 5_000
"""From this number on points are merged as columns, if the engine can; fewer are applied faster as rows."""


class Work(Protocol):
    """The content of one transaction: journal rows through a seq, with their digest."""

    @property
    def through(self) -> int:
        """The last seq of these journal rows."""

    @property
    def digest(self) -> int:
        """Their `digest_of`."""

    @property
    def journalled(self) -> bool:
        """Whether the journal rows contain the points. If not, nothing may refer to them before they are durable."""

    @property
    def is_part(self) -> bool:
        """Whether another part of the same journal rows follows; the watermark then does not move yet."""

    @property
    def copies(self) -> bool:
        """Whether the touched summaries are copied to the metadata afterwards."""

    def apply(self, connection: Connection, known: Known) -> Applied:
        """Apply the work in the connection's transaction; `known` holds the summaries before it."""

    def loss(self, applied: Applied) -> tuple[str, str, str] | None:
        """Return the ledger entry for what was dropped: id, reason, detail; None if nothing was dropped."""


@dataclass(slots=True)
class JournalWork:
    """At most one delete, which comes first, and the points that follow it."""

    journalled: ClassVar[bool] = True
    through: int
    digest: int
    deletion: Selection | None = None
    deletion_seq: int = 0
    keep: bool = False
    points: Incoming = field(default_factory=Incoming)
    is_part: bool = False
    copies: bool = True

    @property
    def size(self) -> int:
        """The number of parts into which it can be split."""
        return len(self.points) + (self.deletion is not None)

    def halves(self) -> list[JournalWork]:
        """Split it in two: the delete and the points, or else the earlier and the later points."""
        if self.deletion is not None:
            first = replace(self, points=Incoming(), is_part=True, copies=False)
            return [first, replace(self, deletion=None, copies=False)]
        earlier, later = self.points.halves()
        return [
            replace(self, points=earlier, is_part=True, copies=False),
            replace(self, points=later, copies=False),
        ]

    def apply(self, connection: Connection, known: Known) -> Applied:
        """Apply the delete and the points; see `Work`."""
        if len(self.points) < MERGED_FROM or not traits_of(connection).joins_objects:
            netted = self.points.netted(keep=self.keep)
            rows = list(netted.rows())
            return apply(connection, rows, self.deletion, known, keep=self.keep, returned=netted.returned)
        applied: list[Applied] = []
        undisturbed(lambda: applied.append(self._merged(connection, known)))  # see `MemoryTable`
        return applied[0]

    def _merged(self, connection: Connection, known: Known) -> Applied:
        points = self.points
        table = points.table()
        groups, unique = survey(connection, POINTS_NAME, table)
        if not unique:
            points = points.netted(keep=self.keep)
            table = points.table()
            groups, _ = survey(connection, POINTS_NAME, table)
        series = points.batch.series
        parts = {
            series[code]: Part(count, first_us, last_us, points.end_of(seq))
            for code, count, first_us, last_us, seq in groups
        }
        arriving = Arriving(
            *(POINTS_NAME, table, points.select(POINTS_NAME), len(points), parts),
            unique=True,
            returned=points.returned,
        )
        return merge(connection, arriving, self.deletion, known, keep=self.keep)

    def loss(self, applied: Applied) -> tuple[str, str, str] | None:
        """Return the ledger entry for what the delete dropped; see `Work`."""
        if self.deletion is None or not applied.dropped.count:
            return None
        return str(self.deletion_seq), "delete", self.deletion.to_json().decode()
