"""The packed form of points: what was packed is unpacked, and blocks do not share what they hold."""

from __future__ import annotations

from typing import Any

import pytest

from repo.core.codec import pack, pack_point, unpack
from repo.errors import StoreCorrupt
from repo.inputs.values import check_point

POINTS: dict[str, dict[str, Any]] = {
    "a number": {"value": 1.5},
    "no reading": {"value": None},
    "a text": {"value": "OPEN"},
    "metadata": {"value": 1.5, "metadata": {"list": [[["]]]"]]]}},
    "another quality": {"value": 1.5, "quality": -7},
    "a name that looks like the end of the names": {"value": 1.5, "metric_name": 'x"]]]'},
}


def _point(value: Any, metric_name: str = "pressure", quality: int = 100, metadata: Any = None) -> Any:
    return check_point("SENSOR-1", metric_name, value, 1.7e9, quality, metadata, accept_bool=False, now_us=0)


@pytest.mark.parametrize("fields", POINTS.values(), ids=POINTS)
def test_a_point_is_unpacked_as_the_batch_of_one_row_that_it_is(fields: dict[str, Any]) -> None:
    point = _point(**fields)
    [found] = unpack(pack_point(point))
    assert repr(found) == repr(point.batch())  # repr, because NaN differs from itself


@pytest.mark.parametrize("fields", POINTS.values(), ids=POINTS)
def test_a_point_is_packed_as_a_batch_of_one_row_is(fields: dict[str, Any]) -> None:
    point = _point(**fields)
    assert pack_point(point) == pack(point.batch())


def test_points_that_threads_wrote_together_are_unpacked_one_by_one() -> None:
    points = [_point(**fields) for fields in POINTS.values()]
    found = list(unpack(b"".join(map(pack_point, points))))
    assert repr(found) == repr([point.batch() for point in points])


def test_changing_an_unpacked_batch_does_not_change_the_next_one_of_the_same_series() -> None:
    block = pack_point(_point(1.5))
    [first] = unpack(block)
    first.series.append(("other", "series"))
    first.kinds[0] = None
    [second] = unpack(block)
    assert repr(second) == repr(_point(1.5).batch())


def test_a_changed_byte_of_a_single_point_is_noticed() -> None:
    block = bytearray(pack_point(_point(1.5)))
    block[-1] ^= 1
    with pytest.raises(StoreCorrupt, match="checksum"):
        list(unpack(bytes(block)))
