"""The folder sink: a file for each batch on a disk or a stick, and the position beside them, each batch exactly once.

    FOLDER/holdfast-folder.json                                     marks the folder, with its id
    FOLDER/positions/STORE-EPOCH-SINK.json                          the position of one sink of one store
    FOLDER/store=STORE/epoch=EPOCH/sink=SINK/NUMBER_FIRST_LAST.ndjson.gz (or .parquet), with NAME.sha256

A batch is written to a new file, which is synced and renamed; then the position is replaced, which makes the batch
count. A file with the number after that of the position is left over from an unfinished attempt, and is removed before
the next one is written. `holdfast import --overwrite FOLDER` reads the files in the order of their numbers. Files that
were imported may be removed; the position must stay.

The sink never creates FOLDER or its mark, because an unplugged stick must not fill the disk below its mount point. An
empty file `holdfast-folder.json` marks a new folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from repo.cursors import Cursor
from repo.delivery.chain import HeldSeqs, is_repeat
from repo.delivery.limits import AS_COLUMNS, AS_TEXT, BatchLimits
from repo.delivery.protocol import Batch, Columns, Item, Outcome
from repo.disk import durable
from repo.engines.registry import duckdb_is_installed
from repo.errors import HoldfastError, InvalidSettings, SinkHalted, SinkUnreachable, StoreBusy, StoreForked
from repo.formats.arrays.columns import taken
from repo.formats.files.interfaces import FileWriter, WrittenPage, WrittenPages
from repo.formats.files.parquet import note_of
from repo.formats.files.parquet_packages import writer_here
from repo.formats.files.text_writer import NdjsonWriter
from repo.inputs.arguments import check_text
from repo.store.sink_options import effective_options

if TYPE_CHECKING:
    from repo.formats.files.parquet_small import SmallFiles

__all__ = ["FolderSink"]

MARK = "holdfast-folder.json"
FORMAT = "holdfast-folder"

_NOTHING = -(2**63)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_NAME = 200
_MOST_BYTES = 8_000_000
_MEMORY_BYTES = 64_000_000
_IN_PARQUET = AS_COLUMNS._replace(points=12_288)
"""With files of 20,480 points, which take less CPU time each, a delivery added up to 70 MB to its process."""

_REJECTED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class _Position(NamedTuple):
    token: str | None
    files: int
    """The number of the last file."""
    points: int
    taken: Cursor


class FolderSink:
    """Delivers to `file:///path/of/a/folder`. For one thread; each sink of each store has its own files.

    The options are those of the kind `folder` in `repo.store.sink_options`. A missing folder or mark means an
    unplugged medium, and raises `SinkUnreachable`, as does a full one. A folder with another id than before
    raises `SinkHalted`.
    """

    exact = True
    takes_records = False

    def __init__(self, target: str, *, name: str, **options: Any) -> None:
        self._name = check_text(name, "name", error=InvalidSettings)
        self._options = effective_options("folder", options)
        self._folder = _folder_of(target)
        self._id: str | None = self._options["id"]
        self._home = self._position_file = self._folder
        self._position: _Position | None = None
        self._may_have_unfinished = True
        self._files: SmallFiles | None = None

    @property
    def name(self) -> str:
        """The name of the cursor in the store."""
        return self._name

    @property
    def limits(self) -> BatchLimits:
        """What a batch may hold; DuckDB takes columns for a file, the other writers take rows."""
        return _IN_PARQUET if self._is_parquet and duckdb_is_installed() else AS_TEXT

    def open(self, store_id: str, epoch: int) -> str | None:
        """Find the folder, and return the token of this store's position in it."""
        self.close()
        sink = quote(self._name, safe="")
        if len(sink) > _LONGEST_NAME:
            raise SinkHalted(f"the name {self._name[:40]!r} is too long for the files of a folder")
        with self._typed():
            self._check_mark()
            self._home = self._folder / f"store={store_id}" / f"epoch={epoch:06}" / f"sink={sink}"
            self._position_file = self._folder / "positions" / f"{store_id}-{epoch}-{sink}.json"
            position = self._read_position(self._position_file)
            self._home.mkdir(parents=True, exist_ok=True)
            self._position_file.parent.mkdir(exist_ok=True)
            for folder in (self._home.parent, self._home.parent.parent, self._folder):
                durable.sync(folder)
        self._position = position
        return position.token

    def send(self, batch: Batch) -> Outcome:
        """Write a batch to a file, and the position; both are on the medium on return."""
        if self._position is None:
            self.open(batch.store_id, batch.epoch)
        assert self._position is not None
        with self._typed():
            self._check_mark()
            position = self._read_position(
                self._position_file
            )  # another process may have written, for a copy of this store
            kept, refused = _without_surrogates(batch.columns)
            if is_repeat(position.token, batch.tokens, str(self._folder)):
                return Outcome(refused, repeat=True)
            if self._may_have_unfinished:  # only now is it certain that the position is the last one
                self._remove_unfinished(position.files)
                self._may_have_unfinished = False
            written = 0
            if len(kept[0]):
                position = position._replace(files=position.files + 1, points=position.points + len(kept[0]))
                written = self._write_file(batch, kept, position.files)
            position = position._replace(
                token=batch.tokens.next, taken=position.taken.confirm(batch.first_seq, batch.last_seq)
            )
            self._write_position(batch, position)
        self._position = position
        return Outcome(refused, sent_bytes=written)

    def check(self) -> str:
        """Raise `SinkHalted` if the folder cannot be written to; it may still hold the token."""
        if not os.access(self._home, os.W_OK):
            raise SinkHalted(
                f"{self._folder} cannot be written to: it is read-only, or belongs to another user",
                path=self._folder,
            )
        return ""

    def held(self, store_id: str) -> list[HeldSeqs]:
        """Return the seqs that this sink has written, in every epoch."""
        ending = f"-{quote(self._name, safe='')}.json"
        found = []
        with self._typed():
            self._check_mark()
            for path in sorted((self._folder / "positions").glob(f"{store_id}-*.json")):
                epoch = path.name.removeprefix(f"{store_id}-").removesuffix(ending)
                if path.name.endswith(ending) and epoch.isascii() and epoch.isdigit():
                    found.append(HeldSeqs(int(epoch), self._read_position(path).taken))
        return found

    def close(self) -> None:
        """Forget the position; `open` reads it again."""
        self._position, self._may_have_unfinished = None, True
        if self._files is not None:
            self._files.close()

    def _check_mark(self) -> None:
        """Read the mark, and complete an empty one."""
        mark = self._folder / MARK
        try:
            content = _read(mark)
        except FileNotFoundError as error:
            if not self._folder.is_dir():
                raise SinkUnreachable(
                    f"there is no folder {self._folder}: the medium is not mounted, or the target of the sink is wrong"
                ) from error
            raise SinkUnreachable(
                f"{mark} does not exist: the medium is not mounted, or it is new; to deliver to this folder, create an "
                "empty file of that name in it"
            ) from error
        if not content.strip():
            content = json.dumps({"format": FORMAT, "version": 1, "folder": uuid4().hex}).encode()
            durable.put(mark, content + b"\n")
        found = self._parsed(content, mark).get("folder")
        if not isinstance(found, str):
            raise _damaged(mark, "it has no id (`folder`)")
        if self._id is not None and found != self._id:
            raise SinkHalted(
                f"{self._folder} is another folder than before: its id is {found}, not {self._id}; insert the medium "
                "of this sink",
                path=self._folder,
            )
        self._id = found

    def _read_position(self, path: Path) -> _Position:
        try:
            content = self._parsed(_read(path), path)
        except FileNotFoundError:
            return _Position(None, 0, 0, Cursor(_NOTHING))
        try:
            taken = Cursor.of(
                int(content["low"]), [(int(first), int(last)) for first, last in content["ranges"]]
            )
            return _Position(
                str(content["token"]), _count(content["files"]), _count(content["points"]), taken
            )
        except (LookupError, TypeError, ValueError) as error:
            raise _damaged(path, error) from error

    def _parsed(self, content: bytes, path: Path) -> dict[str, Any]:
        try:
            parsed = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, error) from error
        if not isinstance(parsed, dict) or parsed.get("format") != FORMAT:
            raise SinkHalted(f"{path} is not a file of a {FORMAT}", path=path)
        if parsed.get("version") != 1:
            raise SinkHalted(
                f"{path} was written by a newer version of this program; update the package", path=path
            )
        return parsed

    def _write_position(self, batch: Batch, position: _Position) -> None:
        content = {
            "format": FORMAT,
            "version": 1,
            "store": batch.store_id,
            "epoch": batch.epoch,
            "sink": batch.sink,
            "token": position.token,
            "files": position.files,
            "points": position.points,
            "low": position.taken.low,
            "ranges": position.taken.ranges,
        }
        durable.put(self._position_file, json.dumps(content, ensure_ascii=False).encode() + b"\n")

    def _write_file(self, batch: Batch, columns: Columns, number: int) -> int:
        """Write the points, and their checksum before the file appears under its name; return the bytes."""
        name = f"{number:010}_{batch.first_seq}_{batch.last_seq}{self._ending}"
        with durable.atomic_write(self._home / name) as descriptor:
            written, checksum = self._write_points(descriptor, columns, note_of(batch.store_id))
            durable.put(self._home / f"{name}.sha256", f"{checksum}  {name}\n".encode())
        return written

    def _write_points(self, descriptor: int, columns: Columns, note: str) -> tuple[int, str]:
        """Write the points to a file, ordered by series and time; return its bytes and its checksum."""
        if self._is_parquet and duckdb_is_installed():
            content = self._small_files().content(columns, compression="zstd", note=note)
            with open(descriptor, "wb", closefd=False) as stream:
                stream.write(content)
            return len(content), hashlib.sha256(content).hexdigest()
        series, rows = _by_series(columns)
        writer: FileWriter
        if self._is_parquet:
            writer, compression = writer_here(_MEMORY_BYTES, duckdb=False), "zstd"
        else:
            writer, compression = NdjsonWriter(), "gzip"
        pages = WrittenPages(series, len(rows), iter([_points_of(columns, rows)]))
        facts = writer.write(descriptor, pages, compression=compression, note=note)
        return facts.bytes, facts.sha256

    def _small_files(self) -> SmallFiles:
        if self._files is None:
            from repo.formats.files.parquet_small import SmallFiles

            self._files = SmallFiles(_MEMORY_BYTES)
        return self._files

    @property
    def _is_parquet(self) -> bool:
        return bool(self._options["format"] == "parquet")

    @property
    def _ending(self) -> str:
        return ".parquet" if self._is_parquet else ".ndjson.gz"

    def _remove_unfinished(self, files: int) -> None:
        """Remove the files of an attempt that did not reach the position, which have the next number.

        Files with higher ones were delivered, and may be nowhere else.
        """
        later: list[tuple[int, str]] = []
        with os.scandir(self._home) as entries:
            for entry in entries:
                number = entry.name.lstrip(".").partition("_")[0]
                if number.isascii() and number.isdigit() and int(number) > files:
                    later.append((int(number), entry.path))
        if any(number > files + 1 for number, _ in later):
            raise SinkHalted(
                f"{self._position_file} is older than the files in {self._home}, so nothing is written or removed; put "
                "the last one back, or import these files and then remove them",
                path=self._position_file,
            )
        for _, path in later:
            os.unlink(path)

    @contextmanager
    def _typed(self) -> Iterator[None]:
        """Translate errors of the file system to those that the protocol of a sink expects."""
        try:
            yield
        except OSError as error:
            place = f"{error.filename or self._folder}: {error.strerror or error}"
            if error.errno in _REJECTED:
                raise SinkHalted(place, path=self._folder) from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                place += "; remove files that were imported elsewhere, or free some space"
            raise SinkUnreachable(place) from error
        except StoreBusy as error:
            raise SinkUnreachable(str(error)) from error
        except (SinkHalted, SinkUnreachable, StoreForked):
            raise
        except HoldfastError as error:  # MissingExtra, or a file in the way
            raise SinkHalted(str(error), path=self._folder) from error


def _count(stored: Any) -> int:
    count = int(stored)
    if count < 0:
        raise ValueError(f"{count} is not a count")
    return count


def _damaged(path: Path, why: object) -> SinkHalted:
    remedy = (
        "empty it, and the folder gets a new id"
        if path.name == MARK
        else "put it back from a copy, or add a sink of another name for this folder"
    )
    return SinkHalted(f"{path} is damaged: {why}; {remedy}", path=path)


def _folder_of(target: str) -> Path:
    target = check_text(target, "target", error=InvalidSettings)
    try:
        parts = urlsplit(target)
        path = unquote(parts.path, errors="strict")
    except ValueError as error:
        raise InvalidSettings(f"{target!r} is not a URL: {error}") from error
    if (
        parts.scheme != "file"
        or parts.netloc not in ("", "localhost")
        or not path.startswith("/")
        or "\0" in path
    ):
        raise InvalidSettings(f"{target!r} is not the URL of a folder, such as file:///media/stick/outbox")
    if parts.query or parts.fragment:
        raise InvalidSettings(f"{target!r}: write ? as %3F and # as %23 in the URL of a folder")
    return Path(path)


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_MOST_BYTES)


def _points_of(columns: Columns, rows: Sequence[int]) -> WrittenPage:
    points = list(zip(*columns, strict=True))
    return list(map(points.__getitem__, rows))


def _by_series(columns: Columns) -> tuple[list[tuple[str, str]], list[int]]:
    """Return the series in order, and the rows in order of series and time."""
    pairs = list(zip(columns[0], columns[1], strict=True))
    series = sorted(set(pairs))
    places = {pair: place for place, pair in enumerate(series)}
    of_row = list(map(places.__getitem__, pairs))
    rows = sorted(range(len(pairs)), key=columns[2].__getitem__)  # mostly in order already
    rows.sort(key=of_row.__getitem__)
    return series, rows


def _without_surrogates(columns: Columns) -> tuple[Columns, tuple[Item, ...]]:
    """Return the points that UTF-8 can express, and the others as refused."""
    impossible = {
        text for at in (0, 1, 4, 6) for text in set(columns[at]) if text and _SURROGATE.search(text)
    }
    if not impossible:
        return columns, ()
    refused = tuple(
        Item(row, "it has a text with a lone surrogate, which no file can hold")
        for row, point in enumerate(zip(*columns, strict=True))
        if not impossible.isdisjoint(point)
    )
    gone = {item.row for item in refused}
    return taken(columns, [row for row in range(len(columns[0])) if row not in gone]), refused
