"""The schema version of a database, compared with this program's. Reads only; light to import."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from repo.errors import SchemaTooNew, StoreCorrupt

__all__ = ["HEAD", "REVISIONS", "VersionStatus", "compare", "too_new", "version_of"]

REVISIONS = ("0001", "0002", "0003", "0004")
"""Every revision, oldest first; a test holds it equal to the migration scripts."""

HEAD = REVISIONS[-1]

_STORED = text("SELECT version_num FROM alembic_version")


class VersionStatus(StrEnum):
    """How the version of a database compares with `HEAD`."""

    UNVERSIONED = "unversioned"
    """No migration has run: the database is empty, or from the legacy program."""

    OUTDATED = "outdated"
    HEAD = "head"
    TOO_NEW = "too new"
    """The revision is unknown here, so a newer program wrote it."""


def version_of(connection: Connection, path: Path | None = None, *, is_versioned: bool = False) -> str | None:
    """Return the revision of the database, or None if no migration has run on it.

    With `is_versioned`, the caller has read a revision there before, so the check for its table is skipped. Reads in
    the connection's transaction. Raises `StoreCorrupt` if the database has more than one revision, since the
    history is linear; the message then names the file `path`.
    """
    # Checked first: in DuckDB an error would abort the caller's transaction.
    if not is_versioned and not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(_STORED).scalars().all()
    if len(found) > 1:
        raise StoreCorrupt(
            f"alembic_version of {path or _name(connection)} has {len(found)} revisions ({', '.join(found)}), "
            "but can have only one; restore a backup",
            path=path,
        )
    return str(found[0]) if found else None


def compare(found: str | None) -> VersionStatus:
    """Compare a version read by `version_of` with this program's."""
    if found is None:
        return VersionStatus.UNVERSIONED
    if found not in REVISIONS:
        return VersionStatus.TOO_NEW
    return VersionStatus.HEAD if found == HEAD else VersionStatus.OUTDATED


def too_new(found: str | None, path: Path) -> SchemaTooNew:
    """Return the error for a version that this program does not know."""
    return SchemaTooNew(
        f"{path} is at schema version {found}, which this program (at {HEAD}) does not know: a newer one "
        "wrote it; update the package",
        path=path,
    )


def _name(connection: Connection) -> str:
    return str(connection.engine.url.database or "the database")
