"""`store.losses()`: the loss ledger in words and fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from repo import InvalidQuery, Store
from repo.core.acknowledged import LOST_END
from repo.repositories.ledger import LedgerRepository, Loss


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_losses_say_what_was_dropped_and_why_newest_first(store: Store, clock: Any) -> None:
    assert store.losses() == []
    store.points.insert_many([(s, "m", at, 1.0) for s in ("a", "b", "c") for at in range(10)])
    for number in range(5):
        store.records.add(f"r{number}", source="gw", data={"note": "x"}, timestamp=float(number))
    store.points.delete("a", "m", 2, 5)
    assert store.status().deletions_waiting == 1
    assert store.losses() == [], "a deletion is listed once it is applied"
    clock.advance(1)
    store.cleanup(sensor_id=["b", "c"], end=4)
    clock.advance(1)
    store.records.mark_failed("r4")
    store.cleanup(points=False, records=True, source="gw", min_retries=1)
    clock.advance(1)
    store.records.drop_old(max_age_s=7 * 86_400)

    old, failed, cleaned, deleted = store.losses()
    assert (deleted.what, deleted.dropped, deleted.reason) == ("points", 3, "delete")
    assert (deleted.sensor_id, deleted.metric_name) == ("a", "m")
    assert (deleted.start_us, deleted.end_us) == (2_000_000, 5_000_000)
    assert (deleted.first_us, deleted.last_us) == (2_000_000, 4_000_000)
    assert (cleaned.dropped, cleaned.reason, cleaned.why) == (8, "cleanup", "deleted by cleanup")
    assert (cleaned.sensor_id, cleaned.metric_name, cleaned.end_us) == (("b", "c"), None, 4_000_000)
    assert (failed.what, failed.dropped, failed.source) == ("records", 1, "gw")
    assert failed.why == "deleted by cleanup: failed 1 time or more"
    assert (old.dropped, old.reason, old.why) == (4, "age", "older than 7 days")
    assert (old.first_us, old.last_us) == (0, 3_000_000)
    status = store.status()
    assert (status.lost_points, status.lost_records, status.deletions_waiting) == (11, 5, 0)
    assert store.losses(1) == [old]
    json.dumps([loss.as_dict() for loss in store.losses()])
    for limit in (0, -1, True, "5", 1.5):
        with pytest.raises(InvalidQuery, match="limit"):
            store.losses(limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_losses_without_a_number_name_what_may_be_missing(store: Store) -> None:
    with store._handle.metadata.write() as connection:
        ledger = LedgerRepository(connection)
        for number, (reason, detail) in enumerate(
            (
                (LOST_END, '{"first_id": 3, "last_id": 4}'),
                ("columns-older-than-journal", '{"first_seq": 1200, "last_seq": 2000}'),
                ("reason-of-a-later-version", None),
            )
        ):
            ledger.add([Loss(str(number), "points", reason, detail, None, None, None, number)])
    other, columns, end = store.losses()
    status = store.status()
    assert (status.lost_points, status.lost_uncounted, status.given_up_entries) == (0, 3, 0)
    assert "record ids 3 to 4 may be missing" in end.why
    assert "seqs 1,200 to 2,000 may be missing" in columns.why
    assert (other.why, other.dropped) == ("reason-of-a-later-version", None)
