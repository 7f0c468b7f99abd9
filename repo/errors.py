"""Every error that Holdfast raises, under one root. A message says what failed, on which file, and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DemoFailed",
    "EngineMissing",
    "FlushFailed",
    "HoldfastError",
    "InvalidFile",
    "InvalidPoint",
    "InvalidQuery",
    "InvalidRecord",
    "InvalidSettings",
    "MigrationFailed",
    "MissingExtra",
    "Refusal",
    "SchemaOutdated",
    "SchemaTooNew",
    "SinkHalted",
    "SinkRefused",
    "SinkUnreachable",
    "StoreBusy",
    "StoreClosed",
    "StoreCorrupt",
    "StoreDenied",
    "StoreForked",
    "StoreFull",
    "StoreMissing",
    "StoreReadOnly",
    "StoreUnsupported",
    "TransactionRule",
    "counted",
    "denied",
    "file_error",
    "file_typed",
    "system_error",
    "system_typed",
]


class HoldfastError(Exception):
    """The base class of all errors of this library. `path` is the file or folder concerned, if any."""

    def __init__(self, message: str, *, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)


class StoreMissing(HoldfastError):
    """There is no store at this path, and creating one was not requested. Nothing was changed."""


class StoreClosed(HoldfastError):
    """The handle was closed, or inherited through fork(): open the store again in this process.

    Opening raises it, too, if the parent could not close the store before the fork because a call was still running.
    The message says what to do.
    """


class StoreBusy(HoldfastError):
    """Another process held a needed resource until the timeout. Nothing was changed; retrying is safe.

    `holder` is the process id from the lock file, if it could be read.
    """

    def __init__(self, message: str, *, path: str | Path | None = None, holder: int | None = None) -> None:
        super().__init__(message, path=path)
        self.holder = holder


class StoreFull(HoldfastError):
    """The disk is full. The write was not acknowledged; earlier data is intact."""


class StoreDenied(HoldfastError):
    """Permission error on a file of the store: owner, mode, or a read-only file system.

    A store that may be read but not written can be opened with `Store(path, read_only=True)`.
    """


class StoreReadOnly(HoldfastError):
    """The store is opened for reading only, and the call would change a file. Nothing was changed."""


class StoreCorrupt(HoldfastError):
    """A file is damaged, or opening it would damage it. It was not modified."""


class StoreForked(HoldfastError):
    """This store is a copy of another, or was rolled back: its identity no longer matches."""


class StoreUnsupported(HoldfastError):
    """This platform, file system or SQLite version cannot provide the store's guarantees."""


class SchemaOutdated(HoldfastError):
    """The store's schema is older than this program; run `holdfast migrate`."""


class SchemaTooNew(HoldfastError):
    """The store was written by a newer version of this program; update the package."""


class MigrationFailed(HoldfastError):
    """A migration was rolled back because it would have lost rows. The store is at the previous revision."""


class EngineMissing(HoldfastError):
    """The engine of the columns is not installed. Writes work; reading points does not."""


class MissingExtra(HoldfastError):
    """This feature needs an optional package; the message names it."""


class FlushFailed(HoldfastError):
    """Journal rows could not be applied to the columns. They stay in the journal; nothing is lost."""


class InvalidFile(HoldfastError, ValueError):
    """An input file cannot be used because of its encoding, header or format."""


class InvalidSettings(HoldfastError, ValueError):
    """A setting has an unknown name, a wrong type or a value out of range."""


class InvalidQuery(HoldfastError, ValueError):
    """A query has an invalid or contradictory argument. Nothing was read."""


class InvalidRecord(HoldfastError, ValueError):
    """A record cannot be stored as given. Nothing was written."""


class SinkUnreachable(HoldfastError):
    """A destination returned no receipt. The batch is retried with the same key; the cursor has not moved.

    `retry_after_s` is the delay that the destination requested, if any.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SinkRefused(HoldfastError):
    """A destination rejected a batch. It stays first in the queue; nothing was lost."""


class SinkHalted(HoldfastError):
    """A destination rejects everything for now: credentials, certificate, missing table or topic, schema.

    Nothing is skipped. The forwarder tries again every minute and continues once the cause is fixed.
    """


class DemoFailed(HoldfastError):
    """The demo could not finish; the message names the failed process and the cause."""


class TransactionRule(HoldfastError):
    """This operation is not safe in the connection's current transaction; commit first."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One invalid field: the row's index in the batch (None for a single point), the field, the reason."""

    row: int | None
    field: str
    reason: str

    def __str__(self) -> str:
        where = "" if self.row is None else f"row {self.row}: "
        return f"{where}{self.field}: {self.reason}"


_SHOWN = 5


class InvalidPoint(HoldfastError, ValueError):
    """One or more points cannot be stored. Nothing of the call was written.

    `refusals` lists every bad row, in row order.
    """

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self.refusals = tuple(refusals)
        shown = "; ".join(str(refusal) for refusal in self.refusals[:_SHOWN])
        more = len(self.refusals) - _SHOWN
        super().__init__(shown + (f"; and {more} more" if more > 0 else ""))


def denied(path: Path, why: str, then: str = "") -> StoreDenied:
    """Return the error for a file or folder that denies access; `then` adds the resulting state and the next step."""
    return StoreDenied(
        f"{path} cannot be read or written ({why}); check its owner and mode, and that its disk is not mounted "
        f"read-only{then and f'; {then}'}",
        path=path,
    )


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def system_error(error: OSError, place: Path, then: str = "") -> HoldfastError:
    """Translate an `OSError` from an operation in `place`; the caller raises the result `from` it.

    `then` describes the state that the error leaves and the next step.
    """
    if error.errno in _NO_SPACE:
        return StoreFull(f"no space left in {place}; {then or 'free some space and try again'}", path=place)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return denied(Path(error.filename or place), error.strerror or str(error), then)
    what = f"{error.filename or place}: {error.strerror or error}"
    return HoldfastError(f"{what}{then and f'; {then}'}", path=place)


@contextmanager
def system_typed(place: Path, then: str = "") -> Iterator[None]:
    """Translate an `OSError` raised in the block, as `system_error` does."""
    try:
        yield
    except OSError as error:
        raise system_error(error, place, then) from error


def file_error(error: OSError, path: Path, action: str) -> HoldfastError:
    """Translate an `OSError` on a file that a user named; the caller raises the result `from` it.

    `action` completes "cannot be": read, written.
    """
    if error.errno in _NO_SPACE:
        return StoreFull(f"no space left for {path}; free some space and try again", path=path)
    return InvalidFile(f"{path} cannot be {action}: {error.strerror or error}", path=path)


@contextmanager
def file_typed(path: Path, action: str) -> Iterator[None]:
    """Translate an `OSError` raised in the block, as `file_error` does."""
    try:
        yield
    except OSError as error:
        raise file_error(error, path, action) from error


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun in the right number: `1 point`, `2,000 points`, `2 entries`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
