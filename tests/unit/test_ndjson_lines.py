"""Lines of points, from rows of the legacy program, which followed fewer rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from repo.formats.ndjson_lines import lines_of, stored_row


def line_of(**changed: Any) -> str:
    row: dict[str, Any] = {"sensor": "s", "metric": "m", "us": 1, "number": 2.0, "text": None, "quality": 100}
    [line] = lines_of([tuple((row | {"metadata": None, "seq": -1} | changed).values())])
    return line


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        ({"number": float("nan")}, '"value":null,"quality":100}'),
        ({"number": None}, '"value":null,"quality":100}'),
        ({"quality": None}, '"value":2.0}'),
        ({"sensor": "a\nb"}, None),
        ({"metadata": '{"b": 1, "a":2}'}, '"metadata":{"b": 1, "a": 2}}'),
        ({"metadata": "not JSON"}, '"metadata":"not JSON"}'),
        ({"metadata": "[1,\n2]"}, '"metadata":"[1,\\n2]"}'),
        ({"metadata": '{"a":NaN}'}, '"metadata":"{\\"a\\":NaN}"}'),
        ({"metadata": '{"a":"\\ud800"}'}, '"metadata":"{\\"a\\":\\"\\\\ud800\\"}"}'),
        ({"metadata": "[" * 20_000}, None),
    ],
    ids=lambda case: str(case)[:30],
)
def test_a_row_that_follows_no_rule_is_one_line_of_json(stored: dict[str, Any], line: str | None) -> None:
    written = line_of(**stored)
    assert written.count("\n") == 1
    assert line is None or written.endswith(line.removesuffix("}") + ',"seq":-1}\n')
    sensor, metric, us, *_ = stored_row(json.loads(written))
    assert (sensor, metric, us) == (stored.get("sensor", "s"), "m", 1)
