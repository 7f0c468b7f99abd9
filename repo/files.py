"""Where the files of a store are: owns their names and the links between them, opens none of them."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from repo.engines.registry import ENGINES, LEGACY, METADATA, engine_named
from repo.errors import InvalidSettings, system_typed
from repo.lease import LEASE_FILE, TURN_FILE
from repo.settings import CONFIG_FILE

__all__ = [
    "ACKNOWLEDGED_FILE",
    "LOCK_FILES",
    "METADATA_FILE",
    "WRITE_FILE",
    "WRITE_TURN_FILE",
    "StoreFiles",
    "find_files",
    "place_columns",
]

METADATA_FILE = "offline_buffer.db"
WRITE_FILE, WRITE_TURN_FILE = "write.lock", "write-turn.lock"
ACKNOWLEDGED_FILE = "acknowledged.mark"
LOCK_FILES = (LEASE_FILE, TURN_FILE, WRITE_FILE, WRITE_TURN_FILE)
BESIDE_SUFFIX = ".meta.db"

_LEGACY_FILE = LEGACY.file_name


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """The files of one store.

    Mostly a folder of its own holds them all. A store may also be made beside a column file: then its metadata
    database is `<name>.meta.db`, and `prefix` keeps its lock files apart from those of its neighbours.
    """

    folder: Path
    metadata: Path
    paths: Mapping[str, Path]
    """The column file of each engine, by its name."""
    prefix: str = ""

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> StoreFiles:
        """Return the files of the store that a path means: its folder, or the column file that it stands beside.

        Links are followed, so that whichever way one comes, a store's files have one name each.
        """
        given = Path(path)
        with system_typed(given):
            if not given.is_dir() and (given.is_file() or _metadata_beside(given).exists()):
                return cls.beside(given)
            return cls._of_folder(given)

    @classmethod
    def beside(cls, column_file: str | os.PathLike[str]) -> StoreFiles:
        """Return the files of the store whose columns are in this file: the folder's, if it is a folder's."""
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
        """The file that the legacy program kept its points in, which may lie elsewhere: see `place_columns`."""
        return self.columns(LEGACY.name)

    @property
    def path(self) -> Path:
        """What names the store, in commands and reports: its folder, or the column file that it was made beside."""
        return self.duckdb if self.prefix else self.folder

    @property
    def scratch(self) -> Path:
        """The folder for what an engine sets aside while it works."""
        return self.folder / f"{self.prefix}tmp"

    @property
    def acknowledged(self) -> Path:
        """The file that says how far the store was acknowledged; see `repo.core.acknowledged`."""
        return self.folder / f"{self.prefix}{ACKNOWLEDGED_FILE}"

    @property
    def backups(self) -> Path:
        """The folder of the backups that migrations make, a folder each."""
        return self.folder / f"{self.prefix}backups"

    @property
    def apart(self) -> bool:
        """Whether the column file has a place of its own, not that of its kind in the store's folder."""
        return bool(self.prefix) or self.duckdb.parent != self.folder

    def command(self, what: str) -> str:
        """Return the command line that does this to the store, for messages: it can be pasted as it is."""
        return f"holdfast --store {shlex.quote(str(self.path))} {what}"

    def columns(self, engine: str) -> Path:
        """Return the column file of an engine; raises `StoreUnsupported` for an unknown one."""
        return self.paths[engine_named(engine).name]

    def with_columns(self, engine: str, file: Path) -> StoreFiles:
        """Return the same files with another column file of an engine."""
        return replace(self, paths={**self.paths, engine: file})

    def metadata_files(self) -> list[Path]:
        """Return the metadata database and its log; they may not exist."""
        return [self.metadata, METADATA.log_of(self.metadata)]

    def column_files(self) -> list[Path]:
        """Return the column files of all engines and their logs; most do not exist."""
        return [file for name, path in self.paths.items() for file in (path, ENGINES[name].log_of(path))]

    def owns(self, path: str | os.PathLike[str]) -> bool:
        """Say whether a file of this name is, or might become, one of the store's: a database, its log, a backup."""
        given = Path(path)
        folder = Path(os.path.realpath(given.parent))
        named = (
            self.metadata,
            *self.paths.values(),
            self.acknowledged,
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


def find_files(path: str | os.PathLike[str], elsewhere: str | os.PathLike[str] | None) -> StoreFiles:
    """Return the files of the store that a path means; one without columns in its folder may have them `elsewhere`.

    That is the DuckDB file that `DUCKDB_STORAGE_PATH` named to the legacy program, which left no link to it. None is
    taken that is not there, or is another store's. Nothing is changed: see `place_columns`.
    """
    files = StoreFiles.of(os.path.realpath(path))
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
    """Let the DuckDB file of the store in this folder lie elsewhere, for good.

    A link in the folder says where, and one beside the file leads back, so that the store is found from both
    ends. If a store was made beside that file before, the folder becomes another door to it. Raises
    `InvalidSettings` if the folder's store has its columns in another place, or would become two stores.
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
            f"it, move the file and its log there and remove {link}, or name the place where it is",
            path=folder,
        )
    owner = StoreFiles.beside(file).metadata
    foreign = owner.exists() and owner != own
    if foreign and (own.exists() or owner.name == METADATA_FILE):
        raise InvalidSettings(
            f"{file} holds the columns of the store {owner}, and {folder} is another; two stores cannot become "
            "one: name another file, or that folder",
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
    # Relative, so that a folder with both can be moved as a whole.
    try:
        link.symlink_to(os.path.relpath(target, link.parent))
    except FileExistsError:
        if _followed(link) != target:
            raise
