"""The store: the API that an application opens, writes to, reads from and closes."""
