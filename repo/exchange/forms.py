"""Forms of files: whether one is CSV, NDJSON or Parquet, by its first bytes and its name. Opens nothing."""

from __future__ import annotations

from typing import Literal

from repo.exchange.unpacking import plain_name

__all__ = ["FORMS", "HEAD_BYTES", "Form", "form_of", "is_parquet"]

Form = Literal["csv", "ndjson", "parquet"]

FORMS: tuple[Form, ...] = ("csv", "ndjson", "parquet")

HEAD_BYTES = 64
"""How much of a file's beginning is enough to tell its form."""

_PARQUET_MAGIC = b"PAR1"
_BEFORE_TEXT = (
    b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"  # marks of an encoding, what UTF-16 has between letters, and space
)
_NAMES: dict[Form, tuple[str, ...]] = {
    "csv": (".csv", ".tsv"),
    "ndjson": (".ndjson", ".jsonl"),
    "parquet": (".parquet", ".parq", ".pq"),
}


def is_parquet(head: bytes) -> bool:
    """Say whether a file that begins so is Parquet."""
    return head.startswith(_PARQUET_MAGIC)


def form_of(head: bytes, name: str) -> Form:
    """Return the form of a file of this name whose plain bytes begin so; what nothing else tells is CSV."""
    if is_parquet(head):
        return "parquet"
    plain = plain_name(name)
    for form, endings in _NAMES.items():
        if plain.endswith(endings):
            return form
    return "ndjson" if head.lstrip(_BEFORE_TEXT)[:1] in (b"{", b"[") else "csv"
