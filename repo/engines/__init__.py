"""The engines: the differences between SQLite and DuckDB."""
