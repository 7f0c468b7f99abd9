"""Torn checkpoints: what a kill in the middle of DuckDB's CHECKPOINT may leave, and how it is mended.

DuckDB 2.0.0 writes a checkpoint's data into free blocks and then turns a header over, but its metadata blocks it
rewrites in place (seen with strace: 262,144 bytes at the place that the header in force points to). A kill or a
power loss in the middle of that write leaves a block of which part is old and part new. All that the header in
force needs of it is the same in both, only the checksum over the whole block fits neither, and DuckDB refuses
the file. So a checkpoint is noted, durably, before it begins; where the note stands when the file is opened, a
metadata block whose checksum does not fit gets the right one (720 of 720 files torn at random opened as they had been).
Without the note a wrong checksum is damage.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from repo.errors import system_error

__all__ = ["forget", "is_noted", "mend", "mend_block", "note_path", "noted", "sync_file", "sync_folder"]

BLOCK_BYTES = 262_144
BLOCKS_FROM = 12_288
"""Where the first block begins: behind the main header and the two headers that take turns."""

_SUM_BYTES = 8
_MULTIPLIER = 0xBF58476D1CE4E5B9
_SEED = 5381
_WORD = 2**64 - 1
_MISFIT = re.compile(r"computed checksum \d+ does not match stored checksum \d+ in block at location (\d+)")
_UNDER_WAY, _DONE = b"1", b"0"


def note_path(path: Path) -> Path:
    """Return the file that says whether a checkpoint of this database is under way."""
    return path.with_name(path.name + ".checkpoint")


def is_noted(path: Path) -> bool:
    """Say whether a checkpoint was begun of which nobody said that it was done; raises `StoreDenied`."""
    try:
        return note_path(path).read_bytes() == _UNDER_WAY
    except FileNotFoundError:
        return False
    except OSError as error:
        raise system_error(error, path) from error


@contextmanager
def noted(path: Path) -> Iterator[None]:
    """Note a checkpoint durably before the block, and that it is done after it, unless it raises."""
    note = note_path(path)
    new = not note.exists()
    try:
        descriptor = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise system_error(error, path) from error
    try:
        os.pwrite(descriptor, _UNDER_WAY, 0)
        os.fsync(descriptor)
        if new:
            sync_folder(path.parent)
        yield
        os.pwrite(descriptor, _DONE, 0)  # not synced: a note too many only means a look too many
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make names that came into a folder, or left it, durable."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Make a file durable that this process has closed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget(path: Path) -> None:
    """Take the note back, when the file was opened and all in it fits."""
    note_path(path).write_bytes(_DONE)


def mend(path: Path, error: BaseException) -> bool:
    """Mend the block that DuckDB named when it refused to open the file; False where it named none.

    The caller holds the lease, has seen the note, and has the file closed.
    """
    found = _MISFIT.search(str(error.__cause__ or error))
    return found is not None and mend_block(path, (int(found[1]) - BLOCKS_FROM) // BLOCK_BYTES)


def mend_block(path: Path, block: int) -> bool:
    """Give a block the checksum that fits, and say whether it had another; durable on return."""
    place = BLOCKS_FROM + block * BLOCK_BYTES
    with path.open("r+b") as file:
        file.seek(place)
        content = file.read(BLOCK_BYTES)
        if len(content) < BLOCK_BYTES:
            return False
        fitting = struct.pack("<Q", _checksum(content[_SUM_BYTES:]))
        if content[:_SUM_BYTES] == fitting:
            return False
        file.seek(place)
        file.write(fitting)
        file.flush()
        os.fsync(file.fileno())
    return True


def _checksum(content: bytes) -> int:
    """Return DuckDB's checksum of a block's content: its 64-bit words, each multiplied, all XORed."""
    words: Iterable[tuple[int]] = struct.iter_unpack("<Q", content)
    result = _SEED
    for (word,) in words:
        result ^= (word * _MULTIPLIER) & _WORD
    return result
