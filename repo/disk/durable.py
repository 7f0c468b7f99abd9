"""Durable files: writes, copies, renames and syncs that survive a crash, whatever the files contain.

These functions do not translate an `OSError`: only the caller knows what the file is for and which state the error
leaves. `repo.errors.system_typed` translates it for files of a store, `file_typed` for files that a user named.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repo.disk import ownership
from repo.errors import InvalidFile, StoreBusy

__all__ = ["atomic_write", "copy", "digest", "put", "rename_all", "replace", "sync"]

_DIGEST_BYTES = 1_048_576
_COPY_BYTES = 4_194_304


def sync(target: Path | int) -> None:
    """Sync a file or a folder, by its path or an open descriptor.

    Syncing a folder makes its entries durable: files created, renamed or removed in it.
    """
    if isinstance(target, int):
        os.fsync(target)
        return
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(new: Path, path: Path) -> None:
    """Rename `new`, already synced, to `path` and sync the folder.

    An existing file is replaced atomically, by one of the same owner and mode.
    """
    if new.is_file():
        ownership.make_like(new, path)
    new.replace(path)
    sync(path.parent)


def rename_all(renames: Iterable[tuple[Path, Path]]) -> None:
    """Rename the files of one folder that exist, in this order, then sync the folder.

    A crash may leave only the first ones renamed, so the order decides what a later run finds.
    """
    folder = None
    for old, new in renames:
        if old.exists():
            old.replace(new)
            folder = new.parent
    if folder is not None:
        sync(folder)


@contextmanager
def atomic_write(path: Path) -> Iterator[int]:
    """Yield the descriptor of a new file, which durably becomes `path` when the block ends without an error.

    The content goes to `.NAME.part` in the same folder. That file is synced and renamed to `path`, and the folder is
    synced. A symbolic link at `path` is replaced, not followed. An error leaves `path` unchanged; a part file left by
    a killed process is reused. Raises `StoreBusy` while another process writes the same file, `InvalidFile` if `path`
    is not a regular file.
    """
    _check_replaceable(path)  # also a path without a name, such as "."
    part = path.with_name(f".{path.name}.part")
    descriptor = _opened(part, path)
    try:
        yield descriptor
        sync(descriptor)
        part.replace(path)
    except BaseException:  # an interrupt leaves no part file either
        with suppress(OSError):
            part.unlink()
        raise
    finally:
        os.close(descriptor)
    sync(path.parent)


def _check_replaceable(path: Path) -> None:
    """Refuse a pipe, a device, or a link to one: a rename would replace it instead of writing to it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # it does not exist, or the write reports the error
    if not stat.S_ISREG(mode) or path.parent.resolve() == Path("/dev"):
        raise InvalidFile(f"{path} is not a regular file; name another file, new or existing", path=path)


def _opened(part: Path, path: Path) -> int:
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if not _is_ours(descriptor, part):
            raise StoreBusy(f"another process is writing {path}; wait for it", path=path)  # noqa: TRY301
        os.ftruncate(descriptor, 0)
    except BaseException:  # nobody else can close it before it is returned
        os.close(descriptor)
        raise
    return descriptor


def _is_ours(descriptor: int, part: Path) -> bool:
    """Lock the file; False if another process holds the lock, or completed and renamed the file in between."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.lstat(part))
    except (BlockingIOError, FileNotFoundError):
        return False


def put(path: Path, content: bytes) -> None:
    """Write a small file, as `atomic_write` does."""
    with atomic_write(path) as descriptor, open(descriptor, "wb", closefd=False) as stream:
        stream.write(content)


def copy(source: Path, target: Path, progress: Callable[[int], object]) -> str:
    """Copy a file to `target`, which must not exist, and sync it; return the SHA-256 of the bytes read.

    `progress` receives the size of each piece. The copy has the mode of the source, and is also readable and writable
    by its owner. The caller syncs the folder. An error leaves a partial copy.
    """
    summed = hashlib.sha256()
    with source.open("rb") as original, target.open("xb") as written:
        mode = stat.S_IMODE(os.fstat(original.fileno()).st_mode)
        os.fchmod(written.fileno(), mode | stat.S_IRUSR | stat.S_IWUSR)
        ownership.give(target)
        while piece := original.read(_COPY_BYTES):
            written.write(piece)
            summed.update(piece)
            progress(len(piece))
        written.flush()
        sync(written.fileno())
    return summed.hexdigest()


def digest(descriptor: int) -> str:
    """Return the SHA-256 of a whole file in hexadecimal. Neither uses nor moves its offset."""
    summed = hashlib.sha256()
    at = 0
    while piece := os.pread(descriptor, _DIGEST_BYTES, at):
        summed.update(piece)
        at += len(piece)
    return summed.hexdigest()
