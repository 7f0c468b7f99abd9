"""Bundles: a folder of files of points with a manifest. Owns its layout, and the progress of an unfinished one.

```
FOLDER/manifest.json                                       written last: without it the bundle is not finished
FOLDER/store=<store id>/date=<YYYY-MM-DD>/points.parquet   the points of one day, in UTC; or points.ndjson.gz
FOLDER/export.ndjson                                       while unfinished: the request, then one line per file
```

`manifest.json` is one JSON object: `format` ("holdfast-bundle"), `version` (1), `store`, `selection` (`sensor_id`,
`metric_name`, `start_us`, `end_us`), `compression` (of NDJSON, `gzip`), `points`, `bytes`, `first_us`, `last_us`,
`first_seq`, `last_seq`, and `files`: a list of objects with `path` (relative, `/` between its parts), `points`,
`bytes`, `sha256`, `first_us`, `last_us`, `first_seq`, `last_seq`. Times are µs since 1970, UTC.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from repo.disk import durable
from repo.errors import InvalidFile, StoreBusy, file_typed
from repo.formats.files.interfaces import FileFacts

__all__ = [
    "BUNDLE",
    "DAY_US",
    "DRAFT",
    "FIRST_DAY",
    "LAST_DAY",
    "MANIFEST",
    "VERSION",
    "Drafting",
    "combined",
    "day_path",
    "drafting",
]

MANIFEST = "manifest.json"
DRAFT = "export.ndjson"
BUNDLE = "holdfast-bundle"
VERSION = 1
DAY_US = 86_400_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


FIRST_DAY, LAST_DAY = -719_162, 2_932_896
"""The days that have a name: 0001-01-01 to 9999-12-31. Points of the legacy program may be outside."""


def day_path(store_id: str, day: int, ending: str = ".parquet") -> str:
    """Return the path for the points of a day, which is counted from 1970-01-01."""
    return f"store={store_id}/date={(_EPOCH + timedelta(days=day)).date().isoformat()}/points{ending}"


def combined(files: Iterable[FileFacts]) -> dict[str, Any]:
    """Return the totals of the files: points, bytes, and the spans of times and seqs."""
    listed = list(files)

    def extreme(pick: Any, name: str) -> int | None:
        found = [getattr(file, name) for file in listed]
        chosen: int | None = pick((value for value in found if value is not None), default=None)
        return chosen

    return {
        "points": sum(file.points for file in listed),
        "bytes": sum(file.bytes for file in listed),
        "first_us": extreme(min, "first_us"),
        "last_us": extreme(max, "last_us"),
        "first_seq": extreme(min, "first_seq"),
        "last_seq": extreme(max, "last_seq"),
    }


class Drafting:
    """A bundle that is being written; `done` has the completed files by path."""

    def __init__(self, folder: Path, request: Mapping[str, Any], draft: BinaryIO) -> None:
        self._folder = folder
        self._request = request
        self._draft = draft
        self.done: dict[str, FileFacts] = {}

    def add(self, path: str, facts: FileFacts) -> None:
        """Record durably that a file is complete."""
        self._append({"path": path} | asdict(facts))
        self.done[path] = facts

    def forget(self, path: str) -> None:
        """Remove the record of a file durably before it is rewritten. A kill during this may remove all records."""
        del self.done[path]
        self._draft.truncate(0)
        self._append(self._request)
        for other, facts in self.done.items():
            self._append({"path": other} | asdict(facts))

    def finish(self) -> None:
        """Write the manifest, which completes the bundle."""
        files = [{"path": path} | asdict(facts) for path, facts in sorted(self.done.items())]
        manifest = {
            "format": BUNDLE,
            "version": VERSION,
            **self._request,
            **combined(self.done.values()),
            "files": files,
        }
        durable.put(
            self._folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode() + b"\n"
        )
        (self._folder / DRAFT).unlink()
        durable.sync(self._folder)

    def resume(self) -> None:
        """Resume what another process left; `InvalidFile` if it has a different request."""
        self._draft.seek(0)
        lines = self._draft.read().splitlines(keepends=True)
        try:
            whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
        except (ValueError, RecursionError) as error:
            raise self._damaged(error) from error
        if not whole:
            self._draft.truncate(0)
            self._append(self._request)
            durable.sync(self._folder)
            return
        if whole[0] != self._request:
            raise InvalidFile(
                f"{self._folder} has an unfinished export of something else; export to another folder, or "
                "remove this one",
                path=self._folder,
            )
        try:
            done = {entry.pop("path"): FileFacts(**entry) for entry in whole[1:]}
            existing = {
                path: facts for path, facts in done.items() if _size(self._folder / path) == facts.bytes
            }
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise self._damaged(error) from error
        self._draft.truncate(sum(len(line) for line in lines if line.endswith(b"\n")))
        self.done |= existing

    def _damaged(self, error: Exception) -> InvalidFile:
        draft = self._folder / DRAFT
        return InvalidFile(
            f"{draft} is damaged, or not from an export: {error}; export to another folder, or remove this one",
            path=draft,
        )

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._draft.seek(0, os.SEEK_END)
        self._draft.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._draft.flush()
        durable.sync(self._draft.fileno())


@contextmanager
def drafting(folder: Path, request: Mapping[str, Any]) -> Iterator[Drafting]:
    """Begin a bundle in a new or empty folder, or resume an unfinished one.

    Only an export with an equal `request` is resumed. Raises `InvalidFile` for a folder with other content, and
    `StoreBusy` while another process writes there.
    """
    with file_typed(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        held = {entry.name for entry in os.scandir(folder)}
        if MANIFEST in held and DRAFT not in held:
            raise InvalidFile(
                f"{folder} has a finished bundle; export to another folder, or remove it", path=folder
            )
        if held and DRAFT not in held:
            raise InvalidFile(f"{folder} is not empty; export to a new or empty folder", path=folder)
        descriptor = os.open(folder / DRAFT, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(descriptor, "r+b") as draft:
            try:
                fcntl.flock(draft, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreBusy(
                    f"{folder} is being written by another export; wait for it", path=folder
                ) from error
            bundle = Drafting(folder, request, draft)
            bundle.resume()
            yield bundle


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return -1
