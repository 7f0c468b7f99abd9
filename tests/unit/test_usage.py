"""The size of a store's files."""

from __future__ import annotations

from repo.upkeep.usage import Size


def test_free_blocks_that_were_cut_off_the_file_do_not_make_its_used_bytes_negative() -> None:
    cut = Size(metadata_bytes=10, metadata_free_bytes=0, columns_bytes=100, columns_free_bytes=300)
    assert (cut.columns_used_bytes, cut.used_bytes) == (0, 10)
