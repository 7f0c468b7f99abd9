"""Torn checkpoints: repairs what a kill in the middle of DuckDB's CHECKPOINT can leave behind.

DuckDB writes a checkpoint's data to free blocks and then switches a header, but it rewrites its metadata blocks in
place (seen with strace: 262,144 bytes at the position that the active header points to). A kill or a power loss in the
middle of that write leaves a block that is partly old and partly new, with a checksum that matches neither, and DuckDB
refuses the file. Such a block is repaired by correcting its checksum.

A flipped bit also causes a wrong checksum, but must not be repaired. A metadata block has 64 sub-blocks, and a
checkpoint writes only to those that the active header does not use. So before a checkpoint begins, a durable note
records the header's iteration, and, for each block with unused sub-blocks, the CRC-32 of every sub-block. A block is
repaired only if it is in the note, the recorded header is still active, and each sub-block in use has the recorded CRC;
anything else is damage. The content of unused sub-blocks does not matter. Without a note a wrong checksum is damage.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from repo.disk import durable, ownership
from repo.engines.duckdb.companions import NOTE
from repo.errors import system_error

__all__ = [
    "Note",
    "forget",
    "is_blank",
    "mend",
    "mend_block",
    "note_path",
    "noted",
    "read_note",
]

log = logging.getLogger("holdfast.torn")

BLOCK_BYTES = 262_144
BLOCKS_FROM = 12_288
"""The offset of the first block, after the main header and the two alternating headers."""

_SUM_BYTES = 8
_MULTIPLIER = 0xBF58476D1CE4E5B9
_SEED = 5381
_WORD = 2**64 - 1
_MISFIT = re.compile(r"computed checksum \d+ does not match stored checksum \d+ in block at location (\d+)")
_SUB_BLOCKS = 64
_SUB_BLOCK_BYTES = (BLOCK_BYTES - _SUM_BYTES) // _SUB_BLOCKS // 8 * 8
_HEADER_BYTES = 4_096
_UNDER_WAY, _DONE = b"1", b"0"
_HEAD = struct.Struct("<IQI")  # CRC-32 of the rest, iteration of the active header, number of blocks
_BLOCK = struct.Struct(
    f"<qQ{_SUB_BLOCKS}I"
)  # block number, bit mask of the sub-blocks in use, CRCs of all sub-blocks


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint that was begun, but not recorded as done.

    `blocks` has, by block number, the sub-blocks in use as a bit mask, and the CRCs of all; None in a note of an
    earlier version, which proves nothing.
    """

    iteration: int = 0
    blocks: Mapping[int, tuple[int, tuple[int, ...]]] | None = None


def note_path(path: Path) -> Path:
    """Return the path of the note, which exists while a checkpoint of this database is running."""
    return path.with_name(path.name + NOTE)


def read_note(path: Path) -> Note | None:
    """Return the note of a checkpoint that may be torn, or None; raises `StoreDenied`.

    An incomplete note was never synced, so its checkpoint did not begin.
    """
    try:
        content = note_path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise system_error(error, path) from error
    if content == _UNDER_WAY:
        return Note()
    if content[:1] != _UNDER_WAY or len(content) < 1 + _HEAD.size:
        return None
    stored, iteration, count = _HEAD.unpack_from(content, 1)
    end = 1 + _HEAD.size + count * _BLOCK.size
    if len(content) < end or crc32(content[5:end]) != stored:
        return None
    blocks = {}
    for block, used, *sums in _BLOCK.iter_unpack(content[1 + _HEAD.size : end]):
        blocks[block] = (used, tuple(sums))
    return Note(iteration, blocks)


@contextmanager
def noted(
    path: Path, file: int | None = None, unused: Mapping[int, Iterable[int]] | None = None
) -> Iterator[None]:
    """Record a checkpoint durably before the block, and as done after it, unless the block raises.

    `file` is an open descriptor of the database, and `unused` has the unused sub-blocks by metadata block. System
    errors are raised as typed errors; if the note cannot be written, the block is not entered.
    """
    note = note_path(path)
    try:
        content = _UNDER_WAY if file is None else _note_of(file, unused or {})
        new = not note.exists()
        descriptor = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _write(descriptor, content, 0)
            durable.sync(descriptor)
            if new:
                ownership.give(note)
                durable.sync(path.parent)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise system_error(error, note) from error
    yield
    forget(path)


def _note_of(file: int, unused: Mapping[int, Iterable[int]]) -> bytes:
    blocks = []
    for block, numbers in unused.items():
        used = 2**_SUB_BLOCKS - 1
        for number in numbers:
            used &= ~(1 << number)
        if used == 2**_SUB_BLOCKS - 1:
            continue  # the checkpoint cannot write to it
        content = os.pread(file, BLOCK_BYTES, BLOCKS_FROM + block * BLOCK_BYTES)
        blocks.append(_BLOCK.pack(block, used, *_sums(content)))
    rest = struct.pack("<QI", _iteration(os.pread(file, BLOCKS_FROM, 0)), len(blocks)) + b"".join(blocks)
    return _UNDER_WAY + struct.pack("<I", crc32(rest)) + rest


def _sums(content: bytes) -> list[int]:
    places = range(_SUM_BYTES, _SUM_BYTES + _SUB_BLOCKS * _SUB_BLOCK_BYTES, _SUB_BLOCK_BYTES)
    return [crc32(content[place : place + _SUB_BLOCK_BYTES]) for place in places]


def _iteration(headers: bytes) -> int:
    """Return the iteration of the active header, the larger one of the intact headers; 0 if none is intact."""
    found = [0]
    for place in (_HEADER_BYTES, 2 * _HEADER_BYTES):
        header = headers[place : place + _HEADER_BYTES]
        if len(header) == _HEADER_BYTES:
            stored, iteration = struct.unpack_from("<QQ", header)
            if stored == _checksum(header[_SUM_BYTES:]):
                found.append(iteration)
    return max(found)


def _write(descriptor: int, content: bytes, place: int) -> None:
    while content:
        done = os.pwrite(descriptor, content, place)
        content, place = content[done:], place + done


def forget(path: Path) -> None:
    """Withdraw the note, after a checkpoint or after the file was opened and found intact.

    This is not synced, and an error is only logged: a stale note only costs an extra check at the next opening.
    """
    try:
        descriptor = os.open(note_path(path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, _DONE, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("the note of a checkpoint of %s could not be removed: %s", path, error)


def mend(path: Path, note: Note, error: BaseException) -> bool:
    """Repair the block that DuckDB named when it refused to open the file; False if the block is damaged.

    The caller holds the lease, and the file is closed. System errors are raised as typed errors.
    """
    found = _MISFIT.search(str(error.__cause__ or error))
    return found is not None and mend_block(path, note, (int(found[1]) - BLOCKS_FROM) // BLOCK_BYTES)


def mend_block(path: Path, note: Note, block: int) -> bool:
    """Correct the checksum of a block, durably. False, without a change, if it is correct or the block is damaged."""
    place = BLOCKS_FROM + block * BLOCK_BYTES
    try:
        with path.open("r+b") as file:
            headers = file.read(BLOCKS_FROM)
            file.seek(place)
            content = file.read(BLOCK_BYTES)
            if len(content) < BLOCK_BYTES:
                return False
            fitting = struct.pack("<Q", _checksum(content[_SUM_BYTES:]))
            if content[:_SUM_BYTES] == fitting or not _is_torn(path, note, block, headers, content):
                return False
            file.seek(place)
            file.write(fitting)
            file.flush()
            durable.sync(file.fileno())
    except OSError as error:
        raise system_error(error, path) from error
    return True


def _is_torn(path: Path, note: Note, block: int, headers: bytes, content: bytes) -> bool:
    """Return whether a torn checkpoint can explain this block, and log the finding."""
    if note.blocks is None:
        log.warning(
            "block %d of %s is assumed to be torn by a checkpoint: an earlier version recorded that one was running, "
            "but not the content of the file, so damage cannot be ruled out; compare the points with a backup",
            *(block, path),
        )
        return True
    if block not in note.blocks or _iteration(headers) != note.iteration:
        log.error("block %d of %s is damaged; no checkpoint was writing to it", block, path)
        return False
    used, sums = note.blocks[block]
    changed = [at for at, sum_ in enumerate(_sums(content)) if sum_ != sums[at]]
    damaged = [at for at in changed if used & 1 << at]
    if damaged:
        log.error(
            "block %d of %s is damaged: %d of its parts in use have changed",
            block,
            path,
            len(damaged),
        )
        return False
    log.info(
        "block %d of %s was torn by a kill: %d unused parts differ, and all others are unchanged",
        *(block, path, len(changed)),
    )
    return True


def is_blank(path: Path) -> bool:
    """Return whether there is no database: no file, a file too short for DuckDB's headers, or only zeros in them.

    A kill or a full disk can leave that while DuckDB creates a file. The caller holds the lease.
    """
    try:
        with path.open("rb") as file:
            headers = file.read(BLOCKS_FROM)
    except FileNotFoundError:
        return True
    return len(headers) < BLOCKS_FROM or not any(headers)


def _checksum(content: bytes) -> int:
    """Return DuckDB's checksum of a block's content: the XOR of its 64-bit words, each multiplied by a constant."""
    words: Iterable[tuple[int]] = struct.iter_unpack("<Q", content)
    result = _SEED
    for (word,) in words:
        result ^= (word * _MULTIPLIER) & _WORD
    return result
