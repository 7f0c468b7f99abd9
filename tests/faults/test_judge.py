"""The judge of the kills can fail: it sees each kind of damage to a correct count."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from repo.schema.version import HEAD
from repo.settings import Settings
from repo.store.store import Store
from tests.faults.child import Census, Counted, perform, take_census
from tests.faults.judge import Expected, judge
from tests.faults.workload import State, operation

OPERATIONS = 60


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counted, Expected]:
    """A store after some operations, counted; the engine does not matter here."""
    folder = tmp_path_factory.mktemp("judge") / "store"
    expected = Expected(State(), OPERATIONS)
    with Store(folder, Settings(engine="sqlite", background=False)) as store:
        for index in range(OPERATIONS):
            perform(store, operation("judge", 0, index))
            expected.state.apply(operation("judge", 0, index))
    return take_census(Census(folder, checkpoint=False)), expected


def _drop_row(counted: Counted) -> None:
    counted.rows.pop()


def _double_row(counted: Counted) -> None:
    counted.rows.append(counted.rows[0])


def _change_value(counted: Counted) -> None:
    counted.rows[0] = (*counted.rows[0][:5], 77, *counted.rows[0][6:])


def _bring_back(counted: Counted) -> None:
    counted.rows.append(("site0", "flow", 1, 1.0, None, 100, None, counted.watermark))


def _drop_record(counted: Counted) -> None:
    counted.records.pop()


def _miscount(counted: Counted) -> None:
    sensor, metric, count, *rest = counted.series[0]
    counted.series[0] = (sensor, metric, count + 1, *rest)


def _stale_copy(counted: Counted) -> None:
    counted.latest_copy.pop()


def _forget_loss(counted: Counted) -> None:
    counted.ledger.pop()


def _repeat_loss(counted: Counted) -> None:
    counted.ledger.append(counted.ledger[0])


def _gap_in_journal(counted: Counted) -> None:
    counted.found_journal = [(5, 1), (7, 1)]


def _watermark_behind(counted: Counted) -> None:
    counted.watermark -= 1


def _answer_less(counted: Counted) -> None:
    counted.range.pop()


def _old_latest(counted: Counted) -> None:
    counted.latest[0] = {**counted.latest[0], "value": -1.0}


def test_a_right_count_is_right(scene: tuple[Counted, Expected]) -> None:
    counted, expected = scene
    verdict = judge(counted, {0: expected}, "judge", HEAD)
    assert verdict.problems == []
    assert counted.ledger
    assert counted.records
    assert len(counted.rows) == len(counted.range) == len(counted.after) > 0


def test_an_operation_that_was_not_acknowledged_may_be_stored_or_not(scene: tuple[Counted, Expected]) -> None:
    counted, _ = scene
    earlier = State()
    for index in range(OPERATIONS - 1):
        earlier.apply(operation("judge", 0, index))
    assert judge(counted, {0: Expected(earlier, OPERATIONS - 1)}, "judge", HEAD).problems == []


@pytest.mark.parametrize(
    ("harm", "lost", "doubled"),
    [
        (_drop_row, 1, 0),
        (_double_row, 0, 1),
        (_change_value, 1, 0),
        (_bring_back, 0, 0),
        (_drop_record, 0, 0),
        (_miscount, 0, 0),
        (_stale_copy, 0, 0),
        (_forget_loss, 0, 0),
        (_repeat_loss, 0, 0),
        (_gap_in_journal, 0, 0),
        (_watermark_behind, 0, 0),
        (_answer_less, 0, 0),
        (_old_latest, 0, 0),
    ],
)
def test_damage_is_detected(
    harm: Callable[[Counted], None], lost: int, doubled: int, scene: tuple[Counted, Expected]
) -> None:
    counted, expected = copy.deepcopy(scene)
    harm(counted)
    verdict = judge(counted, {0: expected}, "judge", HEAD)
    assert verdict.problems
    assert (verdict.lost, verdict.doubled) == (lost, doubled)


def test_data_of_other_writers_is_detected(scene: tuple[Counted, Expected]) -> None:
    counted, _ = scene
    assert judge(counted, {1: Expected(State(), 0)}, "judge", HEAD).problems
