"""Parameters: checks the values that a caller binds to SQL of their own. Runs nothing.

DuckDB's driver crashes the process on some values (a list that contains itself, for example), so only values of known
types are passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from repo.errors import InvalidQuery
from repo.inputs.arguments import check_text, shown

__all__ = ["check_parameters"]

_PLAIN = (bool, float, bytes, bytearray, date, time, timedelta, UUID)  # a datetime is a date
_MOST_BITS = 127
_DEEPEST = 4


def check_parameters(given: object) -> Sequence[Any] | Mapping[str, Any]:
    """Return the parameters, which are a sequence or a mapping of texts; raises `InvalidQuery`.

    A value is None, a bool, a number, a text, bytes, a date, a time, a duration, a UUID, a NumPy scalar, or a list of
    these.
    """
    if isinstance(given, Mapping):
        for name, value in given.items():
            _check(value, f"params[{shown(check_text(name, 'params: a name'))}]")
        return given
    if isinstance(given, (str, bytes, bytearray)) or not isinstance(given, Sequence):
        raise InvalidQuery(f"params = {shown(given)}: a list or a dict of values is expected")
    for position, value in enumerate(given):
        _check(value, f"params[{position}]")
    return given


def _check(value: object, name: str, depth: int = 0) -> None:
    if isinstance(value, str):
        check_text(value, name)
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise InvalidQuery(f"{name} = {shown(value)}: too large for an integer of either engine")
    elif isinstance(value, Decimal) and not value.is_finite():
        raise InvalidQuery(f"{name} = {value}: a finite decimal is expected")
    elif isinstance(value, (list, tuple)) and depth < _DEEPEST:
        for item in value:
            _check(item, name, depth + 1)
    elif not (
        value is None or isinstance(value, (int, Decimal, *_PLAIN)) or getattr(value, "shape", None) == ()
    ):
        raise InvalidQuery(f"{name} = {shown(value)}: a value of this type cannot be bound to SQL")
