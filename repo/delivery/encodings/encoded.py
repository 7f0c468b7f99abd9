"""The encoded items of a batch: one text per item, and the items that the format cannot express."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from repo.delivery.protocol import Item

__all__ = ["Encoded", "Names", "plain"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Texts in the order of the batch."""

    texts: list[str]
    """One per item, without a line end."""
    rows: list[int] | None = None
    """The row in the batch of each text; None if every row has one."""
    refused: tuple[Item, ...] = ()
    """The rows without a text, each with its reason."""

    def row(self, text: int) -> int:
        """Return the row in the batch of a text."""
        return text if self.rows is None else self.rows[text]


class Names(dict[tuple[str, str], str]):
    """A cache of the encoded names of series. It is emptied when it grows too large."""

    _MOST = 100_000

    def __init__(self, encode: Callable[[str, str], str]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, pair: tuple[str, str]) -> str:
        if len(self) >= self._MOST:
            self.clear()
        text = self[pair] = self._encode(*pair)
        return text

    def of(self, sensors: Sequence[str], metrics: Sequence[str]) -> list[str]:
        """Return the names of each row."""
        return list(map(self.__getitem__, zip(sensors, metrics, strict=True)))


def plain(column: Sequence[Any]) -> Sequence[Any]:
    """Return a column as Python numbers and texts; the values of other libraries' arrays would print differently."""
    if isinstance(column, (list, tuple)):
        return column
    tolist = getattr(column, "tolist", None)
    return list(column) if tolist is None else tolist()
