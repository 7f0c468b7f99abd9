"""Sources: which files an import means, and whether they are what was written. Never reads a point.

A file with a SHA-256, in the manifest of its bundle or in `NAME.sha256` beside it, is compared with it. In a
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

from repo.durable import digest
from repo.errors import InvalidFile, StoreCorrupt, file_error
from repo.formats.files.bundle import BUNDLE, DRAFT, MANIFEST, VERSION
from repo.inuse import refuse_own

__all__ = ["Source", "listed", "sources_of"]

log = logging.getLogger("holdfast.sources")

_MOST_TEXT_BYTES = 8_000_000
"""A manifest larger than this (some 24,000 days) is not read: of JSON made for it, a byte takes 24 in memory."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not make it wait
_ENDINGS = (".parquet", ".parq", ".pq", ".ndjson.gz")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(slots=True)
class Source:
    """One file to import. `inside` is the folder that was named, if it was found there."""

    path: Path
    inside: Path | None = None
    sha256: str | None = None
    bytes: int | None = None
    points: int | None = None
    """What the manifest says of it."""
    _seen: tuple[int, ...] = field(default=(), repr=False)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Give a descriptor of the file; `InvalidFile` if it cannot be opened, is none, or has changed since before."""
        with ExitStack() as stack:
            try:
                descriptor = self._descriptor(stack)
            except OSError as error:
                if self.inside is not None and error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise InvalidFile(
                        f"{self.path} is, or lies behind, a symbolic link, which is not followed in a folder; put the "
                        "file there, or name it by itself",
                        path=self.path,
                    ) from error
                raise file_error(error, self.path, "read") from error
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InvalidFile(f"{self.path} is no regular file", path=self.path)
            mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            if self._seen and self._seen != mark:
                raise InvalidFile(
                    f"{self.path} was changed while it was imported; import it again", path=self.path
                )
            self._seen = mark
            yield descriptor

    def verify(self, descriptor: int) -> bool:
        """Compare the file with its sum and size; False where there is no sum. `StoreCorrupt` if they differ."""
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
            f"{self.path} is damaged: it {what}. Nothing was stored; copy it again, or leave it out",
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
    """Return the files that are meant: files, folders of them, bundles. Raises `InvalidFile`, naming the path."""
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
    """Return the files of a bundle: all of a finished one, and those that stand of one that was cut off."""
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
            f"{manifest.path} is damaged, or no manifest of a bundle: {error}", path=manifest.path
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
    os.fsencode(entry["path"])  # what no name of a file can be is a ValueError
    if (
        not _SHA256.fullmatch(entry["sha256"])
        or type(entry["points"]) is not int
        or type(entry["bytes"]) is not int
    ):
        raise ValueError(f"what it says of {entry['path']!r} is not in order")
    return Source(folder.joinpath(*parts), inside, entry["sha256"], entry["bytes"], entry["points"])


def _in_folder(folder: Path) -> list[Source]:
    """Return the files of points anywhere in a folder, in order of their names; hidden ones are unfinished.

    Of a bundle in it they are what its manifest says, as if it had been named.
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
                log.warning("%s: not read: a symbolic link to a folder", Path(place, name))
        for name in sorted(names):
            if not name.startswith(".") and name.endswith(_ENDINGS):
                path = Path(place, name)
                found.append(Source(path, folder, _sum_beside(path, folder)))
    if not found:
        raise InvalidFile(f"{folder} holds no Parquet files, and no NDJSON of exports", path=folder)
    return found


def _sum_beside(path: Path, inside: Path | None) -> str | None:
    beside = path.with_name(f"{path.name}.sha256")
    if not os.path.lexists(beside):
        return None
    text = _text(Source(beside, inside), errors="surrogateescape").removeprefix(
        "\\"
    )  # sha256sum marks odd names so
    if not _SHA256.match(text):
        raise InvalidFile(
            f"{beside} is no SHA-256 sum; write it again by sha256sum, or remove it", path=beside
        )
    return text[:64]


def _text(source: Source, errors: str = "strict") -> str:
    with source.opened() as descriptor:
        if os.fstat(descriptor).st_size > _MOST_TEXT_BYTES:
            raise InvalidFile(f"{source.path} is too large for what it should be", path=source.path)
        with open(descriptor, "rb", closefd=False) as stream:
            try:
                return stream.read().decode(errors=errors)
            except UnicodeDecodeError as error:
                raise InvalidFile(f"{source.path} is damaged: it is no text", path=source.path) from error


def _held(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def listed(paths: Any) -> Sequence[Path]:
    """Return what a caller gave, one path or several, as paths."""
    return [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
