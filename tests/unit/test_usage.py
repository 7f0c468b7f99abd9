"""The size of a store's files."""

from __future__ import annotations

from repo.upkeep.usage import Size


def test_used_bytes_are_not_negative_after_free_blocks_were_truncated() -> None:
    cut = Size(metadata_bytes=10, metadata_free_bytes=0, columns_bytes=100, columns_free_bytes=300)
    assert (cut.columns_used_bytes, cut.used_bytes) == (0, 10)
