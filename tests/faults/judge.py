"""The judge: compares the counts after a kill with what was acknowledged before it. Touches no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

from tests.faults.child import Counted
from tests.faults.workload import Content, Identity, State, may_stand, owner_of

__all__ = ["Expected", "Verdict", "judge"]


@dataclass(slots=True)
class Expected:
    """For one writer: the expected state, and its first operation that was not acknowledged."""

    state: State
    next_index: int


@dataclass(slots=True)
class Verdict:
    """The problems found, in words and in numbers, and the current state of each writer."""

    problems: list[str] = field(default_factory=list)
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    standing: dict[int, State] = field(default_factory=dict)


def judge(counted: Counted, expected: Mapping[int, Expected], seed: str, head: str) -> Verdict:
    """Compare all counts with the expected states."""
    verdict = Verdict()
    stored = _stored(counted, verdict)
    records = {row["record_id"]: (row["source"], row["data"]) for row in counted.records}
    for writer, wanted in expected.items():
        mine = {i: c for i, c in stored.items() if owner_of_sensor(i[0]) == writer}
        my_records = {r: d for r, d in records.items() if owner_of(r) == writer}
        verdict.acknowledged += len(wanted.state.points)
        _one_writer(verdict, writer, wanted, mine, my_records, seed)
    strangers = {i[0] for i in stored if owner_of_sensor(i[0]) not in expected}
    if strangers:
        verdict.problems.append(f"points of sensors that nobody wrote: {sorted(strangers)}")
    _ledger(counted, verdict)
    _seqs(counted, verdict)
    _slices(counted, verdict)
    _summaries(counted, verdict)
    _journal(counted, verdict)
    _reads(counted, stored, verdict)
    if counted.revision != [(head,)] or counted.columns_revision != [(head,)]:
        verdict.problems.append(f"revisions {counted.revision}, {counted.columns_revision}: not {head}")
    if counted.integrity != [("ok",)]:
        verdict.problems.append(f"integrity_check: {counted.integrity[:3]}")
    return verdict


def owner_of_sensor(sensor: str) -> int:
    """Return the writer of `siteN` and `wellN`."""
    return owner_of(sensor)


def _stored(counted: Counted, verdict: Verdict) -> dict[Identity, Content]:
    stored: dict[Identity, Content] = {}
    times: Counter[Identity] = Counter()
    for sensor, metric, at, value, text, quality, metadata, _ in counted.rows:
        identity = (sensor, metric, at)
        times[identity] += 1
        stored[identity] = Content(value, text, quality, metadata)
    for identity, count in times.items():
        if count > 1:
            verdict.doubled += 1
            verdict.problems.append(f"stored {count} times: {identity}")
    return stored


def _one_writer(
    verdict: Verdict,
    writer: int,
    wanted: Expected,
    stored: dict[Identity, Content],
    records: dict[str, tuple[str, dict[str, Any]]],
    seed: str,
) -> None:
    """Check that the store has exactly one of the valid states: each operation completely or not at all, in order."""
    for _, state in may_stand(wanted.state, seed, writer, wanted.next_index):
        if state.points == stored and state.records == records:
            verdict.standing[writer] = state
            return
    state = wanted.state
    verdict.standing[writer] = state
    # Compared with the acknowledged state; changes of a later operation are no loss.
    allowed: dict[Identity, set[Content | None]] = {i: {c} for i, c in state.points.items()}
    for _, later in may_stand(state, seed, writer, wanted.next_index):
        for identity in later.points.keys() | allowed.keys():
            allowed.setdefault(identity, {None}).add(later.points.get(identity))
    wrong = [i for i in allowed.keys() | stored.keys() if stored.get(i) not in allowed.get(i, {None})]
    missing = [identity for identity in wrong if identity in state.points]
    verdict.lost += len(missing)
    reported = [f"{i}: {stored.get(i)} instead of {state.points.get(i)}" for i in sorted(wrong)[:3]]
    gone = sorted(state.records.keys() - records.keys())[:3]
    verdict.problems.append(
        f"writer {writer}, operations before {wanted.next_index} acknowledged: {len(missing)} acknowledged points are "
        f"not as they were acknowledged, {len(wrong) - len(missing)} others came back or from nowhere; {reported}; "
        f"records missing {gone}, in all {len(records)} instead of {len(state.records)}"
    )


def _ledger(counted: Counted, verdict: Verdict) -> None:
    wanted = Counter(tuple(drop) for state in verdict.standing.values() for drop in _drops(state))
    found = Counter((detail, *rest) for _, detail, *rest in counted.ledger)
    others = {reason for reason, *_ in counted.ledger} - {"delete"}
    if others:
        verdict.problems.append(f"the ledger speaks of {others}")
    if wanted != found:
        verdict.problems.append(
            f"ledger: missing {list((wanted - found).items())[:3]}, too much {list((found - wanted).items())[:3]}"
        )


def _drops(state: State) -> Iterable[tuple[Any, ...]]:
    return state.drops


def _seqs(counted: Counted, verdict: Verdict) -> None:
    seqs = [row[7] for row in counted.rows]
    if None in seqs or len(set(seqs)) != len(seqs):
        verdict.problems.append("seqs are missing or not unique")
    elif seqs and not 0 < min(seqs) <= max(seqs) <= counted.watermark:
        verdict.problems.append(f"seqs reach from {min(seqs)} to {max(seqs)}, watermark {counted.watermark}")


def _slices(counted: Counted, verdict: Verdict) -> None:
    """Check that slices do not overlap, and that the points of a sorted one are in order in the file."""
    for (_, last, *_), (first, *_) in pairwise(counted.slices):
        if first <= last:
            verdict.problems.append(f"slices overlap at seq {first}: {counted.slices[:20]}")
    for first, last, rows, sorted_through in counted.slices:
        if last > counted.watermark:
            verdict.problems.append(f"a slice ends at {last}, after the watermark {counted.watermark}")
        identities = [row[:3] for row in counted.rows if first <= row[7] <= last]
        if len(identities) > rows or (sorted_through >= last and identities != sorted(identities)):
            verdict.problems.append(
                f"{len(identities)} points of the slice {first} to {last} are not in order"
            )


def _summaries(counted: Counted, verdict: Verdict) -> None:
    """Compare the counts and bounds of the series with the raw rows, and their copy in SQLite with both."""
    fresh = {}
    for pair, group in groupby(sorted(counted.rows, key=lambda row: row[:3]), key=lambda row: row[:2]):
        rows = list(group)
        fresh[pair] = (*pair, len(rows), rows[0][2], *rows[-1][2:])
    kept = {row[:2]: tuple(row) for row in counted.series}
    if len(kept) != len(counted.series) or kept != fresh:
        wrong = [pair for pair in fresh.keys() | kept.keys() if fresh.get(pair) != kept.get(pair)]
        verdict.problems.append(f"series: {[(fresh.get(p), kept.get(p)) for p in wrong[:2]]}")
    if sorted(map(tuple, counted.latest_copy)) != sorted(kept.values()):
        verdict.problems.append("the copy of the series in SQLite differs from them")
    kinds = {(sensor, metric): kind for sensor, metric, kind in counted.kinds}
    for pair, row in fresh.items():
        kind = "text" if row[6] is not None else None if row[5] is None else "number"
        if pair not in kinds or (kind is not None and kinds[pair] != kind):
            verdict.problems.append(f"the kind of {pair} is {kinds.get(pair)}, not {kind}")


def _journal(counted: Counted, verdict: Verdict) -> None:
    """Check that the journal covers the seqs after the pruned ones without gaps, after the kill and at the end."""
    for when, state, journal in (
        ("found", counted.found_state, counted.found_journal),
        ("left", counted.state, counted.journal),
    ):
        if state is None:
            continue
        at = state["pruned_through"]
        for seq, count in journal:
            if seq - count != at:
                verdict.problems.append(f"{when}: the journal has a gap or an overlap between {at} and {seq}")
                break
            at = seq
        last = max(at, state["last_seq"])
        if (journal and last != at) or not state["pruned_through"] <= state["copied_through"] <= last:
            verdict.problems.append(f"{when}: the journal ends at {at}; out of order: {state}")
    final = counted.state
    assert final is not None
    if counted.columns_state != [
        (final["store_id"], final["file_id"], final["generation"], counted.watermark)
    ]:
        verdict.problems.append(f"the columns say {counted.columns_state}, the metadata {final}")
    if counted.column_files != [final["engine"]]:
        verdict.problems.append(f"column files of {counted.column_files} beside each other: {final}")
    last = max([final["last_seq"], *(seq for seq, _ in counted.journal)])
    if not counted.watermark == last == final["copied_through"]:
        verdict.problems.append(f"flushed through {counted.watermark}, last seq {last}, metadata: {final}")
    if counted.found_state is not None and final["pruned_through"] < counted.found_state["pruned_through"]:
        verdict.problems.append("pruned_through went back")


def _reads(counted: Counted, stored: dict[Identity, Content], verdict: Verdict) -> None:
    """Compare the results of the store with the raw rows: ranges, pages by seq, and the latest without the lease."""

    def content(row: Mapping[str, Any]) -> tuple[Identity, tuple[Any, Any]]:
        return (row["sensor_id"], row["metric_name"], row["timestamp_us"]), (row["value"], row["quality"])

    raw = {i: (c.value if c.text is None else c.text, c.quality) for i, c in stored.items()}
    for name, rows in (("range", counted.range), ("after", counted.after)):
        if len(rows) != len(raw) or dict(map(content, rows)) != raw:
            verdict.problems.append(
                f"{name} answers {len(rows)} points that differ from the {len(raw)} stored"
            )
    newest: dict[tuple[str, str], Identity] = {}
    for identity in stored:
        pair = identity[:2]
        newest[pair] = max(newest.get(pair, identity), identity)
    latest, expected = dict(map(content, counted.latest)), {one: raw[one] for one in newest.values()}
    if latest != expected:
        differing = sorted(latest.items() ^ expected.items(), key=repr)
        verdict.problems.append(
            f"latest, asked first of all, differs from what is stored: {differing[:4]}, {len(differing)} in all"
        )
