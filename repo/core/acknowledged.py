"""The acknowledged mark: a small file with the last acknowledged seq and record id, which detects lost metadata.

SQLite stops reading a WAL at the first frame with a wrong checksum, and takes what precedes it as the complete
database. So damage at the end of the WAL loses acknowledged points and records without an error. This file is outside
of the database and shows that they existed.

Format: one line of ASCII, padded with spaces to 128 bytes, so that it is always overwritten as a whole:
`holdfast 1 STORE_ID LAST_SEQ LAST_RECORD_ID CRC32`, the CRC in hex over everything before it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from zlib import crc32

from sqlalchemy import Connection

from repo.disk import ownership
from repo.errors import system_error
from repo.files import StoreFiles
from repo.processes.inuse import note_own
from repo.repositories.journal import JournalRepository
from repo.repositories.ledger import LedgerRepository, Loss
from repo.repositories.records import RecordRepository
from repo.repositories.state import Extent, StateRepository

__all__ = ["LOST_END", "AcknowledgedMark", "account_for_lost_end"]

log = logging.getLogger("holdfast.store")

LOST_END = "metadata-lost-their-end"
"""The reason in ledger entries for data that was lost with a damaged end of the metadata."""

_BYTES = 128
_LINE = re.compile(
    rb"(?P<line>holdfast 1 (?P<store_id>[0-9a-f]+) (?P<last_seq>\d+) (?P<last_record>\d+) )(?P<crc>[0-9a-f]{8})"
)


class AcknowledgedMark:
    """The mark file. Several processes may write it, so it may lag behind what was acknowledged, but is never ahead.

    It is only a safeguard, so a failure to write or read it fails no call; it is logged.
    """

    def __init__(self, files: StoreFiles) -> None:
        self.path = files.acknowledged
        self._failing = ""
        self._noted = False

    def write(self, extent: Extent, *, durably: bool) -> None:
        """Record that everything up to `extent` is committed; `durably` waits for the disk."""
        line = f"holdfast 1 {extent.store_id} {extent.last_seq} {extent.last_record} ".encode()
        content = (line + b"%08x" % crc32(line)).ljust(_BYTES - 1) + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if not self._noted:
                    note_own(self.path)
                    ownership.give(self.path)
                    self._noted = True
                os.pwrite(descriptor, content, 0)
                if durably:
                    os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            self._failing = ""
        except OSError as error:
            self._warn(error, "written")

    def read(self) -> Extent | None:
        """Return the recorded extent; None if the file does not exist or is damaged."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error, "read")
            return None
        found = _LINE.match(content)
        if found is None or int(found["crc"], 16) != crc32(found["line"]):
            log.info("%s is damaged; the next flush replaces it", self.path)
            return None
        return Extent(found["store_id"].decode(), int(found["last_seq"]), int(found["last_record"]))

    def _warn(self, error: OSError, done: str) -> None:
        typed = system_error(error, self.path)
        if str(typed) != self._failing:  # log it once, although every flush tries again
            self._failing = str(typed)
            log.warning(
                "%s could not be %s, so damage at the end of the metadata would not be detected: %s",
                self.path,
                done,
                typed,
            )


def account_for_lost_end(connection: Connection, mark: Extent, now_us: int) -> list[Loss]:
    """Record in the ledger the acknowledged data that the metadata lacks, and continue numbering after it.

    Seqs and record ids are never reused, because a receiver may have confirmed the lost ones. Runs in a write
    transaction. Returns the new entries, none if nothing is missing.
    """
    found = StateRepository(connection).extent()
    if found is None or found.store_id != mark.store_id:
        return []
    losses: list[Loss] = []

    def note(what: str, unit: str, last: int, acknowledged: int) -> None:
        losses.append(
            Loss(
                entry_id=f"{mark.store_id}:lost-end:{what}:{last}-{acknowledged}",
                what=what,
                reason=LOST_END,
                detail=json.dumps({f"first_{unit}": last + 1, f"last_{unit}": acknowledged}),
                dropped=None,
                first_us=None,
                last_us=None,
                recorded_us=now_us,
            )
        )

    if found.last_seq < mark.last_seq:
        JournalRepository(connection).append_lost(found.last_seq + 1, mark.last_seq, now_us)
        note("points", "seq", found.last_seq, mark.last_seq)
    if found.last_record < mark.last_record:
        RecordRepository(connection).skip_ids_through(mark.last_record)
        note("records", "id", found.last_record, mark.last_record)
    LedgerRepository(connection).add(losses)
    return losses
