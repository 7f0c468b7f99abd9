"""Values that callers pass by mistake: none, empty, huge, of a wrong type, broken, or of another library."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["WRONG"]


class Colour(Enum):
    RED = 1


class Hostile:
    """Refuses whatever is asked of it, as a closed handle or a broken proxy does."""

    def _refuse(self, *_: object) -> Any:
        raise TypeError("it refuses")

    __len__ = __iter__ = __bool__ = __lt__ = __gt__ = __le__ = __ge__ = __index__ = __float__ = _refuse


def _recursive() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def _deep() -> Any:
    made: Any = 1
    for _ in range(2_000):
        made = [made]
    return made


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "an empty text": lambda: "",
    "a blank": lambda: " ",
    "a word": lambda: "wrong",
    "a star": lambda: "*",
    "a number as text": lambda: "12",
    "a lone surrogate": lambda: "\ud800",
    "a zero byte": lambda: "a\x00b",
    "a long text": lambda: "é" * 5_000,
    "bytes": lambda: b"wrong",
    "a bytearray": lambda: bytearray(b"wrong"),
    "0": lambda: 0,
    "-1": lambda: -1,
    "2**63": lambda: 2**63,
    "a huge integer": lambda: 10**5_000,
    "a huge negative integer": lambda: -(10**30),
    "1.5": lambda: 1.5,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "-infinity": lambda: -math.inf,
    "1e300": lambda: 1e300,
    "True": lambda: True,
    "a signalling NaN": lambda: Decimal("sNaN"),
    "a huge decimal": lambda: Decimal("1e999999"),
    "a fraction": lambda: Fraction(1, 3),
    "a complex number": lambda: 1j,
    "an empty list": list,
    "a list of None": lambda: [None],
    "a nested list": lambda: [["a", ["b"]], 1],
    "a list that contains itself": _recursive,
    "a deep list": _deep,
    "a tuple": lambda: ("a", 1),
    "a dict": lambda: {1: {"a": object()}},
    "a set": lambda: {1, "a"},
    "a generator": lambda: (n for n in (1, "a", None)),
    "an object": object,
    "a class": lambda: dict,
    "a function": lambda: len,
    "a naive datetime": lambda: datetime(2024, 5, 1),  # noqa: DTZ001  it is what is wrong
    "a date": lambda: date(2024, 5, 1),
    "an early datetime": lambda: datetime.min.replace(tzinfo=UTC),
    "a duration": lambda: timedelta(seconds=1.5),
    "a long negative duration": lambda: timedelta.min,
    "a zone": lambda: UTC,
    "a path": lambda: Path("wrong"),
    "an enum": lambda: Colour.RED,
    "an error": lambda: ValueError("wrong"),
    "a lock": threading.Lock,
    "a hostile object": Hostile,
    "NumPy's NaN": lambda: np.float32("nan"),
    "NumPy's NaT": lambda: np.datetime64("NaT", "us"),
    "a NumPy array": lambda: np.array([1, 2]),
    "a NumPy array of objects": lambda: np.array([[None, "a"]], dtype=object),
    "a NumPy duration": lambda: np.timedelta64(5, "s"),
    "pandas' NA": lambda: pd.NA,
    "pandas' NaT": lambda: pd.NaT,
    "a frame": lambda: pd.DataFrame({"a": [1, None]}),
}
