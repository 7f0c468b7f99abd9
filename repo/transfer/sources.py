"""Sources: the files of an import, and whether they are undamaged. Never reads a point.

A file is compared with its SHA-256, if its bundle's manifest or a file `NAME.sha256` next to it has one. Inside a
folder no symbolic link is followed, and nothing outside it is opened.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from repo.disk.durable import digest
from repo.errors import InvalidFile, StoreCorrupt, file_error
from repo.formats.files.bundle import BUNDLE, DRAFT, MANIFEST, VERSION
from repo.inputs.arguments import check_path, shown
from repo.processes.inuse import refuse_own

__all__ = ["Source", "listed", "sources_of"]

log = logging.getLogger("holdfast.sources")

_MOST_TEXT_BYTES = 8_000_000
"""A larger manifest (about 24,000 days) is not read: each byte of malicious JSON can take 24 in memory."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # so that opening a pipe does not block
_ENDINGS = (".parquet", ".parq", ".pq", ".ndjson.gz")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(slots=True)
class Source:
    """One file to import. `inside` is the folder given by the caller, if the file was found in it."""

    path: Path
    inside: Path | None = None
    sha256: str | None = None
    bytes: int | None = None
    points: int | None = None
    """What the manifest says about it."""
    _seen: tuple[int, ...] = field(default=(), repr=False)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Give a descriptor of the file; `InvalidFile` if it cannot be opened, is not regular, or has changed."""
        with ExitStack() as stack:
            try:
                descriptor = self._descriptor(stack)
            except OSError as error:
                if self.inside is not None and error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise InvalidFile(
                        f"{self.path} is a symbolic link, or below one, and links inside a folder are not followed; "
                        "put the file there, or give its path",
                        path=self.path,
                    ) from error
                raise file_error(error, self.path, "read") from error
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InvalidFile(f"{self.path} is not a regular file", path=self.path)
            mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if self._seen and self._seen != mark:
                raise InvalidFile(f"{self.path} changed during the import; import it again", path=self.path)
            self._seen = mark
            yield descriptor

    def verify(self, descriptor: int) -> bool:
        """Compare the file with its checksum and size; False if it has no checksum. `StoreCorrupt` if they differ."""
        size = os.fstat(descriptor).st_size
        if self.bytes is not None and size != self.bytes:
            raise self._damaged(f"has {size:,} bytes, not {self.bytes:,}")
        if self.sha256 is None:
            return False
        if digest(descriptor) != self.sha256:
            raise self._damaged("does not have its SHA-256")
        return True

    def _damaged(self, what: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"{self.path} is damaged: it {what}. Nothing was stored; copy it again, or omit it",
            path=self.path,
        )

    def _descriptor(self, stack: ExitStack) -> int:
        if self.inside is None:
            refuse_own(self.path)
            descriptor = os.open(self.path, _FILE)
        else:
            *folders, name = self.path.relative_to(self.inside).parts
            at = _held(stack, os.open(self.inside, _FOLDER))
            for folder in folders:
                at = _held(stack, os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=at))
            refuse_own(name, folder=at)
            descriptor = os.open(name, _FILE | os.O_NOFOLLOW, dir_fd=at)
        return _held(stack, descriptor)


def sources_of(paths: Iterable[Path]) -> list[Source]:
    """Return the files that these paths denote: files, folders, bundles. Raises `InvalidFile`, naming the path."""
    found: list[Source] = []
    for path in paths:
        if path.is_dir():
            found += _in_bundle(path) if _has_manifest(path) else _in_folder(path)
        else:
            found.append(Source(path, sha256=_sum_beside(path, None)))
    return found


def _has_manifest(folder: Path) -> bool:
    return os.path.lexists(folder / MANIFEST) or os.path.lexists(folder / DRAFT)


def _in_bundle(folder: Path, inside: Path | None = None) -> list[Source]:
    """Return the files of a bundle: all of a finished one, the completed ones of an unfinished one."""
    inside = inside or folder
    finished = os.path.lexists(folder / MANIFEST)
    manifest = Source(folder / (MANIFEST if finished else DRAFT), inside)
    text = _text(manifest)
    try:
        if finished:
            entries = _entries(json.loads(text), manifest.path)
        else:
            lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            entries = [json.loads(line) for line in lines[1:]]
        return [_listed(folder, entry, inside) for entry in entries]
    except InvalidFile:
        raise
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise InvalidFile(
            f"{manifest.path} is damaged, or not the manifest of a bundle: {error}", path=manifest.path
        ) from error


def _entries(manifest: Any, path: Path) -> list[Any]:
    if manifest["format"] != BUNDLE or manifest["version"] < 1:
        raise ValueError(f"format {manifest['format']!r}, version {manifest['version']!r}")
    if manifest["version"] > VERSION:
        raise InvalidFile(
            f"{path} was written by a newer version of this program; update the package", path=path
        )
    entries: list[Any] = manifest["files"]
    if sum(entry["points"] for entry in entries) != manifest["points"]:
        raise ValueError("its points do not add up")
    return entries


def _listed(folder: Path, entry: Any, inside: Path) -> Source:
    parts = PurePosixPath(entry["path"]).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in entry["path"]:
        raise InvalidFile(f"{folder} lists {entry['path']!r}, which is not inside it", path=folder)
    os.fsencode(entry["path"])  # an impossible file name raises ValueError
    if (
        not _SHA256.fullmatch(entry["sha256"])
        or type(entry["points"]) is not int
        or type(entry["bytes"]) is not int
    ):
        raise ValueError(f"its entry for {entry['path']!r} is invalid")
    return Source(folder.joinpath(*parts), inside, entry["sha256"], entry["bytes"], entry["points"])


def _in_folder(folder: Path) -> list[Source]:
    """Return the files of points anywhere in a folder, in order of their names; hidden files are unfinished.

    The files of a bundle in it are those in its manifest, as if the bundle had been given.
    """
    found: list[Source] = []

    def unreadable(error: OSError) -> None:
        raise file_error(error, folder, "read") from error

    for place, folders, names in os.walk(folder, onerror=unreadable):
        if {MANIFEST, DRAFT}.intersection(names):
            folders.clear()
            found += _in_bundle(Path(place), folder)
            continue
        folders.sort()
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                log.warning("%s: skipped, because it is a symbolic link to a folder", Path(place, name))
        for name in sorted(names):
            if not name.startswith(".") and name.endswith(_ENDINGS):
                path = Path(place, name)
                found.append(Source(path, folder, _sum_beside(path, folder)))
    if not found:
        raise InvalidFile(f"{folder} has no Parquet files, and no NDJSON files of exports", path=folder)
    return found


def _sum_beside(path: Path, inside: Path | None) -> str | None:
    beside = path.with_name(f"{path.name}.sha256")
    if not os.path.lexists(beside):
        return None
    # sha256sum marks unusual names with a backslash.
    text = _text(Source(beside, inside), errors="surrogateescape").removeprefix("\\")
    if not _SHA256.match(text):
        raise InvalidFile(
            f"{beside} is not a SHA-256 checksum; write it again with sha256sum, or remove it", path=beside
        )
    return text[:64]


def _text(source: Source, errors: str = "strict") -> str:
    with source.opened() as descriptor:
        if os.fstat(descriptor).st_size > _MOST_TEXT_BYTES:
            raise InvalidFile(f"{source.path} is too large for a manifest or checksum", path=source.path)
        with open(descriptor, "rb", closefd=False) as stream:
            try:
                return stream.read().decode(errors=errors)
            except UnicodeDecodeError as error:
                raise InvalidFile(f"{source.path} is damaged: it is not text", path=source.path) from error


def _held(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def listed(paths: Any) -> Sequence[Path]:
    """Return the caller's argument, one path or several, as a list of paths."""
    try:
        given = [paths] if isinstance(paths, str | bytes | os.PathLike) else list(paths)
    except TypeError as error:
        raise InvalidFile(f"paths = {shown(paths)}: a path or a list of paths is expected") from error
    return [check_path(path, "paths") for path in given]
