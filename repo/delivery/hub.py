"""The tables of the hub: a PostgreSQL database that collects the points and records of many stores.

`alembic/hub` creates them; `repo.delivery.sinks.postgresql` fills them. Each primary key begins with `store_id`, so
Citus could distribute the tables by store. That is not tested.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Double, Integer, String, func, text
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE, JSON, Range
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "HUB_HEAD",
    "HUB_SCHEMA",
    "HUB_VERSION_TABLE",
    "HubBase",
    "HubPoint",
    "HubPosition",
    "HubRecord",
    "create_schema",
    "enter_schema",
]

HUB_SCHEMA = "holdfast"
"""The schema of the tables, unless another one is named."""

HUB_HEAD = "h001"
"""The revision of the tables that this program writes to."""

HUB_VERSION_TABLE = "holdfast_version"
"""Where Alembic keeps the revision of the hub, so that the schema may have tables of other programs."""

_Name = String(collation="C")
"""Compared by bytes: this is faster than by the rules of a language, and does not depend on the operating system."""


class HubBase(DeclarativeBase):
    """Base of the tables of a hub. They have no schema, because the caller sets the search path."""


class HubPoint(HubBase):
    """One reading of one store, with the epoch and the seq of the write that is stored.

    Partitioned by month, in UTC. The function `make_partition` adds the partition of a month; times before 2000 and
    from 2100 on have one partition each.
    """

    __tablename__ = "points"
    __table_args__ = {"postgresql_partition_by": "RANGE (timestamp_us)"}  # noqa: RUF012 - as SQLAlchemy has it

    store_id: Mapped[UUID] = mapped_column(primary_key=True)
    sensor_id: Mapped[str] = mapped_column(_Name, primary_key=True)
    metric_name: Mapped[str] = mapped_column(_Name, primary_key=True)
    timestamp_us: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    value: Mapped[float | None] = mapped_column(Double)
    value_text: Mapped[str | None] = mapped_column(String)
    quality: Mapped[int | None] = mapped_column(Integer)
    metadata_json: Mapped[str | None] = mapped_column("metadata", JSON)
    epoch: Mapped[int] = mapped_column(BigInteger)
    seq: Mapped[int] = mapped_column(BigInteger)


class HubRecord(HubBase):
    """One record of one store."""

    __tablename__ = "records"

    store_id: Mapped[UUID] = mapped_column(primary_key=True)
    record_id: Mapped[str] = mapped_column(_Name, primary_key=True)
    source: Mapped[str] = mapped_column(String)
    data: Mapped[str] = mapped_column(JSON)
    timestamp_us: Mapped[int] = mapped_column(BigInteger)


class HubPosition(HubBase):
    """How far one sink of one store has delivered: committed together with the points."""

    __tablename__ = "positions"

    store_id: Mapped[UUID] = mapped_column(primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sink: Mapped[str] = mapped_column(_Name, primary_key=True)
    token: Mapped[str] = mapped_column(String)
    """`Tokens.next` of the last batch."""
    ranges: Mapped[Range[int]] = mapped_column(INT8MULTIRANGE, server_default=text("'{}'"))
    """The seqs of all batches."""
    points: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """The points of all batches."""
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


def create_schema(schema: str) -> str:
    """Return the SQL that creates the schema of a hub unless it exists."""
    return f"CREATE SCHEMA IF NOT EXISTS {_quoted(schema)}"


def enter_schema(schema: str) -> str:
    """Return the SQL that makes the schema the search path, so that no table of another one is found."""
    return f"SET search_path TO {_quoted(schema)}, pg_temp"


def _quoted(schema: str) -> str:
    return '"' + schema.replace('"', '""') + '"'
