"""`store.quarantine`: the points and records that sinks refused. Uses SQLite only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from repo.core.handle import Handle
from repo.cursors import Span
from repo.disk.durable import atomic_write
from repo.errors import InvalidQuery, file_typed
from repo.inputs.arguments import check_count, check_path, check_text, shown
from repo.inputs.times import to_datetime
from repo.repositories.ledger import LedgerRepository, Loss
from repo.repositories.quarantine import Quarantined, QuarantineRepository
from repo.repositories.records import NewRecord, RecordRepository
from repo.repositories.state import StateRepository

__all__ = ["Quarantine", "Retried", "drop_losses", "plain_item"]

_PAGE = 1_000

Ids = int | Iterable[int]


@dataclass(frozen=True, slots=True)
class Retried:
    """What `retry` did."""

    points: int
    """Points that are sent to the sink again, each alone. Those that the sink accepts, and those that were overwritten
    since, leave the quarantine. Those that the store no longer has, or that the filter of the sink no longer selects,
    stay in it, with that reason."""
    records: int
    """Records that are pending again."""
    replaced: int
    """Records that were dropped, because a newer one with the same id is pending."""


class Quarantine:
    """`store.quarantine`: what sinks refused for good, with the reason, until it is sent again or dropped. Thread-safe.

    Points also stay in the store; records are only here. Every method raises `InvalidQuery` for an unknown id.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def list(
        self, sink: str | None = None, limit: int | None = 1000, *, after_id: int = 0
    ) -> list[Quarantined]:
        """Return items of a sink, or of all, in order of their ids, which begin after `after_id`."""
        sink = None if sink is None else check_text(sink, "sink")
        limit = None if limit is None else check_count(limit, "limit", 0)
        after_id = check_count(after_id, "after_id", 0)
        with self._handle.metadata.read() as connection:
            return QuarantineRepository(connection).list(sink, after_id=after_id, limit=limit)

    def count(self, sink: str | None = None) -> int:
        """Return the number of items of a sink, or of all."""
        sink = None if sink is None else check_text(sink, "sink")
        with self._handle.metadata.read() as connection:
            return QuarantineRepository(connection).count(sink)

    def show(self, item_id: int) -> Quarantined:
        """Return one item."""
        with self._handle.metadata.read() as connection:
            found = QuarantineRepository(connection).list(ids=[check_count(item_id, "id", 0)])
        if not found:
            command = self._handle.files.command("quarantine list")
            raise InvalidQuery(
                f"there is no item {item_id} in quarantine; `{command}` lists the existing ones"
            )
        return found[0]

    def retry(self, ids: Ids) -> Retried:
        """Send items to their sinks again.

        Points go one by one; an item that is refused again stays, with the reason. A point that was overwritten is not
        sent, because its new value is delivered anyway. A point that was deleted, by a cleanup for example, cannot be
        sent and stays in quarantine, as does one that the sink's filter no longer selects. Records become pending
        again.
        """
        with self._handle.metadata.write() as connection:
            repository, records = QuarantineRepository(connection), RecordRepository(connection)
            items = _known(repository, _ids(ids))
            now_s = self._handle.clock() / 1e6
            pending = replaced = 0
            gone = [item for item in items if item.record_id is not None]
            for item in gone:
                assert item.record_id is not None
                if records.has(item.record_id):
                    replaced += 1
                    continue
                records.put(
                    NewRecord(
                        item.record_id, item.source or "", item.data or "{}", item.timestamp_us / 1e6, now_s
                    )
                )
                pending += 1
            repository.remove([item.id for item in gone if item.id is not None])
            points = repository.mark_retry([item.id for item in items if item.record_id is None and item.id])
        return Retried(points, pending, replaced)

    def drop(self, ids: Ids) -> int:
        """Drop items, and return how many; the loss ledger gets entries. Points stay in the store."""
        with self._handle.metadata.write() as connection:
            repository = QuarantineRepository(connection)
            items = _known(repository, _ids(ids))
            LedgerRepository(connection).add(
                drop_losses(StateRepository(connection), items, self._handle.clock())
            )
            return repository.remove([item.id for item in items if item.id is not None])

    def export(self, path: str | os.PathLike[str], sink: str | None = None) -> int:
        """Write items of a sink, or of all, to a file, one JSON object per line; returns how many.

        The file is replaced atomically. Raises `InvalidFile`, and `StoreFull` on a full disk.
        """
        target = check_path(path, "path")
        sink = None if sink is None else check_text(sink, "sink")
        written = 0
        with (
            file_typed(target, "written"),
            atomic_write(target) as descriptor,
            open(descriptor, "w", encoding="utf-8", closefd=False) as file,
        ):
            for item in self._all(sink):
                file.write(json.dumps(plain_item(item), ensure_ascii=False) + "\n")
                written += 1
        return written

    def _all(self, sink: str | None) -> Iterator[Quarantined]:
        after_id = 0
        while page := self.list(sink, _PAGE, after_id=after_id):
            yield from page
            after_id = page[-1].id or 0


def plain_item(item: Quarantined) -> dict[str, Any]:
    """Return an item as plain values, without what it does not have; the documented form of `quarantine list`."""
    plain: dict[str, Any] = {"id": item.id, "sink": item.sink, "kind": item.kind, "reason": item.reason}
    plain |= {
        name: value for name, value in item._asdict().items() if value is not None and name not in plain
    }
    if item.record_id is not None:
        del plain["retry"]
    return plain | {
        "timestamp": to_datetime(item.timestamp_us).isoformat(),
        "recorded": to_datetime(item.recorded_us).isoformat(),
    }


def drop_losses(state: StateRepository, items: Sequence[Quarantined], now_us: int) -> list[Loss]:
    """Return the entries of the ledger for items that are dropped from the quarantine: one for each sink and kind."""
    facts = state.get()
    assert facts is not None
    groups: dict[tuple[str, str], list[Quarantined]] = {}
    for item in items:
        groups.setdefault((item.sink, "points" if item.record_id is None else "records"), []).append(item)
    return [
        Loss(
            entry_id=f"{facts.store_id}:quarantine:{sink}:{what}:{now_us}:{group[0].id}",
            what=what,
            reason="quarantine",
            detail=json.dumps(
                {"sink": sink, "last_reason": group[-1].reason} | _seqs(group), ensure_ascii=False
            ),
            dropped=len(group),
            first_us=min(item.timestamp_us for item in group),
            last_us=max(item.timestamp_us for item in group),
            recorded_us=now_us,
        )
        for (sink, what), group in groups.items()
    ]


def _seqs(items: Sequence[Quarantined]) -> dict[str, Sequence[Span]]:
    """Return the ranges of seqs of points, by which `reconcile` knows that they were given up; nothing for records."""
    seqs = sorted(item.seq for item in items if item.seq is not None)
    spans: list[Span] = []
    for seq in seqs:
        if spans and spans[-1].last == seq - 1:
            spans[-1] = Span(spans[-1].first, seq)
        else:
            spans.append(Span(seq, seq))
    return {"seqs": spans} if spans else {}


def _ids(ids: Ids) -> list[int]:
    try:
        given = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)) else [ids]
    except TypeError as error:
        raise InvalidQuery(f"ids = {shown(ids)}: a number or a list of numbers is expected") from error
    return list(dict.fromkeys(check_count(one, "id", 0) for one in given))


def _known(repository: QuarantineRepository, ids: list[int]) -> list[Quarantined]:
    found = repository.list(ids=ids)
    missing = sorted(set(ids) - {item.id for item in found})
    if missing:
        raise InvalidQuery(f"there is no item {missing[0]} in quarantine; nothing was changed")
    return found
