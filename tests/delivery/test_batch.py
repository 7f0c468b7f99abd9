import hashlib
import json
import math
from typing import Any

import pytest

from repo.delivery.batch import BatchKey, DeliveryBatch, canonical, checksum, checksum_of


def point(seq: int = 1, **facts: Any) -> dict[str, Any]:
    usual = {
        "sensor_id": "W-1",
        "metric_name": "flow",
        "timestamp_us": 7,
        "value": 1.5,
        "quality": 100,
        "metadata": None,
    }
    return {"seq": seq, **usual, **facts}


def test_the_body_is_as_documented() -> None:
    assert canonical([point(7)]) == (
        b'{"seq":7,"sensor_id":"W-1","metric_name":"flow","timestamp_us":7,"value":1.5,"quality":100,"metadata":null}\n'
    )


@pytest.mark.parametrize(
    "value",
    [None, 0.1 + 0.2, 1e300, 5e-324, math.inf, -math.inf, "OPEN", 'a "quoted" µ ☃ \u2028 text', "1e999"],
)
def test_every_value_reads_back_unchanged(value: float | str | None) -> None:
    line = canonical([point(value=value)])
    assert json.loads(line)["value"] == value
    assert line.count(b"\n") == 1


def test_metadata_and_names_in_any_script_read_back() -> None:
    odd = point(
        sensor_id='ø "x"\\', metric_name="ÆØÅ", metadata={"b": [1, None], "a": {"ü": True}}, quality=None
    )
    line = canonical([odd])
    assert json.loads(line) == odd
    assert line.index(b'"a"') < line.index(b'"b"')


def test_the_checksum_covers_the_bytes_and_does_not_depend_on_the_chunks() -> None:
    points = [point(seq) for seq in range(1, 25_001)]
    content = canonical(points)
    assert checksum(content) == hashlib.sha256(content).hexdigest() == checksum_of(iter(points))


def test_a_key_contains_range_count_and_checksum_and_can_be_parsed() -> None:
    batch = DeliveryBatch.of("ab" * 16, 3, [point(5), point(9)])
    assert (batch.first_seq, batch.last_seq, len(batch)) == (3, 9, 2)
    assert batch.key == f"holdfast-1.{'ab' * 16}.3.9.2.{checksum(batch.body)}"
    assert BatchKey.parse(batch.key) == batch.identity
    assert DeliveryBatch.of("ab" * 16, 3, [point(5), point(9, value=2.0)]).key != batch.key


@pytest.mark.parametrize(
    "text", ["", "holdfast-1.x.1.2.3.y", "holdfast-2." + "a" * 32 + ".1.2.2." + "0" * 64]
)
def test_an_invalid_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        BatchKey.parse(text)
