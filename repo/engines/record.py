"""The record of an engine: its names, its files, their space, and how it is opened. Imports no driver."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repo.errors import EngineMissing

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from repo.clock import Clock
    from repo.engines.base import Backend, Traits
    from repo.settings import Settings

__all__ = ["EngineRecord"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """An engine that can store the columns of a store.

    The functions import the driver only when they are called, so that listing the engines imports none.
    """

    name: str
    """The name of its SQLAlchemy dialect, and its value in the setting `engine`."""
    title: str
    """Its name in messages."""
    file_name: str
    """The name of its column file in the folder of a store."""
    companions: tuple[str, ...]
    """The files that may belong to a database file, as suffixes of its name; the log comes first."""
    disposable: frozenset[str] = frozenset()
    """Companions without lasting content: the engine recreates them when it opens the file, so a copy omits them."""

    signature: tuple[int, bytes]
    """Where its database files have which bytes, by which they are recognized."""
    bytes_a_point: int
    """The bytes that a point may take in a new file, without its texts and names; a generous estimate."""
    names_a_point: int
    """How many times each point stores the names of its series."""
    rewrite_factor: float
    """The bytes that rewriting a table may take, as a multiple of the file size."""
    deleted_row_bytes: int
    """The bytes that a deleted row takes in the log."""

    why_missing: Callable[[], str | None]
    """Return why the engine cannot be used here, or None if it can."""
    remedy: str
    """The next step for the user if it cannot be used, for the message of `EngineMissing`."""
    make_backend: Callable[[Path, Path, Settings, Clock], Backend]
    """Return the backend of a column file; called by `open`, with the same arguments."""
    traits: Callable[[], Traits]
    """Return its traits. Call it only if the engine can be used."""

    copy: Callable[[Path, Path, Callable[[int], object]], None] | None = None
    """Copy a database and the content of its log, durably, and report the bytes of each piece. None if the log must be
    checkpointed first; the file is then copied as it is."""
    wait_until_unused: Callable[[Path, float, Callable[[Connection], bool]], None] | None = None
    """Return once no other process has the file open, or at once if the given function returns True for a read-only
    connection. Raises `StoreBusy` after the given number of seconds. None if the engine itself allows only one process
    per file."""

    def require(self, path: Path) -> None:
        """Raise `EngineMissing`, which names the column file `path`, if the engine cannot be used here."""
        if why := self.why_missing():
            raise EngineMissing(
                f"{path} needs {self.title}, which cannot be used here ({platform.machine()}): {why}. {self.remedy}. "
                "Writes and records work without it",
                path=path,
            )

    def open(self, path: Path, scratch: Path, settings: Settings, clock: Clock) -> Backend:
        """Return the backend, whose `open` is the only way to open a column file; raises `EngineMissing`.

        `scratch` is a folder for temporary files of the engine. No file is opened yet.
        """
        self.require(path)
        self.traits()  # imported now, because an import needs a descriptor, and later none may be left
        return self.make_backend(path, scratch, settings, clock)

    def recognizes(self, head: bytes) -> bool:
        """Return whether a file that begins with these bytes is a database of this engine."""
        start, expected = self.signature
        return head[start : start + len(expected)] == expected

    def beside(self, path: Path) -> list[Path]:
        """Return the companions of a database file of this engine, which may not exist."""
        return [path.with_name(path.name + suffix) for suffix in self.companions]

    def log_of(self, path: Path) -> Path:
        """Return the log of a database file, which may not exist."""
        return path.with_name(path.name + self.companions[0])
