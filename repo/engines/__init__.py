"""The engines: every difference between SQLite and DuckDB lives in this room."""
