"""The store: what an application opens, writes, reads and closes."""
