"""Durable files: a file appears under its name complete or not at all. Never knows what is in it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repo.errors import HoldfastError, InvalidFile, StoreBusy, StoreFull

__all__ = ["digest", "file_error", "landing", "put", "sync_folder"]

_PIECE_BYTES = 1_048_576


@contextmanager
def landing(path: Path) -> Iterator[int]:
    """Give the descriptor of a new file; when the block ends well it stands as `path`, durable.

    It is written beside it as `.NAME.part`, synced and renamed over what stood there (a symbolic link is
    replaced, not followed), and the folder is synced. An error leaves `path` as it was; what a killed process
    left half written is taken over by the next one. `StoreBusy` while another process writes the same file.
    """
    part = path.with_name(f".{path.name}.part")
    _check_replaceable(path)
    try:
        descriptor = _opened(part, path)
        try:
            yield descriptor
            os.fsync(descriptor)
            os.replace(part, path)
        except BaseException:  # Ctrl-C, too, leaves no half of a file
            with suppress(OSError):
                part.unlink()
            raise
        finally:
            os.close(descriptor)
        sync_folder(path.parent)
    except OSError as error:
        raise file_error(error, path, "written") from error


def _check_replaceable(path: Path) -> None:
    """Refuse what is a pipe or a device, or leads to one: it would be lost, and nobody would read the file there."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing is there, or what the writing will tell
    if not stat.S_ISREG(mode) or path.parent.resolve() == Path("/dev"):
        raise InvalidFile(f"{path} is no regular file; name another, which may be a new one", path=path)


def _opened(part: Path, path: Path) -> int:
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if not _is_ours(descriptor, part):
            raise StoreBusy(f"{path} is being written by another export; wait for it", path=path)  # noqa: TRY301
        os.ftruncate(descriptor, 0)
    except BaseException:  # until it is handed over nobody else closes it
        os.close(descriptor)
        raise
    return descriptor


def _is_ours(descriptor: int, part: Path) -> bool:
    """Lock the file; False if another process has, or had and renamed it meanwhile: then it is a finished one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.lstat(part))
    except (BlockingIOError, FileNotFoundError):
        return False


def put(path: Path, content: bytes) -> None:
    """Write a small file, as `landing` does."""
    with landing(path) as descriptor, open(descriptor, "wb", closefd=False) as stream:
        stream.write(content)


def digest(descriptor: int) -> str:
    """Return the SHA-256 of a file, in hexadecimal, wherever its descriptor stands."""
    summed = hashlib.sha256()
    at = 0
    while piece := os.pread(descriptor, _PIECE_BYTES, at):
        summed.update(piece)
        at += len(piece)
    return summed.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_error(error: OSError, path: Path, done: str) -> HoldfastError:
    """Translate what the system said about a file; the caller raises the result `from` it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"no space left for {path}; free some space and try again", path=path)
    return InvalidFile(f"{path} cannot be {done}: {error.strerror or error}", path=path)
