"""Random sinks, confirmations, limits and cleanups against plain sets: what a sink has, and what a cleanup leaves."""

from __future__ import annotations

from random import Random

import pytest

from repo import Store
from repo.repositories.attempts import Attempt
from tests.conftest import Clock, OpenStore

NAMES = ("cloud", "hub", "stick")
DAY_S = 86_400.0
ACTIONS = ("write", "write", "add", "confirm", "confirm", "hand", "skip", "replay", "cleanup", "pass")
LIMITS: tuple[dict[str, object] | None, ...] = (
    None,
    None,
    {"age": "3d"},
    {"points": 5},
    {"age": "2d", "points": 12},
)


class Model:
    """What was written, and what each sink was given and has confirmed."""

    def __init__(self) -> None:
        self.points: dict[int, tuple[str, float]] = {}
        self.confirmed: dict[str, set[int]] = {}
        self.holds: dict[str, tuple[bool, dict[str, object] | None]] = {}
        self.last_seq = 0

    def low(self, name: str) -> int:
        """The seq up to which a sink has confirmed everything."""
        seq = 0
        while seq + 1 in self.confirmed[name]:
            seq += 1
        return seq

    def is_held(self, seq: int, now_s: float) -> bool:
        """Whether any sink holds a point."""
        return any(
            hold and self._holds(name, limits, seq, now_s) for name, (hold, limits) in self.holds.items()
        )

    def _holds(self, name: str, limits: dict[str, object] | None, seq: int, now_s: float) -> bool:
        low = self.low(name)
        limits = limits or {}
        if "points" in limits:
            low = max(low, self.last_seq - int(str(limits["points"])))
        if seq <= low:
            return False
        return "age" not in limits or self.points[seq][1] >= now_s - int(str(limits["age"])[0]) * DAY_S


@pytest.mark.parametrize("round_", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 6))])
def test_sinks_and_cleanups_do_what_plain_sets_say(
    open_store: OpenStore, clock: Clock, seed: int, round_: int
) -> None:
    rng = Random(f"{seed}-{round_}")
    store, model = open_store(), Model()
    for _ in range(60):
        now_s = clock() / 1e6
        action = rng.choice(
            ("write", "write", "add", "confirm", "confirm", "hand", "skip", "replay", "cleanup", "pass")
        )
        names = sorted(model.confirmed)
        name = rng.choice(names) if names else ""
        if action == "write":
            rows = [
                (rng.choice("ab"), "m", now_s - rng.random() * 6 * DAY_S, 1.0)
                for _ in range(rng.randint(1, 6))
            ]
            store.points.insert_many(rows)
            for at, (sensor, _, time_s, _) in enumerate(rows, 1):
                model.points[model.last_seq + at] = (sensor, time_s)
            model.last_seq += len(rows)
        elif action == "add" and len(names) < len(NAMES):
            name = next(one for one in NAMES if one not in names)
            hold, limits = rng.random() < 0.7, rng.choice(LIMITS)
            store.sinks.add(name, "", start="now", hold=hold, max_backlog=limits)
            model.confirmed[name] = set(range(1, model.last_seq + 1))
            model.holds[name] = (hold, limits)
        elif action == "pass" and rng.random() < 0.3 and names:
            store.sinks.remove(name)
            del model.confirmed[name], model.holds[name]
        elif action in ("confirm", "hand") and names and model.last_seq:
            first = rng.randint(1, model.last_seq)
            last = min(model.last_seq, first + rng.randint(0, 8))
            if action == "hand":
                store.sinks.confirm(name, first, last)
            else:
                delivery = store.sinks.delivery(name)
                attempt = Attempt(first, last, 1, "c", f"{rng.random()}", "live", 1, 5)
                delivery.begin(attempt)
                delivery.confirm(attempt)
            model.confirmed[name] |= set(range(first, last + 1))
        elif action == "skip" and names and model.last_seq:
            to = rng.randint(1, model.last_seq)
            store.sinks.skip(name, to)
            model.confirmed[name] |= set(range(1, to + 1))
        elif action == "replay" and names and model.last_seq:
            seq = rng.randint(1, model.last_seq)
            store.sinks.replay(name, seq=seq)
            model.confirmed[name] -= set(range(seq, model.last_seq + 1))
        elif action == "cleanup":
            _clean(store, model, rng, now_s)
        clock.advance(rng.random() * 20_000)
        for info in store.sinks.list():
            done = model.confirmed[info.name]
            assert info.confirmed_seq == model.low(info.name)
            assert info.behind == model.last_seq - len(done)
            ranges = {seq for first, last in info.ranges for seq in range(first, last + 1)}
            assert ranges == {seq for seq in done if seq > info.confirmed_seq}
    assert sorted(row["seq"] for row in store.points.after(0)) == sorted(model.points)


def _clean(store: Store, model: Model, rng: Random, now_s: float) -> None:
    end_s = now_s - rng.random() * 5 * DAY_S
    sensor = rng.choice((None, "a", "[ab]"))
    chosen = {
        seq
        for seq, (name, time_s) in model.points.items()
        if time_s < end_s and (sensor in (None, "[ab]") or name == sensor)
    }
    held = {seq for seq in chosen if model.is_held(seq, now_s)}
    meant = store.cleanup(sensor_id=sensor, end=end_s, dry_run=True)
    assert (meant.points, meant.held_points) == (len(chosen - held), len(held))
    done = store.cleanup(sensor_id=sensor, end=end_s)
    assert (done.points, done.held_points) == (len(chosen - held), len(held))
    # A delete has a seq, and each part of a held cleanup is one; they are nothing that a sink gets.
    model.last_seq = store.sinks.last_seq()
    for seq in chosen - held:
        del model.points[seq]
    assert sorted(row["seq"] for row in store.points.after(0)) == sorted(model.points)
