"""The files of a store: their names, their places and the links between them. Opens none of them."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from repo.engines.registry import ENGINES, LEGACY, METADATA, engine_named
from repo.errors import InvalidSettings, system_typed
from repo.inputs.arguments import check_path
from repo.processes.lease import LEASE_FILE, TURN_FILE
from repo.settings import CONFIG_FILE

__all__ = [
    "ACKNOWLEDGED_FILE",
    "LOCK_FILES",
    "METADATA_FILE",
    "RESERVE_FILE",
    "WRITE_FILE",
    "WRITE_TURN_FILE",
    "StoreFiles",
    "check_store_path",
    "find_files",
    "place_columns",
]

METADATA_FILE = "offline_buffer.db"
WRITE_FILE, WRITE_TURN_FILE = "write.lock", "write-turn.lock"
ACKNOWLEDGED_FILE = "acknowledged.mark"
RESERVE_FILE = "reserve.space"
LOCK_FILES = (LEASE_FILE, TURN_FILE, WRITE_FILE, WRITE_TURN_FILE)
BESIDE_SUFFIX = ".meta.db"

_LEGACY_FILE = LEGACY.file_name
_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash, because a Path has joined two


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """The files of one store.

    Usually they are all in one folder. A store can also be created next to a column file: its metadata database is then
    `<name>.meta.db`, and `prefix` distinguishes its lock files from those of other stores in the folder.
    """

    folder: Path
    metadata: Path
    paths: Mapping[str, Path]
    """The column file of each engine, by its name."""
    prefix: str = ""

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> StoreFiles:
        """Return the files of the store at a path, which is its folder or the column file that it is next to.

        Links are followed, so that every path to a store gives the same file names.
        """
        given = Path(path)
        with system_typed(given):
            if not given.is_dir() and (given.is_file() or _metadata_beside(given).exists()):
                return cls.beside(given)
            return cls._of_folder(given)

    @classmethod
    def beside(cls, column_file: str | os.PathLike[str]) -> StoreFiles:
        """Return the files of the store whose columns are in this file, which may be a store in a folder."""
        with system_typed(Path(column_file)):
            return cls._of_columns(_followed(Path(column_file)))

    @classmethod
    def _of_folder(cls, folder: Path) -> StoreFiles:
        metadata = _followed(folder / METADATA_FILE)
        if metadata.name.endswith(BESIDE_SUFFIX):
            return cls._beside(metadata.with_name(metadata.name.removesuffix(BESIDE_SUFFIX)))
        if not metadata.exists() and _metadata_beside(folder / _LEGACY_FILE).is_file():
            return cls._beside(folder / _LEGACY_FILE)
        return cls(
            folder,
            metadata,
            {name: _followed(folder / engine.file_name) for name, engine in ENGINES.items()},
        )

    @classmethod
    def _of_columns(cls, file: Path) -> StoreFiles:
        metadata = _followed(_metadata_beside(file))
        if metadata.name == METADATA_FILE:
            return cls._of_folder(metadata.parent)
        in_folder = (
            file.name in {engine.file_name for engine in ENGINES.values()}
            and (file.parent / METADATA_FILE).exists()
        )
        if in_folder and not metadata.exists():
            return cls._of_folder(file.parent)
        return cls._beside(file)

    @classmethod
    def _beside(cls, file: Path) -> StoreFiles:
        paths = {}
        for name, engine in ENGINES.items():
            suffix = Path(engine.file_name).suffix
            other = file.with_suffix(suffix) if file.suffix != suffix else Path(f"{file}{suffix}")
            paths[name] = file if name == LEGACY.name else other
        return cls(file.parent, _metadata_beside(file), paths, f"{file.name}.")

    @property
    def duckdb(self) -> Path:
        """The file of the legacy program for points, which may be in another folder: see `place_columns`."""
        return self.columns(LEGACY.name)

    @property
    def path(self) -> Path:
        """The name of the store in commands and reports: its folder, or the column file that it is next to."""
        return self.duckdb if self.prefix else self.folder

    @property
    def scratch(self) -> Path:
        """The folder for temporary files of an engine."""
        return self.folder / f"{self.prefix}tmp"

    @property
    def acknowledged(self) -> Path:
        """The file with the last acknowledged seq and record id; see `repo.core.acknowledged`."""
        return self.folder / f"{self.prefix}{ACKNOWLEDGED_FILE}"

    @property
    def reserve(self) -> Path:
        """The file whose space is released on a full disk; see `repo.core.reserve`. Backups and restores leave it
        alone."""
        return self.folder / f"{self.prefix}{RESERVE_FILE}"

    @property
    def backups(self) -> Path:
        """The folder of the backups that migrations make, with a folder for each backup."""
        return self.folder / f"{self.prefix}backups"

    @property
    def apart(self) -> bool:
        """Whether the column file is not at its usual place in the store's folder."""
        return bool(self.prefix) or self.duckdb.parent != self.folder

    def command(self, what: str) -> str:
        """Return a command line for this store that a user can paste, for messages."""
        return f"holdfast --store {shlex.quote(str(self.path))} {what}"

    def columns(self, engine: str) -> Path:
        """Return the column file of an engine; raises `StoreUnsupported` for an unknown one."""
        return self.paths[engine_named(engine).name]

    def with_columns(self, engine: str, file: Path) -> StoreFiles:
        """Return the same files, but with this column file for an engine."""
        return replace(self, paths={**self.paths, engine: file})

    def is_writable(self) -> bool:
        """Return whether this process may change the folder and every database file that exists.

        False for files of another user, and on a file system that is mounted read-only.
        """
        databases = [file for file in (self.metadata, *self.paths.values()) if file.exists()]
        places = {self.folder, *(file.parent for file in databases)}
        return all(os.access(path, os.W_OK) for path in (*places, *databases))

    def folders(self) -> list[Path]:
        """Return the folders of its files that exist; they may be on several disks."""
        places = {self.folder, self.metadata.parent, *(path.parent for path in self.paths.values())}
        return sorted(place for place in places if place.exists())

    def metadata_files(self) -> list[Path]:
        """Return the metadata database and its log; they may not exist."""
        return [self.metadata, METADATA.log_of(self.metadata)]

    def column_files(self) -> list[Path]:
        """Return the column files of all engines and their logs; most do not exist."""
        return [file for name, path in self.paths.items() for file in (path, ENGINES[name].log_of(path))]

    def owns(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a file of this name is, or might become, a file of the store: a database, a log, a backup."""
        given = Path(path)
        folder = Path(os.path.realpath(given.parent))
        named = (
            self.metadata,
            *self.paths.values(),
            self.acknowledged,
            self.reserve,
            *(self.folder / f"{self.prefix}{name}" for name in LOCK_FILES),
            self.folder / CONFIG_FILE,
        )
        return any(
            given.name.startswith(own.name) and folder == Path(os.path.realpath(own.parent)) for own in named
        ) or any(folder.is_relative_to(os.path.realpath(own)) for own in (self.backups, self.scratch))

    def kept(self) -> list[Path]:
        """Return the files that were set aside: inactive columns, and damaged logs."""
        return sorted(
            path
            for own in set(self.paths.values())
            for path in own.parent.glob(f"{glob.escape(own.name)}*")
            if ".inactive-" in path.name or ".corrupt-" in path.name
        )


def check_store_path(path: object) -> Path:
    """Return the real path of a store, as a caller names it; raises `InvalidSettings` for what cannot be a path.

    That includes the names that other databases accept: `:memory:` and URLs.
    """
    given = check_path(path, "the path of a store", error=InvalidSettings)
    if str(given) == ":memory:":
        raise InvalidSettings(
            "a store is a folder on a disk, so ':memory:' is not possible; use tempfile.TemporaryDirectory() for a "
            "store that is removed afterwards"
        )
    if _URL.match(str(given)):
        raise InvalidSettings(
            f"{given} is a URL, but a store is a folder of this machine; give a path such as ./data/edge"
        )
    return Path(os.path.realpath(given))


def find_files(path: str | os.PathLike[str], elsewhere: str | os.PathLike[str] | None) -> StoreFiles:
    """Return the files of the store at a path. If its folder has no columns, they may be `elsewhere`.

    That is the DuckDB file that `DUCKDB_STORAGE_PATH` named for the legacy program, which created no link to it. It is
    ignored if it does not exist, or belongs to another store. Nothing is changed: see `place_columns`.
    """
    files = StoreFiles.of(check_store_path(path))
    linked = files.prefix or os.path.lexists(files.folder / _LEGACY_FILE)
    others = (path for name, path in files.paths.items() if name != LEGACY.name)
    if elsewhere is None or linked or any(path.exists() for path in others) or not files.metadata.exists():
        return files
    file = Path(os.path.realpath(elsewhere))
    owner = StoreFiles.beside(file).metadata
    if not file.is_file() or (owner.exists() and owner != files.metadata):
        return files
    return files.with_columns(LEGACY.name, file)


def place_columns(folder: Path, file: Path) -> None:
    """Place the DuckDB file of the store in this folder elsewhere, permanently.

    A link in the folder points to the file, and a link next to the file points back, so that the store is found from
    both places. If a store already exists next to that file, the folder becomes another path to it. Raises
    `InvalidSettings` if the folder's store has its columns elsewhere, or two stores would be joined.
    """
    folder, file = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
    own, link, back = folder / METADATA_FILE, folder / _LEGACY_FILE, _metadata_beside(file)
    files = StoreFiles.of(folder)
    if file == Path(os.path.realpath(files.duckdb)):
        if files.prefix and not own.exists():
            _link(own, files.metadata)
        return
    if os.path.lexists(link):
        raise InvalidSettings(
            f"the store in {folder} has its columns in {os.path.realpath(link)}, not in {file}: while nothing uses "
            f"it, move the file and its log there and remove {link}, or name the file where it is",
            path=folder,
        )
    owner = StoreFiles.beside(file).metadata
    foreign = owner.exists() and owner != own
    if foreign and (own.exists() or owner.name == METADATA_FILE):
        raise InvalidSettings(
            f"{file} has the columns of the store {owner}, but {folder} is another store, and two stores cannot be "
            "joined: name another file, or the folder of that store",
            path=file,
        )
    with system_typed(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        _link(link, file)
        if foreign:
            _link(own, owner)
        elif not os.path.lexists(back):
            _link(back, own)


def _metadata_beside(file: Path) -> Path:
    return file.with_name(file.name + BESIDE_SUFFIX)


def _followed(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _link(link: Path, target: Path) -> None:
    # A relative link, so that a folder with both files can be moved as a whole.
    try:
        link.symlink_to(os.path.relpath(target, link.parent))
    except FileExistsError:
        if _followed(link) != target:
            raise
