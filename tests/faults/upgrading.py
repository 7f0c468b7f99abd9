"""The code of the processes that upgrade stores and are killed. Judges nothing."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from repo.errors import StoreBusy
from repo.schema import backup, runner
from repo.schema import upgrade as migrating
from repo.schema.upgrade import migrate_store
from repo.settings import Settings
from repo.store.store import Store

__all__ = [
    "BACKED_UP",
    "BACKING_UP",
    "BEGUN",
    "DONE",
    "NUMBERING",
    "RESTORED",
    "Rollout",
    "Upgrade",
    "reached",
]

BEGUN = "begun"
BACKING_UP = "in the backup"
BACKED_UP = "backed up"
RESTORED = "records restored"
DONE = "done"

_STATEMENTS = {
    "numbering the points": "INSERT INTO time_series_data_0003",
    "replacing the points": "DROP TABLE time_series_data",
    "numbering the summaries": "INSERT INTO series_0003",
    "committing 0003": "UPDATE alembic_version SET version_num='0003'",
    "checkpointing 0003": "CHECKPOINT",
}
NUMBERING = tuple(_STATEMENTS)
"""The steps inside revision 0003 on the columns, in their order."""


def reached(database: str, revision: str) -> str:
    """Return the name of the state in which one database has reached a revision."""
    return f"{database} at {revision}"


@dataclass(slots=True)
class Upgrade:
    """One upgrade of one store, which reports its progress."""

    folder: Path
    opens: bool
    """Whether to open the store, which also upgrades it, or to call the migration."""

    def live(self, say: Callable[[str], None]) -> None:
        """Upgrade, and report each state."""
        tell(say)
        say(BEGUN)
        if self.opens:
            Store(self.folder, Settings(background=False)).close()
        else:
            migrate_store(self.folder)
        say(DONE)


@dataclass(slots=True)
class Rollout:
    """One process that upgrades many stores, one after the other; others may work on the same ones."""

    folders: list[Path]

    def live(self, say: Callable[[str], None]) -> None:
        """Upgrade all stores, and report the name of each."""
        for folder in self.folders:
            while True:
                try:
                    migrate_store(folder)
                except StoreBusy:
                    time.sleep(0.05)
                else:
                    break
            say(f"{DONE} {folder.name}")


def tell(say: Callable[[str], None]) -> None:
    """Report each state of the upgrades in this process."""
    _tell_numbering(say)
    make, upgrade, restore = backup.make, runner.upgrade, migrating._Run._restore

    @functools.wraps(make)
    def telling_make(*given: Any, **named: Any) -> Any:
        say(BACKING_UP)
        made = make(*given, **named)
        say(BACKED_UP)
        return made

    @functools.wraps(upgrade)
    def telling_upgrade(engine: Any, database: Any, to: str = "head", **named: Any) -> Any:
        done = upgrade(engine, database, to, **named)
        say(reached(database, to))
        return done

    @functools.wraps(restore)
    def telling_restore(*given: Any, **named: Any) -> Any:
        done = restore(*given, **named)
        say(RESTORED)
        return done

    backup.make = telling_make
    runner.upgrade = telling_upgrade
    migrating._Run._restore = telling_restore  # type: ignore[method-assign]


def _tell_numbering(say: Callable[[str], None]) -> None:
    """Report each step inside revision 0003 when its first statement begins; other revisions have some, too."""
    left = list(_STATEMENTS.items())

    def begins(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if left and " ".join(statement.split()).startswith(left[0][1]):
            say(left.pop(0)[0])

    event.listen(Engine, "before_cursor_execute", begins)
